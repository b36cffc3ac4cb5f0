"""The peak of living tensors in small graphs, worked out by hand."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from runtime.tools import liveness


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
    peak = liveness.peak(liveness.load(_save(tmp_path, nodes, {"x": [1, 10]}, {"y": [1]}, weights), {}).graph)
    assert (peak.bytes, peak.node, peak.unknown) == (4 * (10 + 100 + 1), "mean", 0)


def test_a_cache_that_is_written_in_place_is_not_counted_twice(tmp_path):
    nodes = [helper.make_node("ScatterElements", ["past", "at", "new"], ["present"], "update", axis=0)]
    path = _save(tmp_path, nodes, {"past": [1000], "new": [1]}, {"present": [1000]}, {"at": np.array([3])})
    model = liveness.load(path, {})
    assert liveness.peak(model.graph, {"past"}).bytes == 4
    assert liveness.peak(model.graph).bytes == 4 * (1000 + 1 + 1000)


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
    peak = liveness.peak(liveness.load(path, {"x": {0: 64}}).graph)
    assert (peak.bytes, peak.unknown) == (4 * 64 + 64 * 64 + 4 * 64 * 64, 0)
    assert liveness.peak(liveness.load(path, {}).graph).unknown > 0


def test_an_output_that_is_as_long_as_an_input_has_a_size_whatever_makes_it(tmp_path):
    nodes = [helper.make_node("Unknown", ["x"], ["y"], "own", domain="gridpool")]
    path = _save(tmp_path, nodes, {"x": ["S"]}, {"y": ["S", 2]}, {})
    peak = liveness.peak(liveness.load(path, {"x": {0: 64}}).graph)
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
    assert liveness.value_bytes(helper.make_tensor_value_info("x", getattr(TensorProto, kind), dims)) == size
    assert liveness.value_bytes(helper.make_tensor_value_info("x", getattr(TensorProto, kind), ["S", *dims])) is None
    assert liveness.value_bytes(helper.make_tensor_value_info("x", getattr(TensorProto, kind), None)) is None


def test_local_functions_are_counted_by_what_is_inside_them(tmp_path):
    body = [helper.make_node("Expand", ["v", "to"], ["wide"]), helper.make_node("ReduceMean", ["wide"], ["m"], keepdims=1)]
    function = helper.make_function("gridpool", "Pool", ["v", "to"], ["m"], body, [helper.make_opsetid("", 18)])
    nodes = [helper.make_node("Pool", ["x", "to"], ["y"], "pool", domain="gridpool")]
    path = _save(tmp_path, nodes, {"x": [1]}, {"y": [1]}, {"to": np.array([500])}, [function])
    assert liveness.peak(liveness.load(path, {}).graph).bytes >= 4 * 500
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
    peak = liveness.peak(liveness.load(_save(tmp_path, nodes, {"x": [8, 10]}, {"y": [8]}, weights), {}).graph)
    # x and the loop's eight means outside, one row and its 50 copies inside; counter and condition are 9 bytes
    assert 4 * (80 + 8 + 10 + 500) <= peak.bytes <= 4 * (80 + 8 + 10 + 500) + 16
    assert (peak.node, peak.unknown) == ("loop", 0)


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
