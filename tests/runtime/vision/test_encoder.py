"""The vision encoder on a stand-in for its engine: what the engine gets and what becomes of its outputs."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
from manifests import bundle_of

from runtime.bundle.manifest import Preprocessing
from runtime.core.errors import EngineError
from runtime.engine import EngineOptions, TensorSpec
from runtime.vision import encoder as vision
from runtime.vision.encoder import VisionEncoder

BUNDLE = bundle_of(preprocessing=Preprocessing((2, 2), "bicubic", 1, 0, 1), frames=3)


class Engine:
    """encodes_frames: as asked; compressed: the features that it compressed, twice the pixel values; its tokens are `value`."""

    def __init__(self, value: float = 1.0, encodes_frames: bool = True):
        self.encodes_frames = encodes_frames
        self.pixel_values = TensorSpec("pixel_values", np.dtype(np.float16), (3, 3, 2, 2))
        self.compressed: list[np.ndarray] = []
        self.value = value

    def encode_clip(self, pixel_values: np.ndarray) -> np.ndarray:
        assert pixel_values.dtype == np.float16
        return 2 * pixel_values

    def compress(self, features: np.ndarray) -> dict[str, np.ndarray]:
        self.compressed.append(features)
        return {"visual_tokens": np.array([[1, self.value]], np.float16), "norms": np.zeros(3)}


def test_it_opens_the_bundle_s_vision_component(monkeypatch):
    asked = []
    monkeypatch.setattr(vision, "open_vision", lambda *arguments: asked.append(arguments) or Engine())
    encoder = VisionEncoder.open(BUNDLE, "onnx", EngineOptions(threads=2))
    assert asked == [(BUNDLE, "onnx", EngineOptions(threads=2))]
    assert encoder.bundle is BUNDLE and isinstance(encoder.engine, Engine) and encoder.preprocessor.size == (2, 2)


def test_pixels_reach_the_graph_in_its_dtype_and_tokens_come_back_in_theirs():
    engine = Engine()
    pixels = np.random.default_rng(0).uniform(-1, 1, (3, 3, 2, 2)).astype(np.float32)
    tokens = VisionEncoder(BUNDLE, engine).tokens(pixels)
    np.testing.assert_array_equal(engine.compressed, [2 * pixels.astype(np.float16)])
    np.testing.assert_array_equal(tokens, np.ones((1, 2), np.float16))
    assert VisionEncoder(BUNDLE, engine).run(pixels).keys() == {"visual_tokens", "norms"}


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_tokens_that_are_not_finite_are_an_error(value):
    with pytest.raises(EngineError, match="not finite"):
        VisionEncoder(BUNDLE, Engine(value)).tokens(np.zeros((3, 3, 2, 2), np.float32))


@pytest.mark.parametrize("value", [1.0, np.nan])
def test_a_video_is_encoded_while_it_is_decoded_and_then_compressed(monkeypatch, value):
    """Of five seconds two are decoding; the rest is encoding, compressing and waiting for it."""
    clock = iter([10.0, 15.0])
    monkeypatch.setattr(vision.time, "perf_counter", lambda: next(clock))
    asked = []
    monkeypatch.setattr(vision, "encode_while_decoding", lambda *arguments: asked.append(arguments) or (7, "a clip", 2.0))
    encoder = VisionEncoder(BUNDLE, Engine(value))
    if np.isnan(value):
        with pytest.raises(EngineError, match="not finite"):
            encoder.encode("clip.mp4")
        return
    visual = encoder.encode("clip.mp4")
    assert asked == [("clip.mp4", 3, encoder.preprocessor, encoder.engine)] and encoder.engine.compressed == [7]
    assert (visual.clip, visual.seconds) == ("a clip", {"decode+preprocess": 2.0, "encode+compress": 3.0})
    np.testing.assert_array_equal(visual.tokens, [[1, 1]])


def test_a_graph_that_takes_a_clip_gets_its_frames_without_a_second_thread(monkeypatch):
    """Of five seconds two are decoding; the pixel values are made once and in the graph's dtype."""
    clock = iter([10.0, 12.0, 15.0])
    monkeypatch.setattr(vision.time, "perf_counter", lambda: next(clock))
    monkeypatch.setattr(vision, "ThreadPoolExecutor", None)
    frames = np.random.default_rng(0).integers(0, 256, (3, 2, 2, 3), np.uint8)
    monkeypatch.setattr(vision, "sample_frames", lambda path, count, each: SimpleNamespace(frames=frames, path=path, count=count))
    encoder = VisionEncoder(BUNDLE, Engine(encodes_frames=False))
    visual = encoder.encode("clip.mp4")
    (pixels,) = encoder.engine.compressed
    assert pixels.dtype == np.float16 and (visual.clip.path, visual.clip.count) == ("clip.mp4", 3)
    np.testing.assert_array_equal(pixels, encoder.preprocessor.normalise(frames).astype(np.float16))
    assert visual.seconds == {"decode+preprocess": 2.0, "encode+compress": 3.0}
