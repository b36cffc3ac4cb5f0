"""The ONNX Runtime engine: inputs are checked before a run, and every refusal names what was wrong."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
from refusal import naming

from runtime.bundle import VISION
from runtime.core.errors import EngineError
from runtime.engine import EngineOptions, open_engine
from runtime.engine.onnx import OnnxEngine, has_cuda_provider


@pytest.fixture(scope="module")
def engine(bundle):
    return open_engine(bundle, VISION, "onnx")


def _pixels(**changes) -> np.ndarray:
    return np.zeros(changes.get("shape", (16, 3, 126, 126)), changes.get("dtype", np.float32))


def test_the_specs_are_the_graphs(engine):
    assert [(s.name, s.shape) for s in engine.inputs] == [("pixel_values", (16, 3, 126, 126))]
    assert [(s.name, s.shape) for s in engine.outputs] == [("visual_tokens", (257, 128))]


@pytest.mark.parametrize(
    ("feeds", "message"),
    [
        ({}, r"inputs are \[\], the graph takes \['pixel_values'\]"),
        ({"pixels": _pixels()}, r"inputs are \['pixels'\]"),
        ({"pixel_values": _pixels(dtype=np.float16)}, "pixel_values is float16, the graph takes float32"),
        ({"pixel_values": _pixels(shape=(15, 3, 126, 126))}, r"has shape \[15, 3, 126, 126\], the graph takes \[16, 3, 126, 126\]"),
        ({"pixel_values": _pixels(shape=(16, 3, 126))}, "has shape"),
    ],
)
def test_feeds_that_do_not_fit_are_refused(engine, feeds, message):
    with pytest.raises(EngineError, match=message):
        engine.run(feeds)


def test_a_dimension_of_one_name_must_have_one_size(bundle):
    decoder = open_engine(bundle, "llm/decoder", "onnx")
    state = decoder.new_state({s.name: s.name.replace("past_key_values", "present") for s in decoder.inputs if "past" in s.name})
    feeds = {
        "inputs_embeds": np.zeros((1, 4, 128), np.float32),
        "position_ids": np.zeros((1, 3), np.int64),
        "attention_mask": np.ones((1, 4), np.int64),
    }
    with pytest.raises(EngineError, match="position_ids has shape"):
        decoder.run(feeds, state)


def test_a_cpu_runs_the_looped_graph_and_both_agree(bundle, engine):
    batched = OnnxEngine.load(bundle.model(VISION))
    assert "Loop" in {node.op_type for node in _nodes(bundle.path / "vision.loop.onnx")}
    assert "Loop" not in {node.op_type for node in _nodes(bundle.path / "vision.onnx")}
    pixels = np.random.default_rng(0).uniform(-1, 1, (16, 3, 126, 126)).astype(np.float32)
    expected = batched.run({"pixel_values": pixels})["visual_tokens"]
    np.testing.assert_allclose(engine.run({"pixel_values": pixels})["visual_tokens"], expected, rtol=1e-4, atol=1e-4)


def _nodes(path):
    import onnx

    return onnx.load(str(path), load_external_data=False).graph.node


def test_a_file_that_is_no_model_is_one_clear_error(tmp_path):
    (tmp_path / "vision.onnx").write_bytes(b"not a model")
    with pytest.raises(EngineError, match="can't load"):
        OnnxEngine.load(tmp_path / "vision.onnx")


def test_an_input_of_a_type_that_is_never_fed_is_refused(tmp_path):
    import onnx

    graph = onnx.parser.parse_graph("g (int8[2] x) => (int8[2] y) { y = Identity(x) }")
    onnx.save(onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 20)], ir_version=10), tmp_path / "m.onnx")
    with pytest.raises(EngineError, match=r"^x is tensor\(int8\), "):
        OnnxEngine.load(tmp_path / "m.onnx")


def test_cuda_without_a_gpu_wheel_names_the_way_out(bundle):
    import onnxruntime

    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("this onnxruntime has the CUDA provider")
    with pytest.raises(EngineError, match=r"pip uninstall onnxruntime.*\[gpu\]"):
        open_engine(bundle, VISION, "onnx", EngineOptions(device="cuda"))
    with pytest.raises(EngineError, match=naming("vision", "cuda")):
        open_engine(bundle, VISION, "auto", EngineOptions(device="cuda"))


def test_cuda_is_asked_for_float32_arithmetic(bundle, monkeypatch):
    import onnxruntime

    asked = []

    class Session:
        def __init__(self, source, settings, providers):
            asked.extend(providers)

        def get_providers(self):
            return ["CPUExecutionProvider"]

    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider", "CPUExecutionProvider"])
    monkeypatch.setattr(onnxruntime, "InferenceSession", Session)
    monkeypatch.setattr(OnnxEngine, "unavailable", staticmethod(lambda device: None))
    with pytest.raises(EngineError, match="fell back to the CPU"):
        open_engine(bundle, VISION, "onnx", EngineOptions(device="cuda"))
    assert asked == [
        ("CUDAExecutionProvider", {"use_tf32": "0", "arena_extend_strategy": "kSameAsRequested"}),
        "CPUExecutionProvider",
    ]


def test_an_unknown_backend_names_the_nearest(bundle):
    with pytest.raises(EngineError, match='did you mean "onnx"'):
        open_engine(bundle, VISION, "onx")


class TestSession:
    @pytest.fixture
    def asked(self, monkeypatch) -> list:
        """(source, settings, providers) of each session, on a stand-in for ONNX Runtime's."""
        import onnxruntime

        asked: list = []

        class Settings(SimpleNamespace):
            def add_session_config_entry(self, key: str, value: str) -> None:
                setattr(self, key, value)

        class Session:
            def __init__(self, source, settings, providers):
                asked.append((source, vars(settings), providers))

            def get_inputs(self):
                return []

            get_outputs = get_inputs

        monkeypatch.setattr(onnxruntime, "SessionOptions", Settings)
        monkeypatch.setattr(onnxruntime, "InferenceSession", Session)
        return asked

    @pytest.mark.parametrize(
        ("model", "more", "source", "settings"),
        [
            (Path("a/m.onnx"), {}, "a/m.onnx", {"intra_op_num_threads": 0}),
            (b"model", {"options": EngineOptions(threads=3)}, b"model", {"intra_op_num_threads": 3}),
            (
                b"model",
                {"data": Path("a")},
                b"model",
                {"intra_op_num_threads": 0, "session.model_external_initializers_file_folder_path": "a"},
            ),
        ],
    )
    def test_a_cpu_is_told_threads_and_where_weights_lie(self, asked, model, more, source, settings):
        engine = OnnxEngine.load(model, **more)
        assert asked == [(source, {"log_severity_level": 3} | settings, ["CPUExecutionProvider"])]
        assert (engine.device, engine.inputs, engine.outputs) == ("cpu", (), ())

    @pytest.mark.parametrize(("op_type", "exact"), [("QuantizeLinear", True), ("DequantizeLinear", False)])
    @pytest.mark.parametrize("in_a_file", [True, False])
    def test_only_a_graph_that_quantizes_activations_widens_int8_products(self, asked, tmp_path, op_type, exact, in_a_file):
        """ONNX Runtime 1.31 breaks weights that alone are int8 where it widens."""
        node = onnx.helper.make_node(op_type, ["x", "scale"], ["y"], "QuantizeLinear")
        model = onnx.helper.make_model(onnx.helper.make_graph([node], "QuantizeLinear", [], []))
        onnx.save(model, tmp_path / "m.onnx")
        OnnxEngine.load(tmp_path / "m.onnx" if in_a_file else model.SerializeToString())
        assert ("session.x64quantprecision" in asked[0][1]) is exact

    def test_a_graph_may_run_as_it_is_written(self, asked):
        import onnxruntime

        OnnxEngine.load(b"model", as_written=True)
        assert asked[0][1]["graph_optimization_level"] == onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL


def test_bytes_that_are_no_model_have_no_name():
    with pytest.raises(EngineError, match=naming("ONNX Runtime", "the model")):
        OnnxEngine.load(b"not a model")


def test_a_device_of_another_backend_is_refused_by_name():
    assert naming("cpu", "cuda", "npu", "--backend openvino").match(OnnxEngine.unavailable("npu"))
    assert OnnxEngine.unavailable("cpu") is None
    with pytest.raises(EngineError, match=naming("backend onnx", "gpu")):
        OnnxEngine.load(b"", EngineOptions(device="gpu"))


@pytest.mark.parametrize("has_openvino", [False, True])
def test_without_onnxruntime_what_brings_it_is_named_and_what_is_there(monkeypatch, has_openvino):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: (name == "openvino" and has_openvino) or None)
    said = OnnxEngine.unavailable("cpu")
    assert 'the onnx backend needs the package "onnxruntime"' in said and 'pip install "st-gridpool[runtime]"' in said
    assert said.endswith("; or pass --backend openvino, which is installed") == has_openvino
    assert not has_cuda_provider()


@pytest.mark.parametrize(
    ("providers", "has"), [(["CPUExecutionProvider"], False), (["CUDAExecutionProvider", "CPUExecutionProvider"], True)]
)
def test_a_wheel_for_gpus_has_the_provider(monkeypatch, providers, has):
    import onnxruntime

    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: providers)
    assert has_cuda_provider() is has
