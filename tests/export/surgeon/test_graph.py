"""The edits that passes share: the order of nodes, readers of tensors, and which constants are read."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_graphsurgeon as gs
import pytest
from surgeon_graphs import model_from_text, normal

from export.surgeon.graph import (
    SMALL,
    free_name,
    graph_from_model,
    insert_after,
    leaving,
    model_from_graph,
    reroute,
    small_value,
    static_shape,
)


@pytest.fixture
def model() -> onnx.ModelProto:
    return model_from_text(
        "g (float[2, 3] x) => (float[2, 3] y) <float[2, 3] w, float[2, 3] k> { a = Add(x, w)\n b = Mul(a, k)\n c = Neg(b)\n y = Relu(c) }",
        w=normal(2, 3),
        k=normal(2, 3),
    )


@pytest.fixture
def graph(model: onnx.ModelProto) -> gs.Graph:
    return graph_from_model(model)


def ops(graph: gs.Graph) -> list[str]:
    return [node.op for node in graph.nodes]


def fresh(op: str, source: gs.Tensor, name: str = "fresh") -> gs.Node:
    return gs.Node(op, name, inputs=[source], outputs=[gs.Variable(name, np.float32)])


def test_what_leaves_a_region_is_read_outside_or_an_output_of_the_graph(graph: gs.Graph):
    assert [tensor.name for tensor in leaving(graph, graph.nodes[:2])] == ["b"]
    assert [tensor.name for tensor in leaving(graph, graph.nodes[1:])] == ["y"]
    graph.nodes[3].inputs.append(graph.tensors()["a"])
    graph.outputs.append(graph.tensors()["c"])
    assert [tensor.name for tensor in leaving(graph, graph.nodes[:3])] == ["a", "c"]


@pytest.mark.parametrize(("tensor", "place"), [("b", 2), ("c", 3), ("x", 0), ("w", 0)])
def test_behind_a_tensor_is_right_behind_what_computes_it(graph: gs.Graph, tensor: str, place: int):
    new = fresh("Exp", graph.tensors()[tensor])
    insert_after(graph, graph.tensors()[tensor], new)
    assert graph.nodes[place] is new


def test_every_reader_reads_the_new_tensor_at_each_place(graph: gs.Graph):
    tensors = graph.tensors()
    graph.nodes[1].inputs[1] = tensors["a"]  # a twice
    reroute(tensors["a"], tensors["x"])
    assert [tensor.name for tensor in graph.nodes[1].inputs] == ["x", "x"] and not tensors["a"].outputs


def test_small_constants_are_read_and_weights_are_not(graph: gs.Graph):
    np.testing.assert_array_equal(small_value(graph.tensors()["w"]), normal(2, 3))
    assert small_value(graph.tensors()["x"]) is None
    assert small_value(gs.Constant("edge", np.zeros(SMALL // 4, np.float32))) is not None
    assert small_value(gs.Constant("large", np.zeros(SMALL // 4 + 1, np.float32))) is None
    size = SMALL // 4 + 1
    model = model_from_text(f"g (float[{size}] x) => (float[{size}] y) <float[{size}] w> {{ y = Add(x, w) }}", w=normal(size))
    assert small_value(graph_from_model(model).tensors()["w"]) is None


def test_a_scalar_is_small():
    assert small_value(gs.Constant("one", np.array(1.0, np.float32))) == 1


@pytest.mark.parametrize(("elements", "dtype", "read"), [
    (1 << 18, np.float32, True), ((1 << 18) + 1, np.float32, False), (1 << 20, np.int8, True), ((1 << 20) + 1, np.int8, False),
])  # fmt: skip
def test_a_constant_of_a_model_is_small_up_to_a_mebibyte(elements: int, dtype: type, read: bool):
    kind = {np.float32: "float", np.int8: "int8"}[dtype]
    model = model_from_text(
        f"g ({kind}[{elements}] x) => ({kind}[{elements}] y) <{kind}[{elements}] w> {{ y = Add(x, w) }}", w=np.ones(elements, dtype)
    )
    assert (small_value(graph_from_model(model).tensors()["w"]) is not None) == read


def test_external_data_is_read_up_to_a_mebibyte(model: onnx.ModelProto, tmp_path):
    (tmp_path / "m.data").write_bytes(np.full(1 << 18, 3, np.float32).tobytes())
    for tensor, elements in zip(model.graph.initializer, (1 << 18, (1 << 18) + 1), strict=True):
        onnx.external_data_helper.set_external_data(tensor, "m.data", 0, 4 * elements)
        tensor.ClearField("raw_data")
        tensor.dims[:] = [elements]
    tensors = graph_from_model(model, tmp_path).tensors()
    np.testing.assert_array_equal(small_value(tensors["w"]), np.full(1 << 18, 3, np.float32))
    assert small_value(tensors["k"]) is None
    assert [len(tensor.external_data) > 0 for tensor in model.graph.initializer] == [False, True]


def test_small_constants_in_a_file_beside_the_model_are_read_where_it_is_named(model: onnx.ModelProto, tmp_path):
    onnx.save(model, tmp_path / "m.onnx", save_as_external_data=True, location="m.data", size_threshold=0)
    stored = onnx.load(tmp_path / "m.onnx", load_external_data=False)
    assert small_value(graph_from_model(stored).tensors()["k"]) is None
    np.testing.assert_array_equal(small_value(graph_from_model(stored, tmp_path).tensors()["k"]), normal(2, 3))


def test_a_shape_is_static_where_every_dimension_is_a_number():
    assert static_shape(gs.Variable("a", np.float32, [2, 3])) == (2, 3)
    assert static_shape(gs.Variable("a", np.float32, ["B", 3])) is None
    assert static_shape(gs.Variable("a", np.float32)) is None


def test_a_free_name_is_that_of_no_node_and_no_tensor(graph: gs.Graph):
    assert free_name(graph, "d") == "d"
    assert free_name(graph, "a") == "a_2"
    graph.nodes[0].name = "a_2"
    assert free_name(graph, "a") == "a_3"


def test_what_graph_surgeon_forgets_of_a_model_is_put_back(model: onnx.ModelProto):
    model.domain, model.model_version, model.doc_string = "here", 7, "words"
    model.metadata_props.add(key="k", value="v")
    back = model_from_graph(graph_from_model(model), model)
    assert (back.domain, back.model_version, back.doc_string) == ("here", 7, "words")
    assert [(prop.key, prop.value) for prop in back.metadata_props] == [("k", "v")]


def test_what_a_subgraph_reads_is_stored_once_outside_unless_it_is_quantized():
    """graph-surgeon writes a constant into each subgraph that reads it; ONNX Runtime wants those of Q/DQ where their nodes are."""
    model = model_from_text(
        """
    g (float[2] x, bool c) => (float[2] y, float[2] z) <float[2] w = {1.0, 2.0}, float[2] v = {3.0, 4.0}, float s = {0.5}, float t = {0.25}> {
        z = Mul(x, w)
        y = If(c) <
            then_branch = a () => (float[2] u) { p = Add(x, w)\n u = Mul(p, v) },
            else_branch = b () => (float[2] o) { q = QuantizeLinear(x, s)\n r = DequantizeLinear(q, s)\n m = Mul(r, t)\n o = Add(m, v) }
        >
    }"""
    )
    back = model_from_graph(graph_from_model(model), model)
    onnx.checker.check_model(back, full_check=True)
    assert sorted(tensor.name for tensor in back.graph.initializer) == ["t", "v", "w"]
    then, other = (onnx.helper.get_attribute_value(attribute) for attribute in back.graph.node[1].attribute)
    assert [[tensor.name for tensor in body.initializer] for body in (then, other)] == [[], ["s"]]
    assert onnx.numpy_helper.to_array(other.initializer[0]) == 0.5
    assert {value.name for value in then.value_info} <= {"p"} and {value.name for value in other.value_info} <= {"q", "r", "m"}
