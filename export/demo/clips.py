"""Generated clips as video files: the demo checkpoint's counterpart of a camera's files.

Each generated frame is shown for HOLD frames of the file, so that a clip of 16 lasts four seconds at RATE frames a second,
and magnified without smoothing, so that the file has an ordinary size and the model must resize it.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from export.scenes.draw import DrawnClip, make_clip
from export.scenes.scene import MIN_FRAMES, SIZE, clip_rng
from runtime.core.errors import ExportError, missing_package
from runtime.core.files import atomic_file
from runtime.core.options import check_limits, option

RATE = 16
HOLD = 4


@dataclass(frozen=True)
class ClipOptions:
    """Which clip to write, and how large; ExportError for a value out of range."""

    seed: int = option(0, "seed of the generator, in the test split", at_least=0)
    frames: int = option(16, "frames to generate", at_least=MIN_FRAMES, at_most=1024)
    scale: int = option(3, "width and height in the file of a generated pixel", at_least=1, at_most=16)

    def __post_init__(self) -> None:
        check_limits(self, ExportError)


def write_demo_clip(path: Path, options: ClipOptions = ClipOptions()) -> DrawnClip:
    """Generate a clip, write it to `path` as H.264 in an mp4 file, and return it; ExportError for a path that can't be written."""
    if path.is_dir():
        raise ExportError(f"{path} is a directory; expected the name of a file to write, such as {path / 'clip.mp4'}")
    clip = make_clip(clip_rng("test", options.seed), options.frames)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        raise ExportError(f"{path.parent} is not a directory; expected a place for {path.name}") from None
    with atomic_file(path) as temporary:
        write_mp4(temporary, clip.frames, options.scale)
    return clip


def write_mp4(path: Path, frames: np.ndarray, scale: int = 1, hold: int = HOLD, rate: int = RATE) -> None:
    """Write RGB uint8 [T, S, S, 3] as H.264 yuv420p, each frame `hold` times, at `rate` frames a second."""
    try:
        import av
    except ImportError:
        raise missing_package("av", "writing a clip", "runtime") from None
    with av.open(str(path), "w", format="mp4") as container:
        # One thread: x264 then writes the same bytes on every machine that runs the same release.
        stream = container.add_stream("libx264", rate=rate, options={"crf": "18", "threads": "1"})
        stream.width = stream.height = SIZE * scale
        stream.pix_fmt = "yuv420p"
        for image in frames:
            magnified = image.repeat(scale, axis=0).repeat(scale, axis=1)
            for _ in range(hold):
                container.mux(stream.encode(av.VideoFrame.from_ndarray(magnified, format="rgb24")))
        container.mux(stream.encode())
