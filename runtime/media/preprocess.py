"""Frames to `pixel_values`, bit-identical to the checkpoint's own image processor.

Pillow resizes a frame, which is then rescaled and normalised. transformers' Pillow backend rescales in float64, rounds to float32 and
normalises in float32; a channel has only 256 levels, so this is done once per level and looked up. The result is bit-identical and
needs no float64 copy of the clip. (The resizers of OpenCV, swscale and torchvision differ from Pillow's, by one grey level or many.)

The graph of a bundle exported with `--input frames` does all this itself: its frames are only checked here and stay uint8
[T, h, w, 3].

T frames, h, w rows and columns of the model's input.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from runtime.bundle.manifest import RESAMPLING
from runtime.core.errors import BundleError, VideoError, missing_package, nearest
from runtime.media.clip import Clip, sample_frames

_LARGEST_SIDE = 1 << 15  # pixels
_LARGEST = float(np.finfo(np.float32).max) / 255  # the largest rescale_factor without overflow


def load_clip(path: str | Path, frames: int, preprocessor: Preprocessor) -> tuple[np.ndarray, Clip]:
    """`pixel_values` float32 [T, 3, h, w] of T frames spread over a video, and the clip with its uint8 [T, h, w, 3] frames.

    For a graph that takes frames, the uint8 frames are also the first result.
    VideoError for a file that can't be read or a count out of range.
    """
    clip = sample_frames(path, frames, preprocessor.resize)
    return preprocessor.normalise(clip.frames), clip


class Preprocessor:
    """The image processor that a manifest's `preprocessing` describes.

    preprocessing: {"size": [h, w], "resample": "bicubic" | Pillow's number, "rescale_factor", "image_mean", "image_std"},
    mean and std as three numbers, or one for all channels; "frames": [h, w] where the graph takes uint8 frames of that size.
    Raises BundleError for what is missing or makes no sense.

    size, frames    (h, w) of the model's input, and of the frames that the graph takes (None where it takes pixel values)
    """

    def __init__(self, preprocessing: Mapping[str, Any]) -> None:
        missing = sorted({"size", "resample", "rescale_factor", "image_mean", "image_std"} - preprocessing.keys())
        if missing:
            raise BundleError(f"the bundle's preprocessing lacks {', '.join(missing)}; export the bundle again")
        self.size = _size("size", preprocessing["size"])
        self.frames = _size("frames", preprocessing["frames"]) if "frames" in preprocessing else None
        self.resample = _resample(preprocessing["resample"])
        self.mean_and_std = (
            _channels("image_mean", preprocessing["image_mean"]),
            _channels("image_std", preprocessing["image_std"]),
        )
        self._levels = _levels(preprocessing)

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
        try:
            from PIL import Image
        except ImportError:
            raise missing_package("pillow", "resizing frames", "runtime") from None
        height, width = self.size
        return np.asarray(Image.fromarray(frame).resize((width, height), resample=self.resample))

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


def _levels(preprocessing: Mapping[str, Any]) -> np.ndarray:
    """float32 [3, 256]: the normalised value of each of a channel's 256 levels."""
    mean = _channels("image_mean", preprocessing["image_mean"])
    std = _channels("image_std", preprocessing["image_std"])
    factor = preprocessing["rescale_factor"]
    if isinstance(factor, bool) or not isinstance(factor, int | float) or not abs(factor) <= _LARGEST:
        raise BundleError(f"the bundle's preprocessing has rescale_factor {factor!r}; expected a number, export the bundle again")
    if not std.all():
        raise BundleError("the bundle's preprocessing has a zero in image_std; export the bundle again")
    rescaled = (np.arange(256, dtype=np.float64) * factor).astype(np.float32)
    return (rescaled[None] - mean[:, None]) / std[:, None]


def _channels(name: str, value: Any) -> np.ndarray:
    try:
        array = np.asarray(value, np.float32)
    except (TypeError, ValueError, OverflowError):
        array = np.empty(0, np.float32)
    if array.shape not in ((), (3,)) or not np.isfinite(array).all():
        raise BundleError(f"the bundle's preprocessing has {name} {value!r}; expected one number or three, export the bundle again")
    return np.broadcast_to(array, 3)


def _size(name: str, size: Any) -> tuple[int, int]:
    if not (isinstance(size, list | tuple) and len(size) == 2 and all(type(n) is int and n > 0 for n in size)):
        raise BundleError(f"the bundle's preprocessing has {name} {size!r}; expected [height, width], export the bundle again")
    if max(size) > _LARGEST_SIDE:
        raise BundleError(f"the bundle's preprocessing has {name} {size!r}; expected at most {_LARGEST_SIDE} a side")
    return size[0], size[1]


def _resample(resample: Any) -> int:
    if type(resample) is int and 0 <= resample < len(RESAMPLING):
        return resample
    if resample in RESAMPLING:
        return RESAMPLING.index(resample)
    raise BundleError(f'the bundle\'s preprocessing has no resample "{resample}"{nearest(str(resample), RESAMPLING)}')
