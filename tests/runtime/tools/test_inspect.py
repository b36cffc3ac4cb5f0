from __future__ import annotations

import json
import shutil
import sys
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
from cpp_libraries import list_file
from onnx import TensorProto, helper, numpy_helper

from runtime.bundle import Bundle
from runtime.bundle.manifest import Checkpoint, Compression
from runtime.llm.decoder import LocalDecoder
from runtime.llm.slots import SlotDecoder
from runtime.tools import inspect, liveness
from runtime.tools.memory import GraphMemory, bundle_memory, kv_cache_bytes


def test_the_token_budget_of_a_clip(bundle):
    budget = inspect.inspect(bundle).budget
    assert budget["patch_tokens"] == 16 * 9 * 9 and budget["visual_tokens"] == 16 * 4 * 4 + 1 and budget["ratio"] == 5.04
    assert budget["prompt_room"] == budget["max_context"] - 257


def test_the_cache_is_as_large_as_the_engine_makes_it(bundle):
    decoder = LocalDecoder.open(bundle, "onnx")
    state = decoder.engine.new_state(decoder.cache_pairs)
    assert inspect.inspect(bundle).memory["KV cache"] == sum(value.numpy().nbytes for value in state.values.values())


def test_a_server_is_said_to_hold_a_cache_for_each_answer(bundle):
    slots = SlotDecoder.open(bundle, 8, "onnx")
    held = sum(value.numpy().nbytes for value in slots._states[0].values.values())
    report = inspect.inspect(bundle, batch=8)
    assert report.serve["KV caches of 8 answers"] == held
    assert "KV caches of 8 answers 25.2 MB" in inspect.text(report)


def test_weights_are_the_bytes_of_the_initialisers_and_the_total_is_the_sum(bundle):
    memory = inspect.inspect(bundle).memory
    for graph in ("vision", "llm/decoder"):
        tensors = onnx.load(str(bundle.model(graph))).graph.initializer
        assert memory[f"{graph} weights"] == sum(numpy_helper.to_array(tensor).nbytes for tensor in tensors)
    looped = memory["vision activations, frame by frame on a CPU"]
    longer = memory["llm/decoder activations, 1,024 positions at a time on a GPU"]
    parts = {part: count for part, count in memory.items() if not any(word in part for word in ("total", "CPU", "GPU"))}
    assert memory["total on a GPU"] == sum(parts.values()) - parts["llm/decoder activations"] + longer
    assert memory["total on a CPU"] == sum(parts.values()) - parts["vision activations"] + looped
    pixels = 16 * 3 * 126 * 126 * 4
    assert min(looped, parts["vision activations"]) > pixels  # what is fed is there all the time


def test_the_size_of_every_tensor_of_the_shipped_graphs_is_known(bundle):
    report = inspect.inspect(bundle)
    assert report.notes == []
    # at least the scores of one prefill chunk against the whole cache: heads * 256 * max_context, before and after softmax
    heads = 4
    assert report.memory["llm/decoder activations"] >= 2 * heads * 256 * bundle.max_context * 4
    on_gpu = report.memory["llm/decoder activations, 1,024 positions at a time on a GPU"]
    assert on_gpu >= 2 * heads * 1024 * bundle.max_context * 4
    # at least the patch tokens in the hidden size of the MLP's input
    assert report.memory["vision activations"] >= 1296 * bundle.manifest.hidden_size * 4


def test_operators_are_counted(bundle):
    graphs = {graph.graph: graph.operators for graph in inspect.inspect(bundle).graphs}
    nodes = onnx.load(str(bundle.model("vision"))).graph.node
    assert sum(graphs["vision"].values()) == len(nodes)
    assert graphs["vision"]["Softmax"] == sum(node.op_type == "Softmax" for node in nodes)


def test_the_peak_is_the_largest_sum_of_living_tensors(tmp_path):
    """x [10] -> a [100] -> b, a view of a -> c [1] -> y [1]: most lives when c is written from b while x is still the caller's."""
    nodes = [
        helper.make_node("Expand", ["x", "hundred"], ["a"], "expand"),
        helper.make_node("Reshape", ["a", "ten_by_ten"], ["b"], "view"),
        helper.make_node("ReduceMean", ["b", "axis"], ["c"], "mean", keepdims=0),
        helper.make_node("Add", ["c", "x10"], ["y"], "add"),
    ]
    weights = {
        "hundred": np.array([10, 10]),
        "ten_by_ten": np.array([100]),
        "axis": np.array([0]),
        "x10": np.ones(1, np.float32),
    }
    peak = liveness.peak(liveness.load(_save(tmp_path, nodes, {"x": [1, 10]}, {"y": [1]}, weights), {}))
    assert (peak.bytes, peak.node, peak.unknown) == (4 * (10 + 100 + 1), "mean", 0)


def test_a_cache_that_is_written_in_place_is_not_counted_twice(tmp_path):
    nodes = [helper.make_node("ScatterElements", ["past", "at", "new"], ["present"], "update", axis=0)]
    path = _save(tmp_path, nodes, {"past": [1000], "new": [1]}, {"present": [1000]}, {"at": np.array([3])})
    model = liveness.load(path, {})
    assert liveness.peak(model, {"past"}).bytes == 4
    assert liveness.peak(model).bytes == 4 * (1000 + 1 + 1000)


def test_dynamic_axes_take_the_size_that_is_given_also_through_shape_arithmetic(tmp_path):
    nodes = [
        helper.make_node("Shape", ["x"], ["shape"], "shape"),
        helper.make_node("Squeeze", ["shape"], ["length"], "squeeze"),
        helper.make_node("Range", ["zero", "length", "one"], ["positions"], "range"),
        helper.make_node("Unsqueeze", ["positions", "axis"], ["rows"], "rows"),
        helper.make_node("Equal", ["positions", "rows"], ["square"], "square"),
        helper.make_node("Cast", ["square"], ["y"], "cast", to=TensorProto.FLOAT),
    ]
    weights = {"zero": np.array(0), "one": np.array(1), "axis": np.array([1])}
    path = _save(tmp_path, nodes, {"x": ["S"]}, {"y": ["S", "S"]}, weights)
    peak = liveness.peak(liveness.load(path, {"x": {0: 64}}))
    assert (peak.bytes, peak.unknown) == (4 * 64 + 64 * 64 + 4 * 64 * 64, 0)
    assert liveness.peak(liveness.load(path, {})).unknown > 0


def test_an_output_that_is_as_long_as_an_input_has_a_size_whatever_makes_it(tmp_path):
    nodes = [helper.make_node("Unknown", ["x"], ["y"], "own", domain="gridpool")]
    path = _save(tmp_path, nodes, {"x": ["S"]}, {"y": ["S", 2]}, {})
    peak = liveness.peak(liveness.load(path, {"x": {0: 64}}))
    assert (peak.bytes, peak.unknown) == (4 * 64 + 4 * 64 * 2, 0)


def test_sizes_that_a_node_takes_apart_keep_all_their_parts(tmp_path):
    """What shape inference finds by itself, from a node of two outputs that are both read: 6 rows of 4."""
    nodes = [
        helper.make_node("Split", ["both"], ["rows", "columns"], "split", num_outputs=2),
        helper.make_node("Concat", ["columns", "rows"], ["turned"], "turn", axis=0),
        helper.make_node("Reshape", ["x", "turned"], ["y"], "reshape"),
    ]
    path = _save(tmp_path, nodes, {"x": [24]}, {"y": ["A", "B"]}, {"both": np.array([6, 4])})
    model = liveness.load(path, {})
    onnx.checker.check_model(model)
    assert {name for node in model.graph.node for name in node.output} >= {"rows", "columns", "turned", "y"}


def test_what_is_computed_of_shapes_alone_is_a_constant_and_nothing_else_is(tmp_path):
    """x is [2, 3, 5], z has an axis of no known length."""
    nodes = [
        helper.make_node("Shape", ["x"], ["whole"], "whole"),
        helper.make_node("Shape", ["x"], ["middle"], "middle", start=1, end=2),
        helper.make_node("Shape", ["x"], ["rest"], "rest", start=-2),
        helper.make_node("Mul", ["whole", "factor"], ["product"], "product"),
        helper.make_node("Shape", ["z"], ["unknown"], "unknown"),
        helper.make_node("Add", ["unknown", "factor"], ["of_unknown"], "of_unknown"),
        helper.make_node("Cast", ["whole"], ["real"], "real", to=TensorProto.FLOAT),
        helper.make_node("Range", ["zero", "many", "one"], ["long"], "long"),
        helper.make_node("Range", ["zero", "most", "one"], ["longest"], "longest"),
        helper.make_node("Neg", ["whole"], ["other"], "other", domain="gridpool"),
        helper.make_node("ReduceSum", ["x"], ["y"], "y"),
    ]
    weights = {
        "factor": np.array([10]),
        "zero": np.array(0),
        "one": np.array(1),
        "many": np.array(65_537),
        "most": np.array(65_536),
    }
    body = [helper.make_node("Relu", ["v"], ["w"])]
    function = helper.make_function("gridpool", "Unused", ["v"], ["w"], body, [helper.make_opsetid("", 18)])
    path = _save(tmp_path, nodes, {"x": [2, 3, 5], "z": [4, "S"]}, {"y": [1, 1, 1]}, weights, [function])
    model = onnx.shape_inference.infer_shapes(onnx.load(path), data_prop=True)
    folded = liveness._fold_sizes(model)
    constants = {n.output[0]: numpy_helper.to_array(n.attribute[0].t) for n in model.graph.node if n.op_type == "Constant"}
    assert set(constants) == {"whole", "middle", "rest", "product", "longest"} and folded == 5
    assert [constants[name].tolist() for name in ("whole", "middle", "rest", "product")] == [[2, 3, 5], [3], [3, 5], [20, 30, 50]]
    assert [node.name for node in model.graph.node] == [node.name for node in nodes]
    assert liveness._fold_sizes(model) == 0


def test_a_constant_node_of_not_too_many_whole_numbers_may_be_a_size(tmp_path):
    held = {
        "int64": np.array([3]),
        "int32": np.array([3], np.int32),
        "int16": np.array([3], np.int16),
        "most": np.zeros(65_536, np.int64),
        "more": np.zeros(65_537, np.int64),
    }
    nodes = [helper.make_node("Constant", [], [name], value=numpy_helper.from_array(value)) for name, value in held.items()]
    nodes.append(helper.make_node("Constant", [], ["ints"], value_ints=[3]))
    nodes += [helper.make_node("Add", [name, name], [f"{name} twice"]) for name in (*held, "ints")]
    nodes.append(helper.make_node("Neg", ["x"], ["y"]))
    model = onnx.shape_inference.infer_shapes(onnx.load(_save(tmp_path, nodes, {"x": [1]}, {"y": [1]}, {})), data_prop=True)
    assert liveness._fold_sizes(model) == 3
    folded = {
        n.output[0]: numpy_helper.to_array(n.attribute[0].t)
        for n in model.graph.node
        if n.output[0].endswith("twice") and n.op_type != "Add"
    }
    assert set(folded) == {"int64 twice", "int32 twice", "most twice"}
    assert folded["int64 twice"].tolist() == folded["int32 twice"].tolist() == [6] and folded["most twice"].size == 65_536


def test_what_would_be_large_is_not_computed(tmp_path, monkeypatch):
    """A manifest's context of 2**31 - 1 positions is a Range of 16 GiB."""
    nodes = [
        helper.make_node("Range", ["zero", "end", "one"], ["all"]),
        helper.make_node("LessOrEqual", ["across", "down"], ["square"]),
        helper.make_node("Neg", ["x"], ["y"]),
    ]
    across, down = np.arange(300)[None], np.arange(300)[:, None]  # 90,000 truth values
    weights = {"zero": np.array(0), "end": np.array(2**31 - 1), "one": np.array(1), "across": across, "down": down}
    path = _save(tmp_path, nodes, {"x": [1]}, {"y": [1]}, weights)
    monkeypatch.setattr(onnx.reference, "ReferenceEvaluator", None)
    assert [node.op_type for node in liveness.load(path, {}).graph.node] == ["Range", "LessOrEqual", "Neg"]


@pytest.mark.parametrize(
    ("kind", "dims", "size"),
    [
        ("FLOAT", [2, 3], 24),
        ("FLOAT16", [2, 3], 12),
        ("INT64", [], 8),
        ("INT8", [5], 5),
        ("INT4", [5], 3),
        ("UINT4", [2, 2], 2),
        ("BOOL", [3], 3),
    ],
)
def test_bytes_of_a_tensor(kind, dims, size):
    assert liveness._bytes(getattr(TensorProto, kind), dims) == size
    assert liveness._value_bytes(helper.make_tensor_value_info("x", getattr(TensorProto, kind), dims)) == size
    assert liveness._value_bytes(helper.make_tensor_value_info("x", getattr(TensorProto, kind), ["S", *dims])) is None
    assert liveness._value_bytes(helper.make_tensor_value_info("x", getattr(TensorProto, kind), None)) is None


def test_local_functions_are_counted_by_what_is_inside_them(tmp_path):
    body = [helper.make_node("Expand", ["v", "to"], ["wide"]), helper.make_node("ReduceMean", ["wide"], ["m"], keepdims=1)]
    function = helper.make_function("gridpool", "Pool", ["v", "to"], ["m"], body, [helper.make_opsetid("", 18)])
    nodes = [helper.make_node("Pool", ["x", "to"], ["y"], "pool", domain="gridpool")]
    path = _save(tmp_path, nodes, {"x": [1]}, {"y": [1]}, {"to": np.array([500])}, [function])
    assert liveness.peak(liveness.load(path, {})).bytes >= 4 * 500
    assert liveness.operators(path) == {"gridpool.Pool": 1}


def test_a_loop_holds_one_pass_of_its_body_at_a_time(tmp_path):
    value = helper.make_tensor_value_info
    body = helper.make_graph(
        [
            helper.make_node("Gather", ["x", "i"], ["one"], axis=0),  # [10]
            helper.make_node("Expand", ["one", "to"], ["wide"]),  # [50, 10]
            helper.make_node("ReduceMean", ["wide"], ["mean"], keepdims=0),
            helper.make_node("Identity", ["go"], ["on"]),
        ],
        "body",
        [value("i", TensorProto.INT64, []), value("go", TensorProto.BOOL, [])],
        [value("on", TensorProto.BOOL, []), value("mean", TensorProto.FLOAT, [])],
    )
    nodes = [
        helper.make_node("Loop", ["eight", "true"], ["means"], "loop", body=body),
        helper.make_node("Reshape", ["means", "whole"], ["y"], "view"),
    ]
    weights = {"eight": np.array(8), "true": np.array(True), "to": np.array([50, 10]), "whole": np.array([8])}
    peak = liveness.peak(liveness.load(_save(tmp_path, nodes, {"x": [8, 10]}, {"y": [8]}, weights), {}))
    # x and the loop's eight means outside, one row and its 50 copies inside; counter and condition are 9 bytes
    assert 4 * (80 + 8 + 10 + 500) <= peak.bytes <= 4 * (80 + 8 + 10 + 500) + 16
    assert (peak.node, peak.unknown) == ("loop", 0)


def test_engines_are_listed_and_a_stale_one_is_called_so(bundle, tmp_path):
    here = Bundle(tmp_path, bundle.manifest)
    for name, digest in (("a", bundle.sha256("vision")), ("b", "0" * 64)):
        directory = tmp_path / "engines" / name
        directory.mkdir(parents=True)
        record = {"schema_version": 1, "backend": "tensorrt-rtx", "version": "1.7", "target": "any", "precision": "fp32"}
        graphs = {"vision": {"size": 7, "onnx_sha256": digest, "seconds": 1.0, "inputs": {}}}
        (directory / "build.json").write_text(json.dumps(record | {"graphs": graphs}))
    (tmp_path / "engines" / "c").mkdir()
    (tmp_path / "engines" / "c" / "build.json").write_text("{")
    found = inspect._built_engines(here)
    assert [(engine.directory, engine.stale) for engine in found] == [("engines/a", ()), ("engines/b", ("vision",))]
    assert found[0].graphs == {"vision": 7} and found[0].target == "any"


def test_the_report_is_json_and_text(bundle):
    report = inspect.inspect(bundle)
    assert json.loads(json.dumps(report.as_dict(), allow_nan=False))["frames"] == 16
    shown = inspect.text(report)
    for expected in ("1,296 patch tokens → 257 visual tokens", "(st-gridpool), after-projector", "KV cache", "none built"):
        assert expected in shown
    assert all(name in shown for name in bundle.manifest.files)


def test_a_bundle_without_an_llm_has_no_context(selecting_bundle):
    report = inspect.inspect(selecting_bundle)
    assert "max_context" not in report.budget and "KV cache" not in report.memory
    assert inspect.text(report)


def test_without_onnx_the_weights_are_those_of_the_files_and_the_rest_says_so(bundle, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnx", None)
    report = inspect.inspect(bundle)
    assert report.memory["vision weights"] == bundle.manifest.files["vision.onnx"].size
    assert any("not counted" in note for note in report.notes) and "not counted" in inspect.text(report)


@pytest.mark.parametrize("precision, size", [("fp32", 4), ("fp16", 2)])
def test_the_cache_has_the_bundles_precision(bundle, precision, size):
    llm = bundle.llm
    expected = 2 * llm.layers * llm.kv_heads * llm.head_dim * bundle.max_context * size
    assert kv_cache_bytes(Bundle(bundle.path, replace(bundle.manifest, llm=replace(llm, precision=precision)))) == expected


def _save(directory, nodes, inputs, outputs, weights, functions=()):
    def declared(values):
        return [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in values.items()]

    tensors = [numpy_helper.from_array(array, name) for name, array in weights.items()]
    graph = helper.make_graph(nodes, "graph", declared(inputs), declared(outputs), tensors)
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("gridpool", 1)]
    model = helper.make_model(graph, opset_imports=opsets, functions=list(functions), ir_version=10)
    path = directory / "graph.onnx"
    onnx.save(model, str(path))
    return path


def test_a_report_line_by_line():
    report = inspect.BundleReport(
        bundle="bundles/b",
        family="llava-ov",
        checkpoint=Checkpoint("tiny", "0123456789abcdef"),
        compression=Compression("st-gridpool", "nsp:window=2", "after-projector"),
        frames=16,
        grid=(9, 7),
        input="pixel values of 126×98",
        precision="int8",
        llm_precision="fp16",
        quantized={"vision": "quantize int8: 14 layers"},
        opset=20,
        budget={"patch_tokens": 1008, "visual_tokens": 193, "ratio": 5.22, "max_context": 2048, "prompt_room": 1855},
        memory={"vision weights": 1_500_000, "KV cache": 2_000},
        serve={"KV caches of 8 answers": 16_000, "kept visual tokens, at most": 256_000_000},
        graphs=[GraphMemory("vision", {"Add": 2, "MatMul": 11, "Abs": 2}, 1_500_000, 7)],
        engines=[
            inspect.BuiltEngines("engines/a", "tensorrt", "10.3", "sm87", "fp16", {"vision": 3_000_000, "llm/decoder": 5_000}, ()),
            inspect.BuiltEngines("engines/c", "tensorrt-rtx", "1.7", "any", "fp32", {"vision": 1_000}, ("vision",)),
        ],
        files={"vision.onnx": 1_000_000, "manifest.json": 500},
        versions={"torch": "2.9", "onnx": "1.20"},
        notes=["vision: a note"],
    )
    lines = [" ".join(line.split()) for line in inspect.text(report).splitlines() if line.strip(" -─")]
    assert lines[:9] == [
        "bundle bundles/b",
        "model llava-ov, checkpoint tiny (sha256 0123456789ab…)",
        "compression nsp:window=2 (st-gridpool), after-projector",
        "graphs vision int8, LLM fp16, opset 20, 16 frames of 9×7 patches",
        "input pixel values of 126×98",
        "vision quantize int8: 14 layers",
        "written by torch 2.9, onnx 1.20",
        "a clip 1,008 patch tokens → 193 visual tokens (5.2:1)",
        "context 2,048 positions, 1,855 left for question and answer",
    ]
    rest = [
        "vision weights 1.5 MB",
        "vision: a note",
        "a server KV caches of 8 answers 16.0 KB, kept visual tokens, at most 256.0 MB (--batch, --cache-mib)",
        "vision: 15 nodes: MatMul 11, Abs 2, Add 2",
        "engine engines/a: tensorrt 10.3 for sm87: vision 3.0 MB, llm/decoder 5.0 KB",
        "engine engines/c: tensorrt-rtx 1.7 for any: vision 1.0 KB; STALE: vision built from another ONNX",
        "2 files 1.0 MB",
    ]
    assert [line for line in rest if line not in lines] == []
    plain = replace(report, compression=replace(report.compression, preset="nsp:window=2"), budget={**report.budget}, engines=[])
    del plain.budget["max_context"]
    shown = inspect.text(plain)
    assert (
        "compression  nsp:window=2, after-projector\n" in shown and "context " not in shown and "engines      none built" in shown
    )


def test_of_a_split_bundle_that_lists_a_loop_too_the_split_graphs_count(split_bundle, tmp_path):
    folder = shutil.copytree(split_bundle.path, tmp_path / "b")
    before = inspect.inspect(split_bundle).memory
    shutil.copyfile(folder / "vision.onnx", folder / "vision.loop.onnx")
    list_file(folder, "vision.loop.onnx")
    assert inspect.inspect(Bundle.open(folder)).memory == before


def test_a_loop_without_its_batch_is_not_counted(bundle):
    graphs = [graph for graph in inspect.inspect(bundle).graphs if graph.graph != "vision"]
    memory = bundle_memory(bundle, graphs)
    assert set(memory) == {"llm/decoder weights", "llm/decoder activations", "KV cache", "total"}


@pytest.mark.parametrize(
    ("frames", "size", "words"),
    [(None, (126, 98), "pixel values of 126×98"), ((480, 640), (126, 98), "uint8 frames of 480×640")],
)
def test_what_the_graph_takes_in_words(monkeypatch, frames, size, words):
    monkeypatch.setattr(inspect, "Preprocessor", lambda _: SimpleNamespace(frames=frames, size=size))
    assert inspect._input({}) == words
