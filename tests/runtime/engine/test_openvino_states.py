"""OpenVINO and a cache that only its rows leave: on a graph that is a cache alone, and what is opened, bound and refused."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
from cache_graph import PAIRS, feeds, save_cache_graph
from manifests import bundle_of
from refusal import naming

from runtime.bundle.manifest import LLMInfo

pytest.importorskip("openvino")
from runtime.core.errors import EngineError, UserError
from runtime.engine import EngineOptions, openvino
from runtime.engine.openvino import OpenVINOEngine, OpenVINOState

ROWS = np.arange(1, 13, dtype=np.float32).reshape(3, 2, 2)
NAME = "past_key_values.0.key"


@pytest.fixture(scope="module")
def batched(tmp_path_factory) -> OpenVINOEngine:
    """Its cache has 40 rows: 32 are read at first."""
    return OpenVINOEngine.load(save_cache_graph(tmp_path_factory.mktemp("cache") / "m.onnx", 40), EngineOptions(threads=1))


def test_the_specs_name_what_is_open_and_the_batch(batched):
    specs = {spec.name: (spec.dtype, spec.shape) for spec in (*batched.inputs, *batched.outputs)}
    assert specs["inputs_embeds"] == (np.float32, ("B", "inputs_embeds.1", 2)) and specs[NAME] == (np.float32, ("B", 1, 40, 2))
    assert specs["position_ids"][0] == np.int64 and [spec.name for spec in batched.outputs] == ["logits", "present.0.key"]
    assert (batched.backend, batched.device, batched.takes_bf16) == ("openvino", "cpu", True)


def test_rows_are_written_into_the_buffers_and_read_from_them(batched):
    state, other = batched.new_state(PAIRS), batched.new_state(PAIRS)
    assert (state.pairs, state.entries, list(state.buffers)) == (PAIRS, None, [NAME]) and state.buffers[NAME].shape == (1, 1, 40, 2)
    first = batched.run(feeds(ROWS[:1], [[0, 1]], 2), state)
    expected = np.zeros((1, 1, 40, 2), np.float32)
    expected[0, 0, :2] = ROWS[0]
    assert set(first) == {"logits"} and first["logits"].shape == (1, 1, 32, 2)
    np.testing.assert_array_equal(first["logits"], 2 * expected[:, :, :32])
    np.testing.assert_array_equal(state.buffers[NAME], expected)
    second = batched.run(feeds(ROWS[1:2, :1], [[39]], 40), state)["logits"]
    expected[0, 0, 39] = ROWS[1, 0]
    np.testing.assert_array_equal(second, 2 * expected)
    np.testing.assert_array_equal(state.buffers[NAME], expected)
    assert not other.buffers[NAME].any() and first["logits"][0, 0, 0, 0] == 2  # a result is the caller's own


def test_a_run_may_see_some_entries_of_a_batch(batched):
    """The last of them sits the step out: its row lies behind those that are read, and what is read of it does not matter."""
    state = batched.new_state(PAIRS, batch=4)
    part = state.batch_slice(1, 3)
    assert part == OpenVINOState(PAIRS, state.request, state.buffers, slice(1, 3))
    got = batched.run(feeds(ROWS[:2, :1], [[3], [35]], 4), part)["logits"]
    expected = np.zeros((4, 1, 40, 2), np.float32)
    expected[1, 0, 3], expected[2, 0, 35] = ROWS[0, 0], ROWS[1, 0]
    np.testing.assert_array_equal(got[0], 2 * expected[1, :, :32])
    np.testing.assert_array_equal(state.buffers[NAME], expected)
    got = batched.run(feeds(ROWS[:1], [[30, 31]], 32), state.batch_slice(3, 4))["logits"]
    expected[3, 0, 30:32] = ROWS[0]
    np.testing.assert_array_equal(got, 2 * expected[3:, :, :32])
    np.testing.assert_array_equal(state.buffers[NAME], expected)


def test_a_row_that_is_read_is_that_row_though_another_entry_s_lies_behind(batched):
    state = batched.new_state(PAIRS, batch=2)
    got = batched.run(feeds(ROWS[:2, :1], [[30], [31]], 32), state)["logits"]
    assert got[0, 0, 29:].tolist() == [[0, 0], [2, 4], [0, 0]] and got[1, 0, 29:].tolist() == [[0, 0], [0, 0], [10, 12]]


def test_without_a_state_the_rows_come_out(batched):
    """And the mask is as long as it was given."""
    cache = np.full((1, 1, 40, 2), 7, np.float32)
    got = batched.run(feeds(ROWS[:1], [[1, 2]], 3) | {NAME: cache})
    assert got["logits"].tolist() == [[[[14, 14], [2, 4], [6, 8]]]]
    assert got["present.0.key"].tolist() == [[ROWS[0].tolist()]] and (cache == 7).all()


def test_a_graph_for_one_conversation_does_the_same(tmp_path):
    engine = OpenVINOEngine.load(save_cache_graph(tmp_path / "m.onnx", 8, batch=1))
    state = engine.new_state(PAIRS)
    assert engine.run(feeds(ROWS[:1], [[5, 6]], 8), state)["logits"][0, 0, 5:].tolist() == [[2, 4], [6, 8], [0, 0]]
    assert state.buffers[NAME][0, 0, 4:].tolist() == [[0, 0], [1, 2], [3, 4], [0, 0]]
    with pytest.raises(EngineError, match=naming("attention_mask", "[2, 8]", "[1, 'attention_mask.1']")):
        engine.run(feeds(ROWS[:1], [[5, 6]], 8) | {"attention_mask": np.ones((2, 8), np.int64)}, state)


@pytest.mark.parametrize(("bf16", "stored", "held"), [(False, "FLOAT16", np.float32), (True, "FLOAT", np.float16)])
def test_a_cache_is_held_in_what_a_cpu_computes_in(tmp_path, bf16, stored, held):
    """bf16 as the bits of float16, of the same width; what is fed stays as the graph says."""
    path = save_cache_graph(tmp_path / "m.onnx", 8, 1, getattr(onnx.TensorProto, stored))
    engine = OpenVINOEngine.load(path, EngineOptions(bf16=bf16))
    state, rows = engine.new_state(PAIRS), ROWS[:1].astype(np.float16 if stored == "FLOAT16" else np.float32)
    assert state.buffers[NAME].dtype == held and {spec.name: spec.dtype for spec in engine.outputs}["logits"] == rows.dtype
    np.testing.assert_array_equal(engine.run(feeds(rows, [[1, 2]], 3), state)["logits"][:, :, 1:3], 2 * rows[:, None])
    bits = state.buffers[NAME].view(np.uint16).astype(np.uint32) << 16 if bf16 else state.buffers[NAME].view(np.uint32)
    assert bits.view(np.float32)[0, 0, :3].tolist() == [[0, 0], [1, 2], [3, 4]]


@pytest.mark.parametrize("attention", ["standard", "flash"])
@pytest.mark.parametrize(
    ("graph", "runs"), [("vision", True), ("vision.loop", True), ("llm/decoder", False), ("llm/decoder.batch", False)]
)
def test_a_decoder_with_other_than_portable_attention_is_refused(monkeypatch, graph, runs, attention):
    monkeypatch.setattr(OpenVINOEngine, "load", lambda model, options: (model, options.device))
    portable, standard = (bundle_of(f"{graph}.onnx", llm=LLMInfo(1, 1, 1, attention=kind)) for kind in ("portable", attention))
    options = EngineOptions(device="cpu")
    opened = (Path("b") / f"{graph}.onnx", "cpu")
    assert OpenVINOEngine.open(portable, graph, options) == opened
    if runs:
        assert OpenVINOEngine.open(standard, graph, options) == opened
    else:
        with pytest.raises(EngineError, match="portable"):
            OpenVINOEngine.open(standard, graph, options)


@pytest.mark.parametrize(
    ("devices", "device", "said"),
    [
        (["CPU"], "cpu", None),
        (["CPU", "GPU.0", "GPU.1"], "gpu", None),
        (["CPU", "GPU.0", "GPU.1"], "gpu.1", None),
        (["CPU", "GPU.1"], "gpu", "finds no device gpu here, but cpu, gpu.1"),
        (["CPU"], "npu", "finds no device npu here, but cpu"),
    ],
)
def test_which_devices_can_be_used(monkeypatch, devices, device, said):
    monkeypatch.setattr(openvino, "core", lambda: SimpleNamespace(available_devices=devices))
    got = OpenVINOEngine.unavailable(device)
    assert got is None if said is None else said in got


def test_a_graph_with_functions_is_read_with_its_weights(tmp_path):
    text = """<ir_version: 10, opset_import: ["" : 20, "own" : 1]>
    g (float[2] x) => (float[2] y) <float[2] w = {3.0, 4.0}> { y = own.Times(x, w) }
    <domain: "own", opset_import: ["" : 20]> Times (a, b) => (c) { c = Mul(a, b) }"""
    model = onnx.parser.parse_model(text)
    model.graph.initializer[0].CopyFrom(onnx.numpy_helper.from_array(np.float32([3, 4]), "w"))
    onnx.save_model(model, str(tmp_path / "m.onnx"), save_as_external_data=True, location="m.data", size_threshold=0)
    assert (tmp_path / "m.data").exists()
    inlined = onnx.load_from_string(openvino._readable(tmp_path / "m.onnx"))
    assert [node.op_type for node in inlined.graph.node] == ["Mul"] and not inlined.functions
    assert onnx.numpy_helper.to_array(inlined.graph.initializer[0]).tolist() == [3, 4]
    plain = save_cache_graph(tmp_path / "plain.onnx", 8)
    assert openvino._readable(plain) == plain
    engine = OpenVINOEngine.load(tmp_path / "m.onnx")
    assert engine.run({"x": np.float32([2, 5])})["y"].tolist() == [6, 20]


def test_what_can_t_be_read_or_inlined_is_said(tmp_path, monkeypatch):
    def too_large(self) -> bytes:
        raise ValueError("2 GB")

    text = """<ir_version: 10, opset_import: ["" : 20, "own" : 1]>
    g (float[2] x) => (float[2] y) { y = own.Same(x) }
    <domain: "own", opset_import: ["" : 20]> Same (a) => (b) { b = Identity(a) }"""
    onnx.save(onnx.parser.parse_model(text), str(tmp_path / "m.onnx"))
    inlined = SimpleNamespace(SerializeToString=lambda: too_large(None))
    monkeypatch.setattr("onnx.inliner.inline_local_functions", lambda model: inlined)
    monkeypatch.setattr(onnx, "load_external_data_for_model", lambda model, directory: None)
    with pytest.raises(EngineError, match=r"m\.onnx .*--split"):
        openvino._readable(tmp_path / "m.onnx")
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(UserError, match=r'"onnx".*\[runtime\]'):
        openvino._readable(tmp_path / "m.onnx")


def test_there_is_one_core_and_large_blocks_are_apart_before_it(monkeypatch):
    made = []
    monkeypatch.setitem(sys.modules, "openvino", SimpleNamespace(Core=lambda: made.append("core") or SimpleNamespace()))
    monkeypatch.setattr(openvino, "lower_mmap_threshold", lambda: made.append("apart"))
    openvino.core.__wrapped__()
    assert made == ["apart", "core"]
    monkeypatch.undo()
    assert openvino.core() is openvino.core()


def test_a_closed_engine_holds_no_model():
    port = SimpleNamespace(create_infer_request=object, inputs=[], outputs=[])
    engine = OpenVINOEngine(port, "gpu")
    assert engine.device == "gpu" and (engine.inputs, engine.outputs) == ((), ())
    engine.close()
    assert not hasattr(engine, "_compiled") and not hasattr(engine, "_request")


def test_what_fails_inside_is_an_engine_error(batched, monkeypatch):
    def fail(**_: object) -> None:
        raise RuntimeError("Exception from src\n  out of memory\n")

    state = batched.new_state(PAIRS)
    broken = OpenVINOState(PAIRS, SimpleNamespace(set_tensor=lambda *_: None, infer=fail), state.buffers)
    with pytest.raises(EngineError, match=naming("OpenVINO", "cpu", "out of memory")):
        batched.run(feeds(ROWS[:1], [[0, 1]], 2), broken)


def test_outputs_are_not_copied_twice(batched):
    """Asked for so, OpenVINO hands its own buffers out."""
    told, state = [], batched.new_state(PAIRS)
    request = SimpleNamespace(
        set_tensor=state.request.set_tensor,
        get_tensor=state.request.get_tensor,
        infer=lambda **options: told.append(options) or state.request.infer(**options),
    )
    batched.run(feeds(ROWS[:1], [[0, 1]], 2), OpenVINOState(PAIRS, request, state.buffers))
    assert told == [{"share_outputs": True}]
