"""The edits that passes share: order and scopes of nodes, readers of tensors, and which constants are read."""

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
    insert_before,
    is_exporters,
    is_output,
    model_from_graph,
    replace_node,
    reroute,
    scope_of,
    small_value,
    static_shape,
)

SCOPES = "pkg.torch.onnx.name_scopes"
KIND = "pkg.torch.export.graph_signature.InputSpec.kind"


@pytest.fixture
def model() -> onnx.ModelProto:
    """x -> a -> b -> c -> y in scopes net.one, net.one, net.two and the root; w is the checkpoint's, the rest the exporter's."""
    model = model_from_text(
        "g (float[2, 3] x) => (float[2, 3] y) <float[2, 3] w, float[2, 3] k> { a = Add(x, w)\n b = Mul(a, k)\n c = Neg(b)\n y = Relu(c) }",
        w=normal(2, 3),
        k=normal(2, 3),
    )
    for node, scope in zip(model.graph.node, ("net.one", "net.one", "net.two", ""), strict=True):
        node.metadata_props.add(key=SCOPES, value=str(["", scope, "op"] if scope else ["op"]))
    model.graph.value_info.append(onnx.helper.make_tensor_value_info("w", 1, [2, 3]))
    model.graph.value_info[-1].metadata_props.add(key=KIND, value="PARAMETER")
    return model


@pytest.fixture
def graph(model: onnx.ModelProto) -> gs.Graph:
    return graph_from_model(model)


def ops(graph: gs.Graph) -> list[str]:
    return [node.op for node in graph.nodes]


def fresh(op: str, source: gs.Tensor, name: str = "fresh") -> gs.Node:
    return gs.Node(op, name, inputs=[source], outputs=[gs.Variable(name, np.float32)])


def test_each_node_has_the_scope_of_its_module(graph: gs.Graph):
    assert [scope_of(node) for node in graph.nodes] == ["net.one", "net.one", "net.two", ""]


def test_a_node_without_a_scope_gets_what_its_readers_have_in_common(model: onnx.ModelProto):
    del model.graph.node[0].metadata_props[:]
    assert scope_of(graph_from_model(model).nodes[0]) == "net.one"
    model.graph.node.insert(1, onnx.helper.make_node("Exp", ["x"], ["shared"], "shared"))
    model.graph.node[2].input[1] = model.graph.node[3].input[0] = "shared"
    assert scope_of(graph_from_model(model).nodes[1]) == "net"
    model.graph.node[3].metadata_props[0].value = str(["", "net.one.deeper", "op"])
    assert scope_of(graph_from_model(model).nodes[1]) == "net.one"


@pytest.mark.parametrize(
    ("scopes", "scope"),
    [
        (["op"], ""),
        (["net", "op"], "net"),
        (["", "net", "net.one", "op"], "net.one"),
        (["", "_empty_nn_module_stack_from_metadata_hook", "op"], ""),
    ],
)
def test_a_scope_is_the_module_right_around_the_traced_operator(model: onnx.ModelProto, scopes: list[str], scope: str):
    model.graph.node[3].metadata_props[0].value = str(scopes)
    assert graph_from_model(model).nodes[3].scope == scope


def test_other_metadata_of_a_node_is_no_scope(model: onnx.ModelProto):
    model.graph.node[3].metadata_props[0].key = "pkg.torch.onnx.stack_trace"
    assert graph_from_model(model).nodes[3].scope == "", "of nobody who reads it"


def test_a_model_that_was_not_traced_has_no_scopes(model: onnx.ModelProto):
    for node in model.graph.node:
        del node.metadata_props[:]
    graph = graph_from_model(model)
    assert [node.scope for node in graph.nodes] == [None] * 4
    assert not is_exporters(graph.tensors()["k"], graph.nodes[1])


def test_constants_of_the_checkpoint_are_told_from_the_exporters(graph: gs.Graph):
    tensors, reader = graph.tensors(), graph.nodes[1]
    assert is_exporters(tensors["k"], reader)
    assert not is_exporters(tensors["w"], reader) and not is_exporters(tensors["a"], reader)
    assert is_exporters(gs.Constant("of a pass", np.zeros(1)), reader)


def test_an_output_is_the_tensor_itself_among_the_graphs_outputs(graph: gs.Graph):
    tensors = graph.tensors()
    graph.outputs.append(tensors["b"])
    assert [is_output(graph, tensors[name]) for name in ("x", "a", "b", "y")] == [False, False, True, True]
    assert not is_output(graph, gs.Variable("y", np.float32, [2, 3]))


def test_new_nodes_stand_where_the_old_one_was_with_its_scope_and_outputs(graph: gs.Graph):
    old, source = graph.nodes[1], graph.tensors()["a"]
    first = fresh("Exp", source)
    last = gs.Node("Log", "last", inputs=[first.outputs[0]])
    replace_node(graph, old, [first, last])
    assert ops(graph) == ["Add", "Exp", "Log", "Neg", "Relu"]
    assert [scope_of(node) for node in graph.nodes[1:3]] == ["net.one", "net.one"]
    assert last.outputs[0].name == "b" and graph.nodes[3].inputs[0] is last.outputs[0]
    assert not old.inputs and not old.outputs


def test_outputs_of_its_own_are_kept(graph: gs.Graph):
    new = fresh("Exp", graph.tensors()["a"])
    replace_node(graph, graph.nodes[1], [new])
    assert [tensor.name for tensor in new.outputs] == ["fresh"]


@pytest.mark.parametrize(("tensor", "place", "scope"), [("b", 2, "net.one"), ("c", 3, "net.two"), ("x", 0, ""), ("w", 0, "")])
def test_behind_a_tensor_is_right_behind_what_computes_it(graph: gs.Graph, tensor: str, place: int, scope: str):
    new = fresh("Exp", graph.tensors()[tensor])
    insert_after(graph, graph.tensors()[tensor], new)
    assert graph.nodes[place] is new and new.scope == scope


def test_before_a_node_is_right_before_it_in_its_scope(graph: gs.Graph):
    new = fresh("Exp", graph.tensors()["b"])
    insert_before(graph, graph.nodes[2], new)
    assert ops(graph) == ["Add", "Mul", "Exp", "Neg", "Relu"] and new.scope == "net.two"


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


def test_what_lies_in_a_file_is_read_up_to_a_mebibyte(model: onnx.ModelProto, tmp_path):
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
