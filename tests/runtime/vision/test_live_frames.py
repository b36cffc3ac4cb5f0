"""Which rows a stream's encoder hands to its graphs, on graphs that only count: without a bundle's weights."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from refusal import naming

from runtime.core.errors import EngineError, VideoError
from runtime.engine import EngineOptions, TensorSpec
from runtime.vision import live as module
from runtime.vision.live import LiveEncoder, Ring

T = 4


def frame(value: int) -> np.ndarray:
    return np.full((2, 3, 3), value, np.uint8)


class Preprocessor:
    """A frame [h, w, 3] becomes one pixel of each colour, its first, in the type that is asked for."""

    size = (7, 9)

    def resize(self, image: np.ndarray) -> np.ndarray:
        return image[:1, :1]

    def normalise(self, images: np.ndarray, dtype: np.dtype) -> np.ndarray:
        assert images.ndim == 4
        return images.transpose(0, 3, 1, 2).astype(dtype)


class Clip:
    """Takes T frames at once: the tokens are the frames' first values."""

    pixel_values = features = TensorSpec("pixels", np.dtype(np.float16), (T, 3, 1, 1))
    encodes_frames = False
    broken = closed = 0

    def encode(self, pixel_values: np.ndarray) -> np.ndarray:
        return pixel_values[0]

    def compress(self, features: np.ndarray) -> dict:
        assert features.shape == (T, 3, 1, 1)
        return {"other": None, "visual_tokens": features[:, 0, 0] / (0 if self.broken else 1)}

    def close(self) -> None:
        self.closed += 1


class Split:
    """An encoder of one frame, which doubles it, and a compressor of T."""

    pixel_values = TensorSpec("pixels", np.dtype(np.float32), (T, 3, 1, 1))
    features = TensorSpec("features", np.dtype(np.float64), (T, 5))
    encodes_frames = True
    encoded = 0

    def encode(self, pixel_values: np.ndarray) -> np.ndarray:
        self.encoded += 1
        assert pixel_values.shape == (1, 3, 1, 1) and pixel_values.dtype == np.float32
        return np.full(5, 2 * pixel_values[0, 0, 0, 0], np.float64)

    def compress(self, features: np.ndarray) -> dict:
        assert features.shape == (T, 5) and features.dtype == np.float64
        return {"visual_tokens": features[:, :1].copy()}


@pytest.fixture
def opened(monkeypatch):
    """opened(engine) -> an encoder of a stream on it."""
    monkeypatch.setattr(module, "Preprocessor", lambda preprocessing: Preprocessor())
    bundle = SimpleNamespace(manifest=SimpleNamespace(frames=T, preprocessing={}))
    return lambda engine: LiveEncoder(bundle, engine)


@pytest.mark.parametrize(
    ("pushed", "rows"),
    [
        (1, [0, 0, 0, 0]),
        (2, [0, 0, 1, 1]),
        (3, [0, 0, 1, 2]),  # the frame that each quarter of the clip begins in
        (4, [0, 1, 2, 3]),
        (5, [1, 2, 3, 4]),
        (8, [4, 5, 6, 7]),
        (9, [5, 6, 7, 8]),
    ],
)
@pytest.mark.parametrize("kind", [Clip, Split])
def test_the_last_frames_are_the_rows_and_few_are_repeated_evenly(opened, kind, pushed, rows):
    engine = kind()
    live = opened(engine)
    for number in range(pushed):
        live.push(frame(10 + number))
    assert len(live) == min(pushed, 4) and live.frames == 4 and live.encodes_once is (kind is Split)
    factor = 2 if kind is Split else 1
    assert live.tokens().tolist() == [[factor * (10 + row)] for row in rows]
    if kind is Split:
        live.tokens()
        assert engine.encoded == pushed
    clip = live.visual().clip
    assert clip.indices == clip.timestamps == tuple(rows)  # without a clock of its own, a frame's time is its number
    assert (clip.duration, clip.total, clip.path) == (rows[-1] - rows[0], pushed, Path("live"))


def test_a_clip_says_where_its_tokens_come_from(opened):
    live = opened(Clip())
    live.push(frame(1), 7.0)
    first = live.visual("camera").clip
    assert (first.duration, first.timestamps, first.total) == (0, (7.0,) * 4, 1)
    for number in range(1, 7):
        live.push(np.full((2 + number, 30 + number, 3), number, np.uint8), seconds=0.0 if number == 6 else 7 + 0.25 * number**2)
    visual = live.visual("camera")
    clip = visual.clip
    assert (clip.path, clip.indices, clip.total, clip.size) == (Path("camera"), (3, 4, 5, 6), 7, (8, 36))
    assert (clip.timestamps, clip.duration) == ((9.25, 11.0, 13.25, 0.0), -9.25)
    assert clip.frames.shape == (0, 7, 9, 3) and clip.frames.dtype == np.uint8
    assert visual.tokens.tolist() == [[3], [4], [5], [6]]


def test_the_seconds_are_those_of_the_last_push_and_of_the_tokens(opened, monkeypatch):
    times = iter([100.0, 103.0, 200.0, 204.0, 300.0, 305.0])
    monkeypatch.setattr(module, "time", SimpleNamespace(perf_counter=lambda: next(times)))
    live = opened(Clip())
    live.push(frame(1)), live.push(frame(2))
    assert live.visual().seconds == {"encode": 4, "compress": 5}


@pytest.mark.parametrize(
    "bad",
    [
        np.zeros((4, 4, 3), np.int8),
        np.zeros((4, 4, 3), np.float32),
        np.zeros((4, 4), np.uint8),
        np.zeros((4, 4, 3, 1), np.uint8),
        np.zeros((4, 4, 1), np.uint8),
        np.zeros((4, 4, 4), np.uint8),
        np.zeros((4, 0, 3), np.uint8),
        np.zeros((0, 4, 3), np.uint8),
    ],
)
def test_what_is_no_frame_is_refused_and_not_kept(opened, bad):
    live = opened(Clip())
    with pytest.raises(VideoError, match=r"expected RGB uint8 \[height, width, 3\]"):
        live.push(bad)
    assert len(live) == 0
    live.push(np.zeros((1, 1, 3), np.uint8))
    assert len(live) == 1


def test_before_the_first_frame_and_after_clearing_there_is_nothing(opened):
    live = opened(Clip())
    for _ in range(2):
        with pytest.raises(VideoError, match=naming("frame")):
            live.tokens()
        with pytest.raises(VideoError, match=naming("frame")):
            live.visual()
        live.push(frame(3))
        assert live.visual().clip.indices == (0, 0, 0, 0)
        live.clear()
        assert len(live) == 0


def test_tokens_that_are_not_finite_are_an_error_and_closing_closes_the_engine(opened):
    engine = Clip()
    live = opened(engine)
    live.push(frame(1))
    engine.broken = 1
    with np.errstate(divide="ignore"), pytest.raises(EngineError, match="not finite"):
        live.tokens()
    live.close()
    assert engine.closed == 1


@pytest.mark.parametrize("arguments", [(), ("openvino", EngineOptions(threads=2))])
def test_opening_loads_the_vision_component(monkeypatch, arguments):
    asked = []
    monkeypatch.setattr(module, "Preprocessor", lambda preprocessing: Preprocessor())
    monkeypatch.setattr(module, "open_vision", lambda *given: asked.append(given) or Clip())
    bundle = SimpleNamespace(manifest=SimpleNamespace(frames=T, preprocessing={}))
    assert len(LiveEncoder.open(bundle, *arguments)) == 0
    assert asked == [(bundle, *(arguments or ("auto", EngineOptions())))]


def test_a_ring_begins_anew_once_it_is_cleared():
    ring = Ring(2, (1,), np.dtype(np.int16))
    assert (len(ring), ring.pushed, list(ring.times), ring.rows().shape, ring.rows().dtype) == (0, 0, [], (0, 1), np.int16)
    for number in range(3):
        ring.push(np.array([number]), number / 2)
    assert (len(ring), ring.pushed, list(ring.times), ring.rows().tolist()) == (2, 3, [0.5, 1.0], [[1], [2]])
    ring.clear()
    assert (len(ring), ring.pushed, list(ring.times)) == (0, 0, [])
    ring.push(np.array([7]), 9.0)
    assert (len(ring), list(ring.times), ring.rows().tolist()) == (1, [9.0], [[7]])
