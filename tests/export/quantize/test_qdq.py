"""Q/DQ in a graph: the numbers are those of a plain reference, and ONNX Runtime joins the nodes to its integer kernels."""

from __future__ import annotations

import logging
from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import helper, numpy_helper

from export.quantize.layers import find_layers
from export.quantize.llm import _rounded
from export.quantize.qdq import _lift_biases, _quiet, int8_rounded, rows_to_int8, w4, w8, w8a8
from runtime.engine.onnx import OnnxEngine
from runtime.tools.compare import relative_error

RNG = np.random.default_rng(0)
X = RNG.normal(size=(1, 6, 64)).astype(np.float32)
W = RNG.normal(size=(64, 48)).astype(np.float32)
W[:, 5] = 0
BIAS = RNG.normal(size=48).astype(np.float32)


def model() -> onnx.ModelProto:
    """gelu(x W + b)."""
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["product"], "layer/MatMul"),
        helper.make_node("Add", ["product", "b"], ["sum"], "layer/Add"),
        helper.make_node("Gelu", ["sum"], ["y"], "act/Gelu"),
    ]
    values = [
        helper.make_tensor_value_info(name, 1, [1, 6, width])
        for name, width in (("x", 64), ("product", 48), ("sum", 48), ("y", 48))
    ]
    constants = [numpy_helper.from_array(W, "w"), numpy_helper.from_array(BIAS, "b")]
    graph = helper.make_graph(nodes, "g", values[:1], values[-1:], constants, value_info=values[1:3])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def run(quantized: onnx.ModelProto) -> np.ndarray:
    onnx.checker.check_model(quantized)
    return OnnxEngine.load(quantized.SerializeToString()).run({"x": X})["y"]  # as the runtime does, exact without VNNI too


def fused(quantized: onnx.ModelProto, tmp_path: Path) -> Counter:
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    options.log_severity_level = 3
    onnxruntime.InferenceSession(quantized.SerializeToString(), options)
    return Counter(node.op_type for node in onnx.load(tmp_path / "optimized.onnx").graph.node)


def gelu(x: np.ndarray) -> np.ndarray:
    import math

    return x * 0.5 * (1 + np.vectorize(math.erf)(x / np.sqrt(2)))


def test_int8_weights_and_activations_are_rounded_to_their_steps(tmp_path):
    quantized = w8a8(model(), {"x": 2.0}, ["layer/MatMul"])
    steps = np.abs(W).max(0) / 127
    steps[steps == 0] = 1
    x = np.clip(np.rint(X / (2 / 127)), -128, 127) * (2 / 127)
    expected = gelu(x @ (np.rint(W / steps) * steps) + BIAS)
    np.testing.assert_allclose(run(quantized), expected, atol=2e-3)
    assert fused(quantized, tmp_path)["MatMulIntegerToFloat"] == 1
    zero_points = [numpy_helper.to_array(t) for t in quantized.graph.initializer if t.name.endswith("zero_point")]
    assert zero_points and not any(point.any() for point in zero_points)  # TensorRT takes symmetric scales only


def test_a_layer_that_is_not_named_stays_as_it_was():
    untouched = w8a8(model(), {}, [])
    np.testing.assert_array_equal(run(untouched), run(model()))


def test_int8_weights_have_a_step_for_each_output(tmp_path):
    quantized = w8(model(), find_layers(model()))
    steps = np.abs(W).max(0) / 127
    steps[5] = 1  # a column of zeros
    expected = gelu(X @ (np.rint(W / steps) * steps) + BIAS)
    assert relative_error(run(quantized), expected) < 0.02  # ONNX Runtime rounds the activations too
    assert fused(quantized, tmp_path)["MatMulNBits"] == 1


def test_the_biases_of_quantized_products_become_rows_and_are_there_once():
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["p1"], "one"),
        helper.make_node("MatMul", ["x", "w"], ["p2"], "two"),
        helper.make_node("MatMul", ["x", "w"], ["p3"], "three"),
        helper.make_node("Add", ["p1", "b"], ["s1"], "s1"),
        helper.make_node("Add", ["b", "p2"], ["s2"], "s2"),  # a sum has no order
        helper.make_node("Add", ["p3", "c"], ["s3"], "s3"),
        helper.make_node("Add", ["p1", "c"], ["s4"], "s4"),
        helper.make_node("Mul", ["p1", "d"], ["s5"], "s5"),
    ]
    rows = {"w": W, "b": BIAS, "c": BIAS + 1, "d": BIAS + 2}
    outputs = [helper.make_tensor_value_info(f"s{number}", 1, [1, 6, 48]) for number in range(1, 6)]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", 1, [1, 6, 64])],
        outputs,
        [numpy_helper.from_array(v, k) for k, v in rows.items()],
    )
    lifted = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    _lift_biases(lifted, ["one", "two"])
    onnx.checker.check_model(lifted, full_check=True)
    read = {node.name: list(node.input) for node in lifted.graph.node}
    assert (read["s1"], read["s2"], read["s3"]) == (["p1", "b/row"], ["b/row", "p2"], ["p3", "c"])
    assert (read["s4"], read["s5"]) == (["p1", "c/row"], ["p1", "d"])
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in lifted.graph.initializer}
    assert set(constants) == {"w", "b/row", "c", "c/row", "d"}  # nobody reads b any more
    np.testing.assert_array_equal(constants["b/row"], BIAS.reshape(1, 1, 48))


@pytest.mark.parametrize("block", [16, 32, 64])
def test_int4_weights_have_a_step_for_each_block(block, tmp_path):
    quantized = w4(model(), find_layers(model()), block)
    (opset,) = quantized.opset_import
    assert opset.version == 21
    dequantize = next(node for node in quantized.graph.node if node.op_type == "DequantizeLinear")
    attributes = {attribute.name: attribute.i for attribute in dequantize.attribute}
    assert attributes == {"axis": 0, "block_size": block}
    weight = onnx.reference.ReferenceEvaluator(_only(dequantize, quantized)).run(None, {})[0]
    np.testing.assert_allclose(weight, _rounded(W, "int4", block), atol=1e-6)  # what errors are predicted from
    blocks, got = W.reshape(-1, block, 48), weight.reshape(-1, block, 48)
    step = np.abs(blocks).max(1, keepdims=True) / 8  # the largest magnitude of a block is 8 steps, on the other side 7 are the end
    cut = np.abs(blocks - got) > step / 2 + 1e-6
    assert (np.abs(blocks - got) <= step + 1e-6).all() and (
        np.abs(blocks[cut]) > 7.5 * np.broadcast_to(step, got.shape)[cut] - 1e-6
    ).all()
    assert fused(quantized, tmp_path)["MatMulNBits"] == 1


def test_an_int4_block_of_whole_steps_comes_back_as_it_is():
    steps = np.random.default_rng(1).integers(-8, 8, (64, 48)).astype(np.float32)
    steps[::16] = -8
    weight = steps * np.repeat(np.array([0.5, 0.25, 2, 1], np.float32), 16)[:, None]
    np.testing.assert_array_equal(_rounded(weight, "int4", 16), weight)


def _only(node: onnx.NodeProto, source: onnx.ModelProto) -> onnx.ModelProto:
    constants = [tensor for tensor in source.graph.initializer if tensor.name in node.input]
    out = helper.make_tensor_value_info(node.output[0], 1, None)
    return helper.make_model(helper.make_graph([node], "g", [], [out], constants), opset_imports=source.opset_import)


def test_rows_come_back_within_half_a_step():
    table = RNG.normal(size=(5000, 12)).astype(np.float32) * RNG.lognormal(size=(5000, 1)).astype(np.float32)
    table[7] = 0
    values, scales = rows_to_int8(table)
    assert values.dtype == np.int8 and scales.dtype == np.float32 and (scales > 0).all()
    assert (np.abs(values * scales[:, None] - table) <= scales[:, None] / 2 * 1.0001).all()


def test_a_weight_is_rounded_by_output_channel_to_127_steps_on_both_sides():
    weight = np.array([[127, 1.0], [-63.6, -4], [0.4, 2]], np.float32)  # steps of 1 and of 4 / 127
    step = 4 / 127
    np.testing.assert_allclose(int8_rounded(weight), [[127, 32 * step], [-64, -4], [0, 64 * step]], rtol=1e-6)
    values, scales = rows_to_int8(np.array([[-127, 127, 0.5, 1.5], [0, 0, 0, 0]], np.float32))
    assert values.tolist() == [[-127, 127, 0, 2], [0, 0, 0, 0]] and scales.tolist() == [1, 1]  # halves go to the even step


def two_layers(opset: int = 20) -> onnx.ModelProto:
    """x W, then the sum of that and another product of x."""
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["one"], "one"),
        helper.make_node("MatMul", ["x", "v"], ["two"], "two"),
        helper.make_node("Add", ["one", "two"], ["y"], "sum"),
    ]
    values = [
        helper.make_tensor_value_info(name, 1, [1, 6, width]) for name, width in (("x", 64), ("one", 48), ("two", 48), ("y", 48))
    ]
    constants = [numpy_helper.from_array(W, "w"), numpy_helper.from_array(W[::-1].copy(), "v")]
    graph = helper.make_graph(nodes, "named", values[:1], values[-1:], constants, "said", values[1:3])
    graph.metadata_props.add(key="k", value="v")
    opsets = [helper.make_opsetid("com.microsoft", 1), helper.make_opsetid("", opset)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10)


def weights_of(quantized: onnx.ModelProto) -> dict[str, str]:
    """{product: what makes its second input}."""
    made = {name: node.op_type for node in quantized.graph.node for name in node.output}
    products = {node.output[0]: node for node in quantized.graph.node if node.op_type == "MatMul"}
    return {name: made.get(node.input[1], "stored") for name, node in products.items()}


def test_of_two_products_the_one_that_is_named_has_a_scale_for_each_output_and_none_for_its_result():
    quantized = w8a8(two_layers(), {"x": 2.0}, ["two"])
    assert weights_of(quantized) == {"one": "stored", "two": "DequantizeLinear"}
    assert Counter(node.op_type for node in quantized.graph.node)["QuantizeLinear"] == 1, "of x alone"
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in quantized.graph.initializer}
    steps = np.abs(W).max(0) / 127
    (scale,) = [value for name, value in constants.items() if name.startswith("v") and name.endswith("scale")]
    np.testing.assert_allclose(np.delete(scale, 5), np.delete(steps, 5), rtol=1e-6)
    (step,) = [value for name, value in constants.items() if name.startswith("x") and name.endswith("scale")]
    assert step == pytest.approx(2 / 127)
    assert {str(value.dtype) for name, value in constants.items() if "quantized" in name or "zero_point" in name} == {"int8"}


@pytest.mark.parametrize("names", [["one"], ["one", "two"], []])
def test_int8_weights_are_those_of_the_layers_given(names):
    given = two_layers()
    quantized = w8(given, [layer for layer in find_layers(given) if layer.node in names])
    assert weights_of(quantized) == {name: "DequantizeLinear" if name in names else "stored" for name in ("one", "two")}
    graph = quantized.graph
    assert (graph.name, graph.doc_string, graph.metadata_props[0].value) == ("named", "said", "v")
    assert [value.name for value in graph.value_info] == ["one", "two"] and [node.name for node in graph.node][-3:] == [
        "one",
        "two",
        "sum",
    ]
    for node in graph.node[: len(names)]:
        assert [(attribute.name, attribute.i) for attribute in node.attribute] == [("axis", 1)] and len(node.input) == 2


@pytest.mark.parametrize(("opset", "expected"), [(20, 21), (21, 21), (23, 23)])
def test_int4_needs_an_opset_and_leaves_other_layers_alone(opset, expected):
    given = two_layers(opset)
    quantized = w4(given, find_layers(given)[:1], 32)
    assert weights_of(quantized) == {"one": "DequantizeLinear", "two": "stored"}
    assert {one.domain: one.version for one in quantized.opset_import}[""] == expected
    assert {one.domain: one.version for one in quantized.opset_import}["com.microsoft"] == 1


def test_no_layer_to_quantise_leaves_the_very_model():
    given = model()
    assert w8a8(given, {"x": 1.0}, []) is given


def test_the_quantisers_log_is_kept_away_and_comes_back(caplog):
    with _quiet():
        logging.getLogger("onnxruntime.quantization").error("a line a node")
        logging.getLogger("onnxruntime.quantization").critical("what must be said")
    logging.getLogger().error("afterwards")
    assert [record.message for record in caplog.records] == ["what must be said", "afterwards"]
    logging.disable(logging.WARNING)
    try:
        with pytest.raises(ValueError), _quiet():
            raise ValueError
        assert logging.getLogger().manager.disable == logging.WARNING
    finally:
        logging.disable(logging.NOTSET)


@pytest.mark.parametrize("rows", [1, 4095, 4096, 4097, 8193])
def test_rows_of_any_number_are_all_rounded(rows):
    table = np.full((rows, 2), -1, np.float32)
    table[:, 1] = np.arange(rows) % 100 / 100
    values, scales = rows_to_int8(table)
    np.testing.assert_array_equal(scales, np.float32(1) / 127)
    assert values[:, 0].tolist() == [-127] * rows
    assert np.abs(values[:, 1] / 127 - table[:, 1]).max() <= 0.5001 / 127
