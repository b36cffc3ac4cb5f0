"""Damaged clips and stills through the decoder and the resize, within the limits that a server sets.

Every tenth one is read twice: what comes out must be the same.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

from benchmarks.campaign import mutate_boxes, mutate_bytes
from benchmarks.campaign.kinds.inputs import MB, InputKind
from benchmarks.campaign.run import Run, warm
from benchmarks.campaign.sandbox import Case

FRAMES = 8
_BOXED = (".mp4", ".mov", ".avif")


class Media(InputKind):
    name = "media"
    share = 3.0
    memory = 768 * MB

    def __init__(self) -> None:
        self.files: list[tuple[str, bytes]] = []

    def prepare(self, run: Run) -> None:
        import av

        warm("PIL.Image", "runtime.media.preprocess", "runtime.media.clip")

        import runtime.media.clip
        import runtime.media.preprocess  # noqa: F401

        av.logging.set_level(None)
        self.files = [("".join(path.suffixes), path.read_bytes()) for path in media_files(run)]

    def make(self, run: Run, index: int) -> Case:
        rng = run.rng(self.name, index)
        suffix, data = rng.choice(self.files)
        if suffix in _BOXED and rng.random() < 0.5:
            return Case(mutate_boxes.mutated(rng, data), suffix)
        others = [other for other_suffix, other in self.files if other_suffix == suffix or rng.random() < 0.05]
        return Case(mutate_bytes.mutated(rng, data, others), suffix)

    def call(self, case: Case, folder: Path) -> int:
        from runtime.core.errors import exit_code

        path = folder / f"input{case.suffix}"
        path.write_bytes(case.data)
        try:
            return exit_code(lambda: self._sample(path, twice=len(case.data) % 10 == 0))
        finally:
            path.unlink(missing_ok=True)

    def _sample(self, path: Path, twice: bool) -> None:
        first = _digest(path)
        if twice and _digest(path) != first:
            raise AssertionError("the same file read twice gives other frames")


def media_files(run: Run) -> list[Path]:
    """The corpus' clips and stills."""
    run.corpus.make_media()
    return run.corpus.media_files()


def _digest(path: Path) -> str:
    import numpy as np
    from PIL import Image

    from runtime.media.clip import DecodeLimits, sample_frames_limited

    def resized(frame: np.ndarray) -> np.ndarray:
        return np.asarray(Image.fromarray(frame).resize((96, 96), Image.Resampling.BICUBIC))

    clip = sample_frames_limited(path, FRAMES, resized, DecodeLimits())
    return hashlib.sha256(clip.frames.tobytes()).hexdigest()
