"""Louder channels change nothing in float, and with equalisation nothing in int8 either."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import onnx
import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
from loud_channels import raise_channels

from export.quantize import equalize
from export.quantize.clips import Clips
from export.quantize.layers import with_weights
from export.quantize.vision import BUDGET, quantize_vision
from runtime.bundle import VISION
from runtime.engine.onnx import OnnxEngine
from runtime.tools import reference


@pytest.fixture
def louder(bundle) -> onnx.ModelProto:
    model = with_weights(onnx.load(str(bundle.model(VISION)), load_external_data=False), bundle.model(VISION).parent)
    raise_channels(model, 40, 2, np.random.default_rng(0))
    return model


def test_float_stays_what_it_was(bundle, louder):
    engines = [OnnxEngine.load(bundle.model(VISION)), OnnxEngine.load(louder.SerializeToString())]
    clip = {engines[0].inputs[0].name: reference.clip(bundle)}
    exact, got = (engine.run(clip)["visual_tokens"] for engine in engines)
    np.testing.assert_allclose(got, exact, rtol=1e-3, atol=1e-3)


@pytest.mark.slow
def test_all_layers_stay_in_int8(bundle, louder, tmp_path, monkeypatch):
    clips, grid = Clips(bundle.manifest.preprocessing), bundle.manifest.grid
    _, report = quantize_vision(louder, tmp_path, [], grid, clips, None)
    assert report.lowered == len(report.layers)
    assert report.error < BUDGET
    equalized = {layer.layer for layer in report.layers if layer.equalized}
    assert any("fc1" in name for name in equalized) and any("self_attn" in name for name in equalized)
    assert not any("fc2" in name or "out_proj" in name for name in equalized)

    monkeypatch.setattr(equalize, "ALPHAS", ())
    _, without = quantize_vision(louder, tmp_path, [], grid, clips, 1.0)
    assert without.error > 3 * report.error
    assert not any(layer.equalized for layer in without.layers)
