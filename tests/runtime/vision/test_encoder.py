"""The vision half on a stand-in for its engine: what it is given and what becomes of its outputs."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from runtime.core.errors import EngineError
from runtime.engine import EngineOptions, TensorSpec
from runtime.vision import encoder as vision
from runtime.vision.encoder import VisionEncoder

BUNDLE = SimpleNamespace(
    manifest=SimpleNamespace(
        preprocessing={"size": [2, 2], "resample": "bicubic", "rescale_factor": 1, "image_mean": 0, "image_std": 1}, frames=3
    )
)


class Engine:
    """given: what it was run on; its tokens are `value`."""

    def __init__(self, value: float = 1.0):
        self.inputs = (TensorSpec("pixel_values", np.dtype(np.float16), (3, 3, 2, 2)),)
        self.given: list[dict[str, np.ndarray]] = []
        self.value = value

    def run(self, feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        self.given.append(feeds)
        return {"visual_tokens": np.array([[1, self.value]], np.float16), "norms": np.zeros(3)}


def test_it_opens_the_bundle_s_vision_graph(monkeypatch):
    asked = []
    monkeypatch.setattr(vision, "open_engine", lambda *arguments: asked.append(arguments) or Engine())
    encoder = VisionEncoder.open(BUNDLE, "onnx", EngineOptions(threads=2))
    assert asked == [(BUNDLE, "vision", "onnx", EngineOptions(threads=2))]
    assert encoder.bundle is BUNDLE and isinstance(encoder.engine, Engine) and encoder.preprocessor.size == (2, 2)


def test_pixels_are_given_in_the_graph_s_type_and_tokens_come_back_in_theirs():
    engine = Engine()
    pixels = np.random.default_rng(0).uniform(-1, 1, (3, 3, 2, 2)).astype(np.float32)
    tokens = VisionEncoder(BUNDLE, engine).tokens(pixels)
    (feeds,) = engine.given
    assert list(feeds) == ["pixel_values"] and feeds["pixel_values"].dtype == np.float16
    np.testing.assert_array_equal(feeds["pixel_values"], pixels.astype(np.float16))
    np.testing.assert_array_equal(tokens, np.ones((1, 2), np.float16))
    assert VisionEncoder(BUNDLE, engine).run(pixels).keys() == {"visual_tokens", "norms"}


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_tokens_that_are_not_finite_are_an_error(value):
    message = "the vision graph returned values that are not finite; try a bundle of --precision fp32"
    with pytest.raises(EngineError, match=message):
        VisionEncoder(BUNDLE, Engine(value)).tokens(np.zeros((3, 3, 2, 2), np.float32))


def test_the_seconds_of_the_stages_are_the_time_that_passed(monkeypatch):
    clock = iter([10.0, 12.0, 15.0])
    monkeypatch.setattr(vision.time, "perf_counter", lambda: next(clock))
    loaded = []
    monkeypatch.setattr(vision, "load_clip", lambda *arguments: loaded.append(arguments) or (np.zeros((3, 3, 2, 2)), "a clip"))
    encoder = VisionEncoder(BUNDLE, Engine())
    visual = encoder.encode("clip.mp4")
    assert loaded == [("clip.mp4", 3, encoder.preprocessor)]
    assert (visual.clip, visual.seconds) == ("a clip", {"decode+preprocess": 2.0, "encode+compress": 3.0})


@pytest.mark.parametrize("value", [1.0, np.nan])
def test_a_split_bundle_encodes_while_it_decodes_and_compresses_behind(monkeypatch, value):
    """Of five seconds two are decoding; the rest is encoding, compressing and waiting for it."""

    class Split(vision.SplitVision):
        def __init__(self):
            pass

        def compress(self, features):
            return np.array([features, value])

    clock = iter([10.0, 15.0])
    monkeypatch.setattr(vision.time, "perf_counter", lambda: next(clock))
    asked = []
    encoded = SimpleNamespace(clip="a clip", decoding=2.0, features=7)
    monkeypatch.setattr(vision, "encode_while_decoding", lambda *arguments: asked.append(arguments) or encoded)
    encoder = VisionEncoder(BUNDLE, Split())
    if np.isnan(value):
        with pytest.raises(EngineError, match="not finite"):
            encoder.encode("clip.mp4")
        return
    visual = encoder.encode("clip.mp4")
    assert asked == [("clip.mp4", 3, encoder.preprocessor, encoder.engine)]
    assert (visual.clip, visual.seconds) == ("a clip", {"decode+preprocess": 2.0, "encode+compress": 3.0})
    np.testing.assert_array_equal(visual.tokens, [7, 1])
