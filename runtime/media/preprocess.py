"""Frames to `pixel_values`, bit-identical to the checkpoint's own image processor.

Pillow resizes a frame, which is then rescaled and normalised. transformers' Pillow backend rescales in float64, rounds to float32 and
normalises in float32; a channel has only 256 levels, so this is done once per level and looked up. The result is bit-identical and
needs no float64 copy of the clip. (The resizers of OpenCV, swscale and torchvision differ from Pillow's, by one grey level or many.)

The graph of a bundle exported with `--input frames` does all this itself: its frames are only checked here and stay uint8
[T, h, w, 3].

T frames, h, w rows and columns of the model's input.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from runtime.bundle.manifest import RESAMPLING, Preprocessing
from runtime.core.errors import VideoError, import_package
from runtime.media.clip import Clip, sample_frames


def load_clip(path: str | Path, frames: int, preprocessor: Preprocessor) -> tuple[np.ndarray, Clip]:
    """`pixel_values` float32 [T, 3, h, w] of T frames spread over a video, and the clip with its uint8 [T, h, w, 3] frames.

    For a graph that takes frames, the uint8 frames are also the first result.
    VideoError for a file that can't be read or a count out of range.
    """
    clip = sample_frames(path, frames, preprocessor.resize)
    return preprocessor.normalise(clip.frames), clip


class Preprocessor:
    """The image processor that a manifest's `preprocessing` describes.

    size, frames    (h, w) of the model's input, and of the frames that the graph takes (None where it takes pixel values)
    resample        Pillow's number of the filter
    mean_and_std    float32 [3] each
    """

    def __init__(self, preprocessing: Preprocessing) -> None:
        self.size, self.frames = preprocessing.size, preprocessing.frames
        resample = preprocessing.resample
        self.resample = RESAMPLING.index(resample) if isinstance(resample, str) else resample
        mean, std = self.mean_and_std = _channels(preprocessing.image_mean), _channels(preprocessing.image_std)
        rescaled = (np.arange(256, dtype=np.float64) * preprocessing.rescale_factor).astype(np.float32)
        self._levels = (rescaled[None] - mean[:, None]) / std[:, None]  # float32 [3, 256]: what each of a channel's values becomes

    def resize(self, frame: np.ndarray) -> np.ndarray:
        """RGB uint8 [any, any, 3] -> uint8 [h, w, 3]; VideoError where the graph takes frames of another size.

        If the graph takes frames of the model's input size, frames of any size are accepted and resized here.
        """
        if self.frames not in (None, self.size):
            if frame.shape[:2] != self.frames:
                (height, width), (got_height, got_width) = self.frames, frame.shape[:2]
                raise VideoError(
                    f"the video's frames are {got_height}x{got_width}, the bundle takes {height}x{width} and resizes them itself; "
                    f"export with --input frames:{got_height}x{got_width}, or without --input for any size"
                )
            return frame
        image = import_package("PIL.Image", "resizing frames", "runtime", "pillow")
        height, width = self.size
        return np.asarray(image.fromarray(frame).resize((width, height), resample=self.resample))

    def normalise(self, frames: np.ndarray, dtype: Any = np.float32) -> np.ndarray:
        """RGB uint8 [T, h, w, 3] -> what the graph takes: [T, 3, h, w] of `dtype` (float32, or float16 rounded from it), or the frames."""
        height, width = self.frames or self.size
        if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[1:] != (height, width, 3):
            raise ValueError(f"frames are {frames.dtype} {list(frames.shape)}; expected uint8 [T, {height}, {width}, 3]")
        if self.frames:
            return frames
        levels = self._levels.astype(dtype)
        count, height, width, channels = frames.shape
        pixel_values = np.empty((count, channels, height, width), levels.dtype)
        for frame, out in zip(frames, pixel_values, strict=True):
            for channel in range(channels):
                # mode="clip": every uint8 is a valid index, so no bounds check and no buffer for it
                np.take(levels[channel], frame[:, :, channel], out=out[channel], mode="clip")
        return pixel_values


def _channels(value: float | tuple[float, float, float]) -> np.ndarray:
    return np.broadcast_to(np.asarray(value, np.float32), 3)
