"""names: who keeps a name, what tensors and constants are called, and which rules a graph gets."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_graphsurgeon as gs
import pytest
from surgeon_graphs import model_from_text, normal, rewrite

from export.surgeon import names, run_passes
from export.surgeon.graph import Context, graph_from_model
from export.surgeon.names import module_scopes
from runtime.core.errors import ExportError


def scoped(model: onnx.ModelProto, *scopes: str | None) -> onnx.ModelProto:
    for node, scope in zip(model.graph.node, scopes, strict=True):
        if scope is not None:
            node.metadata_props.add(key="pkg.torch.onnx.name_scopes", value=str(["", scope, "op"]))
    return model


def named(model: onnx.ModelProto, graph: str = "vision") -> tuple[list[str], list[list[str]], list[list[str]]]:
    after, _ = run_passes(model, ["names"], graph=graph)
    nodes = after.graph.node
    return [node.name for node in nodes], [list(node.input) for node in nodes], [list(node.output) for node in nodes]


@pytest.mark.parametrize(
    ("graph", "prefix"), [("vision", "vision"), ("vision.loop", "vision"), ("llm/decoder", "llm"), ("llm/prefill", "llm")]
)
def test_the_rules_are_those_of_the_graph(graph, prefix):
    model = model_from_text("g (float[2] x) => (float[2] y) { a = Relu(x)\n y = Neg(a) }")
    assert named(scoped(model, "layers.3.mlp", None), graph)[0] == [f"{prefix}/layer.3/mlp/Relu", f"{prefix}/Neg"]


def test_a_readable_name_without_a_scope_stays_and_one_with_a_scope_goes():
    model = model_from_text("g (float[2] x) => (float[2] y) { a = Relu(x)\n b = Neg(a)\n y = Abs(b) }")
    model.graph.node[0].name, model.graph.node[1].name, model.graph.node[2].name = "some/other/Relu", "compress/top/Neg", "plain"
    assert named(scoped(model, "compress.nsp", None, None))[0] == ["compress/nsp/Relu", "compress/top/Neg", "vision/Abs"]


def test_of_several_outputs_each_has_its_number_and_one_that_is_left_out_none():
    model = model_from_text(
        "g (float[6] x, int64[1] k) => (float[6] y, float[n] z) { v, i = TopK(x, k)\n y = Dropout(x)\n z = Abs(v) }"
    )
    assert named(scoped(model, "net", None, None))[2] == [["vision/net/TopK.0", "vision/net/TopK.1"], ["y"], ["z"]]
    model = model_from_text("g (float[6] x, int64[1] k) => (float[n] y) { v, i = TopK(x, k)\n j = Cast<to = 1>(i)\n y = Abs(j) }")
    model.graph.node[0].output[0] = ""
    assert named(model)[2] == [["", "vision/TopK.1"], ["vision/Cast"], ["y"]]


def test_constants_are_called_after_their_first_reader_unless_a_module_named_them():
    model = model_from_text(
        """g (float[4, 6] x) => (float[3, 6] y) {
        a = MatMul(val_1, x)
        b = Add(a, val_2)
        c = Add(b, val_2)
        d = Add(c, mlp.bias)
        y = Add(d, scale)
    }""".replace("mlp.bias", "val_3"),
        val_1=normal(3, 4),
        val_2=normal(6),
        val_3=normal(6, seed=1),
        scale=normal(6, seed=2),
    )
    model.graph.initializer[2].name = model.graph.node[3].input[1] = "mlp.bias"
    model.graph.value_info.append(onnx.helper.make_tensor_value_info("scale", 1, [6]))
    model.graph.value_info[-1].metadata_props.add(
        key="pkg.torch.export.graph_signature.InputSpec.kind", value="InputKind.PARAMETER"
    )
    inputs = named(scoped(model, *["net"] * 5))[1]
    assert [inputs[0][0], *(pair[1] for pair in inputs[1:])] == [
        "vision/net/MatMul/weight",
        "vision/net/Add/constant",
        "vision/net/Add/constant",
        "mlp.bias",
        "scale",
    ]


def test_a_tensor_does_not_take_the_name_of_an_input_an_output_or_a_weight():
    model = model_from_text(
        """g (float[2] x) => (float[2] y) {
        a = Relu(x)
        b = Neg(a)
        c = Abs(b)
        y = Add(c, w)
    }""",
        w=normal(2),
    )
    model.graph.input[0].name = model.graph.node[0].input[0] = "vision/Relu"
    model.graph.output[0].name = model.graph.node[3].output[0] = "vision/Neg"
    model.graph.initializer[0].name = model.graph.node[3].input[1] = "vision/Abs"
    after, (report,) = rewrite(model, ["names"], {"vision/Relu": normal(2)})
    assert [list(node.output) for node in after.graph.node] == [
        ["vision/Relu_2"],
        ["vision/Neg_2"],
        ["vision/Abs_2"],
        ["vision/Neg"],
    ]
    assert report.rewrites == 4 + 3  # every node, and the tensors a, b and c


@pytest.mark.parametrize(
    ("called", "double"), [(["a/b", "c/d", "a/b"], "a/b"), (["a/b", "", "c/d"], ""), (["a/b", "c/d", "c/d"], "c/d")]
)
def test_names_that_are_no_names_are_an_error(called, double):
    x = gs.Variable("x", np.float32, [1])
    nodes = [gs.Node("Relu", name, inputs=[x], outputs=[gs.Variable(f"o{at}")]) for at, name in enumerate(called)]
    with pytest.raises(ExportError, match=f'^vision: .*"{double}"'):
        names.check(gs.Graph(nodes, [x], name="vision"), Context(onnx.ModelProto()))


@pytest.fixture
def traced() -> onnx.ModelProto:
    """x -> a -> b -> c -> y in scopes net.one, net.one, net.two and the root; w is the checkpoint's, k the exporter's."""
    model = model_from_text(
        "g (float[2, 3] x) => (float[2, 3] y) <float[2, 3] w, float[2, 3] k> { a = Add(x, w)\n b = Mul(a, k)\n c = Neg(b)\n y = Relu(c) }",
        w=normal(2, 3),
        k=normal(2, 3),
    )
    return scoped(model, "net.one", "net.one", "net.two", "")


def scopes(model: onnx.ModelProto) -> list[str | None]:
    return module_scopes(graph_from_model(model), model)


def test_each_node_has_the_scope_of_its_module(traced: onnx.ModelProto):
    assert scopes(traced) == ["net.one", "net.one", "net.two", ""]


def test_a_node_without_a_scope_gets_what_its_readers_have_in_common(traced: onnx.ModelProto):
    del traced.graph.node[0].metadata_props[:]
    assert scopes(traced)[0] == "net.one"
    traced.graph.node.insert(1, onnx.helper.make_node("Exp", ["x"], ["shared"], "shared"))
    traced.graph.node[2].input[1] = traced.graph.node[3].input[0] = "shared"
    assert scopes(traced)[1] == "net"
    traced.graph.node[3].metadata_props[0].value = str(["", "net.one.deeper", "op"])
    assert scopes(traced)[1] == "net.one"


@pytest.mark.parametrize(
    ("recorded", "scope"),
    [
        (["op"], ""),
        (["net", "op"], "net"),
        (["", "net", "net.one", "op"], "net.one"),
        (["", "_empty_nn_module_stack_from_metadata_hook", "op"], ""),
    ],
)
def test_a_scope_is_the_module_right_around_the_traced_operator(traced: onnx.ModelProto, recorded: list[str], scope: str):
    traced.graph.node[3].metadata_props[0].value = str(recorded)
    assert scopes(traced)[3] == scope


def test_other_metadata_of_a_node_is_not_a_scope(traced: onnx.ModelProto):
    traced.graph.node[3].metadata_props[0].key = "pkg.torch.onnx.stack_trace"
    assert scopes(traced)[3] == "", "nothing reads it"


def test_a_model_that_was_not_traced_has_no_scopes_and_its_constants_keep_their_names(traced: onnx.ModelProto):
    for node in traced.graph.node:
        del node.metadata_props[:]
    assert scopes(traced) == [None] * 4
    assert [names[1] for names in named(traced)[1][:2]] == ["w", "k"]
