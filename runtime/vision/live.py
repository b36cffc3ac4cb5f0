"""The last T frames of a stream as visual tokens: `LiveEncoder.push` a frame when it comes, `tokens` whenever they are wanted.

    live = LiveEncoder.open(Bundle.open("bundles/live"))       # a bundle of `python -m export --split`
    for seconds, frame in camera:                              # RGB uint8 [any, any, 3]
        live.push(frame, seconds)
        if somebody_asks:
            for text in chat.ask_about(live.visual(), question): ...

A frame of a split bundle is encoded once, when it is pushed, and its features are kept in a ring; `tokens` then costs the
compressor alone. Any other bundle keeps the frames and encodes all T of them for every `tokens`. Memory does not grow with
the stream. While fewer than T frames have come they are repeated evenly, as those of a short clip are.

The ring is written twice, T rows apart: the last T frames are then one piece of memory in the order in which they came, and
nothing is copied for the compressor.

T frames, h, w pixels, H, W patch rows and columns, C features of a patch, N visual tokens, D hidden.
"""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np

from runtime.bundle import VISION, Bundle
from runtime.core.errors import VideoError
from runtime.engine import Engine, EngineOptions, open_engine
from runtime.engine.split import SplitVision
from runtime.media.clip import Clip
from runtime.media.preprocess import Preprocessor
from runtime.vision.encoder import VisualTokens, finite


class LiveEncoder:
    """frames: T. `len(live)` is how many frames are held, at most T."""

    def __init__(self, bundle: Bundle, engine: Engine):
        self.engine, self.frames = engine, bundle.manifest.frames
        self.preprocessor = Preprocessor(bundle.manifest.preprocessing)
        kept = engine.features if isinstance(engine, SplitVision) else engine.inputs[0]
        self._ring = Ring(self.frames, tuple(kept.sizes()[1:]), kept.dtype)
        self._size = (0, 0)
        self._encoding = 0.0  # seconds of the last push

    @classmethod
    def open(cls, bundle: Bundle, backend: str = "auto", options: EngineOptions = EngineOptions()) -> LiveEncoder:
        return cls(bundle, open_engine(bundle, VISION, backend, options))

    def __len__(self) -> int:
        return len(self._ring)

    @property
    def encodes_once(self) -> bool:
        """Whether a frame is encoded when it is pushed, and never again."""
        return isinstance(self.engine, SplitVision)

    def push(self, frame: np.ndarray, seconds: float | None = None) -> None:
        """Add an RGB uint8 frame [any, any, 3], and drop the oldest where T are held.

        seconds: the frame's time on the source's clock; the number of the frame where left out.
        """
        if frame.dtype != np.uint8 or frame.ndim != 3 or frame.shape[2] != 3 or not frame.size:
            raise VideoError(f"a frame is {frame.dtype} {list(frame.shape)}; expected RGB uint8 [height, width, 3]")
        start = time.perf_counter()
        dtype = self.engine.inputs[0].dtype
        pixel_values = self.preprocessor.normalise(self.preprocessor.resize(frame)[None], dtype)  # [1, 3, h, w]
        row = self.engine.encode(pixel_values) if isinstance(self.engine, SplitVision) else pixel_values[0]
        self._ring.push(row, float(self._ring.pushed) if seconds is None else seconds)
        self._size, self._encoding = (frame.shape[0], frame.shape[1]), time.perf_counter() - start

    def tokens(self) -> np.ndarray:
        """Visual tokens [N, D] of the last T frames, in the bundle's precision; VideoError before the first frame."""
        order, rows = self._order(), self._ring.rows()
        if len(self) < self.frames:
            rows = rows[order]
        if isinstance(self.engine, SplitVision):
            return finite(self.engine.compress(rows))
        return finite(self.engine.run({self.engine.inputs[0].name: rows})["visual_tokens"])

    def visual(self, source: str | Path = "live") -> VisualTokens:
        """The same with the frames that they came from, for `VideoChat.ask_about`. `clip.frames` is empty: none are kept.

        Indices count the frames that were pushed, from 0; timestamps are those that they were pushed with.
        """
        start = time.perf_counter()
        tokens = self.tokens()
        seconds = {"encode": self._encoding, "compress": time.perf_counter() - start}
        order = self._order()
        oldest = self._ring.pushed - len(self)
        times = self._ring.times()
        clip = Clip(
            path=Path(source),
            frames=np.empty((0, *self.preprocessor.size, 3), np.uint8),
            indices=tuple(oldest + at for at in order),
            timestamps=tuple(times[at] for at in order),
            duration=times[-1] - times[0],
            total=self._ring.pushed,
            size=self._size,
        )
        return VisualTokens(tokens, clip, seconds)

    def clear(self) -> None:
        """Forget all frames: the source has changed."""
        self._ring.clear()

    def close(self) -> None:
        self.engine.close()

    def _order(self) -> list[int]:
        """Which of the frames that are held (0 the oldest) each of the T rows is."""
        if not len(self):
            raise VideoError("no frame has been pushed yet; push at least one before asking for tokens")
        return [at * len(self) // self.frames for at in range(self.frames)]


class Ring:
    """The last `length` rows of one shape, always in one piece and in order; each is written twice."""

    def __init__(self, length: int, shape: tuple[int, ...], dtype: np.dtype):
        self._length = length
        self._rows = np.empty((2 * length, *shape), dtype)
        self._times = [0.0] * (2 * length)
        self.pushed = 0

    def __len__(self) -> int:
        return min(self.pushed, self._length)

    def push(self, row: np.ndarray, seconds: float) -> None:
        for slot in (self.pushed % self._length, self.pushed % self._length + self._length):
            self._rows[slot], self._times[slot] = row, seconds
        self.pushed += 1

    def rows(self) -> np.ndarray:
        """A view of the rows held, oldest first; the next push may overwrite it."""
        start = self._start()
        return self._rows[start : start + len(self)]

    def times(self) -> list[float]:
        start = self._start()
        return self._times[start : start + len(self)]

    def clear(self) -> None:
        self.pushed = 0

    def _start(self) -> int:
        return self.pushed % self._length if self.pushed >= self._length else 0
