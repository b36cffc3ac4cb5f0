"""The last T frames of a stream as visual tokens: `LiveEncoder.push` a frame when it comes, `tokens` whenever they are wanted.

    live = LiveEncoder.open(Bundle.open("bundles/live"))       # a bundle of `python -m export --split`
    for seconds, frame in camera:                              # RGB uint8 [any, any, 3]
        live.push(frame, seconds)
        if somebody_asks:
            for text in chat.ask_about(live.visual(), question): ...

A frame of a split bundle is encoded once, when it is pushed, and its features are kept in a ring; `tokens` then runs only the
compressor. With any other bundle the ring keeps the frames, and every `tokens` encodes all T of them. Memory does not grow with the
stream. While there are fewer than T frames they are repeated evenly, as in a short clip.

Each row of the ring is written twice, T rows apart: the last T rows are then contiguous and in order, and nothing is copied for the
compressor.

T frames, h, w pixels, N visual tokens, D hidden.
"""

from __future__ import annotations

import time
from collections import deque
from pathlib import Path

import numpy as np

from runtime.bundle import Bundle
from runtime.core.errors import VideoError
from runtime.engine import EngineOptions
from runtime.media.clip import Clip
from runtime.media.preprocess import Preprocessor
from runtime.vision.encoder import VisualTokens, finite
from runtime.vision.engine import VisionEngine, open_vision


class LiveEncoder:
    """frames: T. `len(live)` is the number of frames in the ring, at most T."""

    def __init__(self, bundle: Bundle, engine: VisionEngine):
        self.engine, self.frames = engine, bundle.manifest.frames
        self.preprocessor = Preprocessor(bundle.manifest.preprocessing)
        self._ring = Ring(self.frames, tuple(engine.features.sizes()[1:]), engine.features.dtype)
        self._size = (0, 0)
        self._encoding = 0.0  # seconds of the last push

    @classmethod
    def open(cls, bundle: Bundle, backend: str = "auto", options: EngineOptions = EngineOptions()) -> LiveEncoder:
        return cls(bundle, open_vision(bundle, backend, options))

    def __len__(self) -> int:
        return len(self._ring)

    @property
    def encodes_once(self) -> bool:
        """Whether a frame is encoded when it is pushed, and never again."""
        return self.engine.encodes_frames

    def push(self, frame: np.ndarray, seconds: float | None = None) -> None:
        """Add an RGB uint8 frame [any, any, 3], in place of the oldest once there are T.

        seconds: the frame's time on the source's clock, by default its number.
        """
        if frame.dtype != np.uint8 or frame.ndim != 3 or frame.shape[2] != 3 or not frame.size:
            raise VideoError(f"a frame is {frame.dtype} {list(frame.shape)}; expected RGB uint8 [height, width, 3]")
        start = time.perf_counter()
        dtype = self.engine.pixel_values.dtype
        pixel_values = self.preprocessor.normalise(self.preprocessor.resize(frame)[None], dtype)  # [1, 3, h, w]
        self._ring.push(self.engine.encode(pixel_values), float(self._ring.pushed) if seconds is None else seconds)
        self._size, self._encoding = (frame.shape[0], frame.shape[1]), time.perf_counter() - start

    def tokens(self) -> np.ndarray:
        """Visual tokens [N, D] of the last T frames, in the bundle's precision; VideoError before the first frame."""
        order, rows = self._order(), self._ring.rows()
        if len(self) < self.frames:
            rows = rows[order]
        return finite(self.engine.compress(rows))["visual_tokens"]

    def visual(self, source: str | Path = "live") -> VisualTokens:
        """The tokens with the frames that they came from, for `VideoChat.ask_about`. `clip.frames` is empty: no images are kept.

        Indices count the pushed frames from 0; timestamps are the `seconds` that they were pushed with.
        """
        start = time.perf_counter()
        tokens = self.tokens()
        seconds = {"encode": self._encoding, "compress": time.perf_counter() - start}
        order, times, oldest = self._order(), self._ring.times, self._ring.pushed - len(self)
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
        """Forget all frames, for a new source."""
        self._ring.clear()

    def close(self) -> None:
        self.engine.close()

    def _order(self) -> list[int]:
        """For each of the T rows, which frame of the ring it shows; 0 is the oldest."""
        if not len(self):
            raise VideoError("no frame has been pushed yet; push at least one before asking for tokens")
        return [at * len(self) // self.frames for at in range(self.frames)]


class Ring:
    """The last `length` rows of one shape, contiguous and in order; each is written twice.

    times: when each row was, in seconds; pushed: rows so far
    """

    def __init__(self, length: int, shape: tuple[int, ...], dtype: np.dtype):
        self._rows = np.empty((2, length, *shape), dtype)
        self.times: deque[float] = deque(maxlen=length)
        self.pushed = 0

    def __len__(self) -> int:
        return len(self.times)

    def push(self, row: np.ndarray, seconds: float) -> None:
        self._rows[:, self.pushed % self._rows.shape[1]] = row
        self.times.append(seconds)
        self.pushed += 1

    def rows(self) -> np.ndarray:
        """A view of the rows, oldest first; the next push may overwrite it."""
        start = (self.pushed - len(self)) % self._rows.shape[1]
        return self._rows.reshape(-1, *self._rows.shape[2:])[start : start + len(self)]

    def clear(self) -> None:
        self.times.clear()
        self.pushed = 0
