"""Stages of a vision graph: the tensors that the manifest names, as outputs."""

from __future__ import annotations

import contextlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import pytest
from trt_bundle import make_bundle

from runtime.bundle import Bundle
from runtime.bundle.manifest import StageTensor
from runtime.core.errors import BundleError, EngineError
from runtime.engine.onnx import OnnxEngine
from runtime.tools.stages import Stages, run_stages


def with_stages(directory: Path, **tensors: str) -> Bundle:
    bundle = make_bundle(directory)
    stages = [StageTensor(name, "vision", tensor) for name, tensor in tensors.items()]
    return Bundle(bundle.path, replace(bundle.manifest, stages=(*stages, StageTensor("llm", "llm/decoder", "read"))))


def test_each_stage_is_the_tensor_that_the_manifest_names(tmp_path):
    bundle = with_stages(tmp_path / "b", projector="projected", visual_tokens="visual_tokens")
    pixels = np.random.default_rng(1).standard_normal((2, 3, 8, 8)).astype(np.float32)
    weight = onnx.numpy_helper.to_array(onnx.load(bundle.path / "vision.onnx").graph.initializer[1])
    stages = run_stages(bundle, pixels)
    assert stages.ranks == {"projector": 2, "visual_tokens": 2}
    projected = pixels.reshape(4, 96) @ weight
    np.testing.assert_allclose(stages.tensors["projector"], projected, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(stages.tensors["visual_tokens"], np.tanh(projected), rtol=1e-4, atol=1e-4)
    assert list(run_stages(bundle, pixels, names=["projector"]).tensors) == ["projector"]


def test_a_tensor_that_the_graph_lacks_is_named_with_its_stage(tmp_path):
    bundle = with_stages(tmp_path / "b", projector="projected", pooled="nowhere")
    message = r'vision\.onnx has no tensor "nowhere", which the manifest names for pooled; export the bundle again'
    with pytest.raises(BundleError, match=message):
        run_stages(bundle, np.zeros((2, 3, 8, 8), np.float32))


def test_a_stage_inside_a_function_is_shown_and_takes_the_graphs_type(tmp_path):
    """Two calls of one function of halves, of which the second's inside is named; pixels are given in float32."""
    model = onnx.parser.parse_model("""<ir_version: 9, opset_import: ["" : 20, "own" : 1]>
    g (float16[2, 3, 8, 8] pixel_values) => (float16[2, 3, 8, 8] visual_tokens) {
        first = own.Twice(pixel_values)
        visual_tokens = own.Twice(first)
    }
    <domain: "own", opset_import: ["" : 20]>
    Twice (x) => (y) { inside = Add(x, x) y = Neg(inside) }""")
    bundle = with_stages(tmp_path / "b", start="first", inner="inside", last="visual_tokens", end="visual_tokens")
    onnx.save(model, bundle.path / "vision.onnx")
    pixels = np.random.default_rng(1).integers(-8, 8, (2, 3, 8, 8)).astype(np.float32)
    stages = run_stages(bundle, pixels)
    assert list(stages.tensors) == ["start", "inner", "last", "end"] and set(stages.ranks.values()) == {4}
    for name, factor in {"start": -2, "last": 4, "end": 4}.items():
        np.testing.assert_array_equal(stages.tensors[name], factor * pixels)
        assert stages.tensors[name].dtype == np.float16
    np.testing.assert_array_equal(stages.tensors["inner"], -4 * pixels)


@pytest.mark.parametrize("pixels", [(2, 3, 8, 8), (1, 3, 8, 8)], ids=["a clip", "one that the graph refuses"])
def test_the_engine_is_closed(tmp_path, monkeypatch, pixels):
    closed = []
    monkeypatch.setattr(OnnxEngine, "close", lambda engine: closed.append(engine))
    with contextlib.suppress(EngineError):
        run_stages(with_stages(tmp_path / "b", projector="projected"), np.zeros(pixels, np.float32))
    assert len(closed) == 1


def test_no_names_are_no_tensors_but_all_ranks(tmp_path):
    stages = run_stages(with_stages(tmp_path / "b", projector="projected"), np.zeros((2, 3, 8, 8), np.float32), names=[])
    assert (stages.tensors, stages.ranks) == ({}, {"projector": 2})


@pytest.mark.parametrize(
    ("ranks", "selected"),
    [
        ({"vision/encoder": 3, "compress/topk": 2, "vision/projector": 2}, {"compress/topk", "vision/projector"}),
        ({"compress/pool": 4, "compress/topk": 2, "visual_tokens": 2}, {"compress/topk", "visual_tokens"}),
        ({"compress/pool": 3, "visual_tokens": 2}, set()),
        ({}, set()),
    ],
)
def test_rows_are_a_choice_from_the_first_compression_that_leaves_no_grid(ranks, selected):
    assert Stages({}, ranks).selected == selected
