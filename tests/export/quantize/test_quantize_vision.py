"""The vision encoder's quantisation: which frames are for what, and which layers stay in int8 within a budget. Engines are stand-ins."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import onnx
import pytest
from refusal import naming

from export.quantize import vision
from export.quantize.equalize import Equalization
from export.quantize.layers import Layer
from runtime.core.errors import ExportError

LAYERS = [Layer("a", "xa", "wa", (2, 3)), Layer("b", "xb", "wb", (2, 3)), Layer("c", "xb", "wc", (2, 3))]
ERRORS = {"a": 0.1, "b": 0.3, "c": 0.2}


class FakeEngine:
    """Its output is its feed, once for every input of a layer and ten times that as features."""

    inputs = (SimpleNamespace(name="pixel_values"),)
    closed = 0

    def run(self, feed):
        (frame,) = feed.values()
        assert frame.shape == (1, 2)
        return {"features": frame * 10, "xa": frame, "xb": frame * 2}

    def close(self):
        FakeEngine.closed += 1


@pytest.fixture
def seen(monkeypatch):
    noted = SimpleNamespace(equalized=[], calibrated=[], measured=[], chosen=[], folded=[], loads=[], errors=iter(()))
    equal = Equalization({"xb": np.array([2, 4], np.float32)}, {})

    def find_equalization(encoder, directory, layers, samples):
        noted.equalized = [sample["xa"][0, 0] for sample in samples]
        return SimpleNamespace(of=equal.of, inputs=equal.inputs, fold=lambda model: noted.folded.append(model) or model)

    def thresholds(samples):
        noted.calibrated = list(samples)
        return {"xa": 127.0, "xb": 254.0}

    def layer_errors(encoder, directory, layers, inputs, round_input, round_weight):
        noted.inputs = inputs
        noted.rounded = [round_input(layer, np.array([[1.4, 2.6]], np.float32)) for layer in layers[:2]]
        noted.weights = [round_weight(layer, np.array([[126, 1], [127, 0.3]], np.float32)) for layer in layers[:2]]
        return ERRORS

    def run_passes(model, names, **facts):
        noted.passed = (model, names, facts)
        return "looped", []

    def features(quantized, frames):
        error = next(noted.errors)
        noted.measured = frames
        return iter([frame[None] * 10 * (1 + error) for frame in frames])

    monkeypatch.setattr(vision, "drop_outputs", lambda model, stages: f"{model} without {stages}")
    monkeypatch.setattr(vision, "run_passes", run_passes)
    monkeypatch.setattr(vision, "split", lambda model, grid: (onnx.ModelProto(doc_string=f"{model} {grid}"), None))
    monkeypatch.setattr(vision, "find_layers", lambda encoder: LAYERS)
    monkeypatch.setattr(
        vision, "OnnxEngine", SimpleNamespace(load=lambda model, data=None: noted.loads.append(data) or FakeEngine())
    )
    monkeypatch.setattr(vision, "with_outputs", lambda encoder, names: noted.__dict__.update(wanted=names) or encoder)
    monkeypatch.setattr(vision, "with_weights", lambda model, directory: model if isinstance(model, str) else "encoder")
    monkeypatch.setattr(
        vision, "w8a8", lambda model, limits, chosen: noted.chosen.append((model, sorted(chosen))) or f"{model} in int8"
    )
    for name in ("find_equalization", "thresholds", "layer_errors"):
        monkeypatch.setattr(vision, name, locals()[name])
    monkeypatch.setattr(vision, "_features", features)
    return noted


def quantize(tmp_path, seen, errors, frames=32, budget=None):
    asked = []

    def drawn(count):
        asked.append(count)
        return np.arange(frames, dtype=np.float32)[:, None].repeat(2, 1)

    seen.errors, seen.asked, FakeEngine.closed = iter(errors), asked, 0
    clips = SimpleNamespace(frames=drawn, source="clips of mine")
    return vision.quantize_vision("model", tmp_path, ["e"], (9, 7), clips, budget)


def test_frames_are_for_calibration_but_for_the_last_eight_on_which_the_error_is_measured(tmp_path, seen):
    model, report = quantize(tmp_path, seen, [0.04])
    assert seen.asked == [32]
    assert [sample["xa"][0, 0] for sample in seen.calibrated] == list(range(24))
    assert seen.measured[:, 0].tolist() == list(range(24, 32))
    assert set(seen.equalized) <= set(range(24)) and len(seen.equalized) == 6
    assert seen.inputs["xa"][0, 0] == 24 and set(seen.inputs) == {"xa", "xb"}
    assert model == "model in int8" and FakeEngine.closed == 1 and seen.loads == [tmp_path]
    assert seen.wanted == ["xa", "xb", "xb"]
    assert seen.passed == ("model without ['e']", ["frame_loop"], {"graph": "vision.loop", "required": ["frame_loop"]})
    assert (report.precision, report.budget, report.calibration) == ("int8", 0.05, "clips of mine")
    assert report.error == pytest.approx(0.04, rel=1e-5)


def test_ranges_and_errors_are_those_of_equalised_inputs(tmp_path, seen):
    quantize(tmp_path, seen, [0])
    for at, sample in enumerate(seen.calibrated):
        np.testing.assert_array_equal(sample["xa"], [[at, at]])
        np.testing.assert_array_equal(sample["xb"], [[at, at / 2]])
    a, b = seen.rounded  # steps of 1 and of 2
    np.testing.assert_array_equal(a, [[1, 3]])
    np.testing.assert_array_equal(b, [[0, 0]])
    a, b = seen.weights
    np.testing.assert_allclose(a, [[126, 1], [127, 38 / 127]], rtol=1e-6)  # 0.3 is 38.1 steps of 1 / 127
    np.testing.assert_allclose(b, [[252, 2], [508, 76 * 2 / 127]], rtol=1e-6)  # 1.2 is 76.2 steps of 2 / 127


@pytest.mark.parametrize(
    ("budget", "errors", "tried"),
    [
        (None, [0.049], ["abc"]),
        (None, [0.051, 0.049], ["abc", "ac"]),
        (0.25, [0.25], ["abc"]),
        (0.125, [0.5, 0.25, 0.1], ["abc", "ac", "a"]),
        (0.1, [0.5, 0.5, 0.5, 0.25], ["abc", "ac", "a", ""]),  # no layer is left, and the graph is as it was
    ],
)
def test_the_worst_layers_leave_int8_until_the_features_are_within_the_budget(tmp_path, seen, budget, errors, tried):
    _, report = quantize(tmp_path, seen, errors, budget=budget)
    assert [(model, "".join(chosen)) for model, chosen in seen.chosen] == [
        *(("encoder", one) for one in tried),
        ("model", tried[-1]),
    ]
    assert report.error == pytest.approx(errors[-1], rel=1e-5) and report.budget == (0.05 if budget is None else budget)
    assert [(one.layer, one.precision, one.error, one.equalized) for one in report.layers] == [
        (name, "int8" if name in tried[-1] else "fp32", ERRORS[name], name != "a") for name in "abc"
    ]


def test_clips_need_two_frames_besides_the_eight(tmp_path, seen):
    with pytest.raises(ExportError, match=naming("clips of mine", 9, 10)):
        quantize(tmp_path, seen, [0], frames=9)
    quantize(tmp_path, seen, [0], frames=10)
    assert len(seen.calibrated) == 2


def test_features_are_those_of_a_saved_encoder(monkeypatch):
    saved = []
    monkeypatch.setattr(vision, "save", lambda encoder, path: saved.append((encoder, path.name)))
    monkeypatch.setattr(vision, "OnnxEngine", SimpleNamespace(load=lambda path: saved.append(path.name) or FakeEngine()))
    FakeEngine.closed = 0
    found = list(vision._features("encoder", np.ones((3, 2), np.float32)))
    assert saved == [("encoder", "encoder.onnx"), "encoder.onnx"] and FakeEngine.closed == 1
    np.testing.assert_array_equal(np.concatenate(found), np.full((3, 2), 10))
