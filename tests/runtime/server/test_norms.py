"""The output for the page's heat map, on a graph of two nodes: what it computes, and where there is none."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
from manifests import bundle_of

from runtime.bundle import Bundle
from runtime.bundle.manifest import StageTensor
from runtime.engine import EngineOptions
from runtime.engine.onnx import OnnxEngine
from runtime.server import norms as module

GRAPH = """<ir_version: 10, opset_import: ["" : 20]> g (float16[2, 3, 4] pixel_values) => (float16[2, 4] visual_tokens) {
    projected = Identity(pixel_values)
    visual_tokens = ReduceSum<keepdims = 0>(projected, axes)
}"""
PROJECTOR = StageTensor("projector", "vision", "projected")
COMPRESSION = StageTensor("compress/nsp", "vision", "visual_tokens")
LAST = StageTensor("newline", "vision", "visual_tokens")


@pytest.fixture
def bundle(tmp_path):
    """bundle(stages): one whose frame-by-frame graph is GRAPH."""
    model = onnx.parser.parse_model(GRAPH)
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.array([1]), "axes"))
    onnx.save(model, tmp_path / "vision.loop.onnx")

    def with_stages(*stages: StageTensor) -> Bundle:
        return bundle_of("vision.loop.onnx", path=tmp_path, stages=stages)

    return with_stages


def test_the_root_mean_square_of_what_compression_is_given_is_computed_beside_the_tokens(bundle):
    graph = module._with_norms(bundle(PROJECTOR, COMPRESSION, LAST))
    assert [output.name for output in onnx.load_from_string(graph).graph.output] == ["visual_tokens", "token_norms"]
    engine = OnnxEngine.load(graph, EngineOptions())
    x = np.random.default_rng(0).uniform(-300, 300, (2, 3, 4)).astype(np.float16)  # squares that float16 does not hold
    found = engine.run({"pixel_values": x})
    assert found.keys() == {"visual_tokens", "token_norms"}
    np.testing.assert_allclose(found["token_norms"], np.sqrt((x.astype(np.float64) ** 2).mean(-1)), rtol=1e-6)


@pytest.mark.parametrize(
    "stages",
    [(), (PROJECTOR,), (PROJECTOR, LAST), (COMPRESSION, LAST), (StageTensor("projector", "vision", "renamed"), COMPRESSION)],
    ids=["none", "one", "no compression", "compression first", "no such tensor"],
)
def test_where_nothing_is_compressed_or_found_there_are_none(bundle, stages):
    assert module._with_norms(bundle(*stages)) is None


@pytest.mark.parametrize(
    ("backend", "device", "files", "norms", "opened"),
    [
        ("auto", "cpu", ["vision.loop.onnx"], b"graph", "with norms"),
        ("onnx", "cpu", ["vision.loop.onnx"], b"graph", "with norms"),
        ("onnx", "cpu", ["vision.loop.onnx"], None, "plain"),
        ("onnx", "cuda", ["vision.loop.onnx"], b"graph", "plain"),
        ("auto", "cpu", ["vision.onnx"], b"graph", "plain"),
        ("openvino", "cpu", ["vision.loop.onnx"], b"graph", "plain"),
    ],
)
def test_norms_come_from_the_graph_that_a_cpu_runs_frame_by_frame(monkeypatch, tmp_path, backend, device, files, norms, opened):
    bundle = bundle_of(*files, path=tmp_path)
    asked, placed = EngineOptions(threads=3), EngineOptions(device=device)

    def place(*arguments):
        assert arguments == (bundle, backend, asked)
        return SimpleNamespace(options=placed)

    monkeypatch.setattr(module, "place", place)
    monkeypatch.setattr(module, "_with_norms", lambda bundle: norms)
    monkeypatch.setattr(module.OnnxEngine, "load", lambda *arguments, data: ("with norms", *arguments, data))
    monkeypatch.setattr(module, "VisionEngine", lambda engine: engine)
    monkeypatch.setattr(module, "open_vision", lambda *arguments: ("plain", *arguments))
    got = module.open_with_norms(bundle, backend, asked)
    expected = {"with norms": (b"graph", placed, tmp_path), "plain": (bundle, backend, placed)}
    assert got == (opened, *expected[opened])


def test_without_onnx_there_are_none(bundle, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnx", None)
    assert module._with_norms(bundle(PROJECTOR, COMPRESSION)) is None
