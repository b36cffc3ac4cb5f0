"""The clips that quantisation is measured on: the user's own, or generated ones.

    clips = Clips(preprocessing, directory)    preprocessing: the bundle's; directory: of --calibrate
    clips.frames(count)       frames spread over the clips, as the graph takes them: float32 [count, 3, h, w] or uint8 [count, h, w, 3]
    clips.clips(count, T)     clips of T such frames, each with questions about it

Generated clips (export/scenes) are drawn from the training split, with a stream of their own. They show flat shapes on textures,
which is not what a camera shows: for a checkpoint of real videos pass a directory.

T frames, h, w rows and columns of the encoder's input.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from export.scenes.draw import make_clip
from export.scenes.scene import clip_rng
from runtime.bundle.manifest import Preprocessing
from runtime.core.errors import ExportError
from runtime.media.clip import sample_frames
from runtime.media.preprocess import Preprocessor

QUESTIONS = ("What happens in the video?", "What is in the video, and where?", "How many people are there?")  # of any video

_SUFFIXES = {".avi", ".gif", ".m4v", ".mkv", ".mov", ".mp4", ".mpg", ".ts", ".webm", ".wmv"}
_GENERATED_FRAMES = 16
_MOST_CLIPS = 32  # of a directory: calibration needs no more frames than that


@dataclass(frozen=True)
class Clips:
    """Calibration clips, generated without a directory; ExportError for a directory without videos."""

    preprocessing: Preprocessing
    directory: str | Path | None = None

    def __post_init__(self) -> None:
        if self.directory is not None and not self._files():
            raise ExportError(
                f"--calibrate {self.directory} has no video ({', '.join(sorted(_SUFFIXES))}); give a directory with a few typical clips"
            )

    @property
    def source(self) -> str:
        """A description for the report."""
        return f"{len(self._files())} videos of {self.directory}" if self.directory else "clips of the demo's generator"

    def check(self, frames: int) -> None:
        """Decode the frames that quantisation will see, for clips of `frames` frames; VideoError for a video that can't be read."""
        for file in self._files():
            sample_frames(file, frames, self._resized)

    def frames(self, count: int) -> np.ndarray:
        """[count, …]: a few frames of each clip, neighbours from different clips."""
        clips = min(count, len(self._files()) if self.directory else max(1, count // 4))
        each = -(-count // clips)
        drawn = [pixels for pixels, _ in self.clips(clips, each)]
        return np.stack(drawn, 1).reshape(-1, *drawn[0].shape[1:])[:count]

    def clips(self, count: int, frames: int) -> Iterator[tuple[np.ndarray, list[str]]]:
        """(`frames` frames as the graph takes them, questions) of up to `count` clips."""
        if self.directory:
            for file in self._files()[:count]:
                shown = sample_frames(file, frames, self._resized).frames
                yield self._processor.normalise(shown), list(QUESTIONS)
            return
        for index in range(count):
            clip = make_clip(clip_rng("train", 0, 3, index), _GENERATED_FRAMES)
            chosen = np.linspace(0, _GENERATED_FRAMES - 1, frames).round().astype(int)
            shown = np.stack([self._resized(clip.frames[at]) for at in chosen])
            yield self._processor.normalise(shown), [q.question for q in clip.questions]

    def _resized(self, frame: np.ndarray) -> np.ndarray:
        """uint8 [any, any, 3] -> [h, w, 3], of the size that the graph takes; by any filter for a graph that resizes itself."""
        if self._processor.frames is None:
            return self._processor.resize(frame)
        from PIL import Image

        height, width = self._processor.frames
        return np.asarray(Image.fromarray(frame).resize((width, height)))

    @cached_property
    def _processor(self) -> Preprocessor:
        return Preprocessor(self.preprocessing)

    def _files(self) -> list[Path]:
        if not self.directory or not Path(self.directory).is_dir():
            return []
        return sorted(file for file in Path(self.directory).iterdir() if file.suffix.lower() in _SUFFIXES)[:_MOST_CLIPS]
