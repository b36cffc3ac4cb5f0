"""What the check knows of a graph's tensors: types, ranks and values, and what it says of nodes where it knows none of them."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

from export.tensorrt import Unsupported, check, require
from export.tensorrt.nodes import why_not
from runtime.core.errors import ExportError


def wrap(*nodes: onnx.NodeProto, kind: int = TensorProto.FLOAT, shape=(2, 8), opset: int = 20, **constants) -> onnx.ModelProto:
    tensors = [
        value if isinstance(value, TensorProto) else numpy_helper.from_array(np.asarray(value), name)
        for name, value in constants.items()
    ]
    outputs = [onnx.ValueInfoProto(name=name) for name in nodes[-1].output if name]
    graph = helper.make_graph(list(nodes), "graph", [helper.make_tensor_value_info("x", kind, shape)], outputs, tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)


def whys(made: onnx.ModelProto, release: str = "10.3") -> list[str]:
    return [found.why for found in check(made, release)]


@pytest.mark.parametrize(
    ("node", "what"),
    [
        (helper.make_node("Det", ["x"], ["y"], name="its name"), "node its name (Det)"),
        (helper.make_node("Det", ["x"], ["y"]), "node y (Det)"),
    ],
)
def test_a_node_without_a_name_is_called_after_its_output(node: onnx.NodeProto, what: str):
    (found,) = check(wrap(node, shape=(2, 2)), "10.3")
    assert str(found).startswith(f"{what}: ")
    with pytest.raises(ExportError) as error:
        require(wrap(node, shape=(2, 2)), "10.3")
    assert f"{what}: " in str(error.value) and "without --tensorrt" in str(error.value)


def test_two_nodes_are_one_and_one_more():
    nodes = [helper.make_node("Det", ["x"], [name], name=name) for name in ("y", "z")]
    with pytest.raises(ExportError, match=r"\(and 1 more\)"):
        require(wrap(*nodes, shape=(2, 2)), "10.3")
    assert str(Unsupported("", "opset 24", "too high")) == "opset 24: too high"


@pytest.mark.parametrize(
    ("node", "expected"),
    [
        (helper.make_node("Equal", ["x", "x"], ["y"]), []),  # though it makes BOOL
        (helper.make_node("ArgMax", ["x"], ["y"]), []),
        (helper.make_node("IsNaN", ["x"], ["y"]), []),
        (helper.make_node("Dropout", ["x"], ["y", "mask"]), []),
        (helper.make_node("LayerNormalization", ["x", "scale"], ["y", "", ""]), []),
        (helper.make_node("LayerNormalization", ["x", "scale"], ["y", "mean"]), ["only its first output is supported"]),
        (helper.make_node("Resize", ["x", "", "factors"], ["y"]), []),
        (helper.make_node("CastLike", ["x", "scale"], ["y"]), []),
    ],
)
def test_an_operator_is_judged_by_what_it_reads_and_by_outputs_that_are_there(node: onnx.NodeProto, expected: list[str]):
    assert whys(wrap(node, scale=np.ones(8, np.float32), factors=np.float32([1, 2]))) == expected


def test_two_outputs_of_an_attention_are_one_too_many():
    node = helper.make_node("Attention", ["x"] * 3, ["y", "z"])
    assert "first output" in _judged(node) and _judged(helper.make_node("Attention", ["x"] * 3, ["y", ""])) == ""


@pytest.mark.parametrize(
    "node",
    [
        helper.make_node("Attention", ["unknown"] * 4, ["y"]),
        helper.make_node("TensorScatter", ["unknown", "unknown", "unknown"], ["y"]),
        helper.make_node("RotaryEmbedding", ["unknown"] * 4, ["y"]),
        helper.make_node("MaxPool", ["unknown"], ["y"], kernel_shape=[2, 2]),
        helper.make_node("Softmax", ["unknown"], ["y"]),
    ],
)
def test_unknown_tensors_are_assumed_to_be_supported(node: onnx.NodeProto):
    assert _judged(node) == ""


def _judged(node: onnx.NodeProto) -> str:
    return why_not(ir.from_proto(wrap(node, shape=(1, 2, 4, 8), opset=24)).graph[0], "11.1") or ""


@pytest.mark.parametrize(
    "k",
    [
        helper.make_tensor("k", TensorProto.INT64, [1], [4000]),  # as numbers, not as bytes
        numpy_helper.from_array(np.array([4000]), "k"),
    ],
)
def test_a_constant_is_read_however_it_is_stored(k: TensorProto):
    node = helper.make_node("TopK", ["x", "k"], ["y", "i"])
    expected = ["K is 4000; expected at most 3840"]
    assert whys(wrap(node, shape=(1, 5000), k=k)) == expected
    inside = [helper.make_node("Constant", [], ["k"], value=k), node]
    assert whys(wrap(*inside, shape=(1, 5000))) == expected
    assert whys(wrap(helper.make_node("Constant", [], ["k"], value_ints=[4000]), node, shape=(1, 5000))) == expected
    k.ClearField("raw_data"), k.ClearField("int64_data")
    k.external_data.add(key="location", value="k.data")
    assert whys(wrap(node, shape=(1, 5000), k=k)) == []


def test_constants_of_an_outer_graph_are_known_inside():
    inner = helper.make_graph(
        [helper.make_node("TopK", ["x", "k"], ["inside", "i"], name="inner")], "inner", [], [onnx.ValueInfoProto(name="inside")]
    )
    made = wrap(
        helper.make_node("Constant", [], ["k"], value_ints=[4000]),
        helper.make_node("If", ["flag"], ["y"], then_branch=inner, else_branch=inner),
        shape=(1, 5000),
        flag=np.array(True),
    )
    assert [found.node for found in check(made, "10.3")] == ["inner", "inner"]


def test_the_default_domain_has_two_names():
    made = wrap(helper.make_node("Tanh", ["x"], ["y"], domain="ai.onnx"))
    made.opset_import[0].domain = "ai.onnx"
    made.opset_import[0].version = 21
    assert whys(made) == ["this parser supports opsets 9 to 20"]
