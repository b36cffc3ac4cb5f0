"""The memory of graphs that are small enough to count by hand; more in test_inspect.py."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import pytest
from onnx import TensorProto, helper, numpy_helper

from runtime.tools import liveness


def graph_of(text: str, **constants: object) -> onnx.ModelProto:
    """A model in ONNX's text syntax with int64 or given constants."""
    model = onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["" : 20, "own" : 1]>\n{text}')
    for name, value in constants.items():
        model.graph.initializer.append(numpy_helper.from_array(np.asarray(value), name))
    return model


def loaded(directory: Path, model: onnx.ModelProto, **sizes: dict[int, int]) -> onnx.ModelProto:
    onnx.save(model, directory / "m.onnx")
    return liveness.load(directory / "m.onnx", sizes)


def shapes(model: onnx.ModelProto) -> dict[str, list[int | str]]:
    values = [*model.graph.input, *model.graph.value_info, *model.graph.output]
    return {v.name: [d.dim_value or d.dim_param for d in v.type.tensor_type.shape.dim] for v in values}


def test_a_size_that_is_given_goes_wherever_the_axis_is_named_and_nowhere_else(tmp_path):
    text = "g (float[S, 5] x) => (float[S, 3] y) <float[S, 2] a, float[7, 2] b> { a = own.A(x) b = own.B(a) y = own.C(b) }"
    assert shapes(loaded(tmp_path, graph_of(text), x={0: 64})) == {
        "x": [64, 5],
        "y": [64, 3],
    }  # what the file says of a is not asked
    fixed = {"x": [64, 5], "y": ["S", 3], "a": ["S", 2], "b": [7, 2]}  # an axis without a name is no other's
    assert shapes(loaded(tmp_path, graph_of(text.replace("[S, 5]", "[64, 5]")), x={0: 64})) == fixed
    assert shapes(loaded(tmp_path, graph_of(text))) == fixed | {"x": ["S", 5]}


def test_what_is_found_only_after_a_loop_and_a_shape_were_counted_has_a_size(tmp_path):
    model = graph_of(
        """g (float[3, 2] x) => (float[A, 2] y, float[B] z) {
            rows = Loop <body = b (int64 i, bool go) => (bool on, float[2] row) {
                on = Identity(go)
                row = Gather(x, zero)
            }> (four, true)
            more = Neg(rows)
            y = Neg(more)
            shape = Shape(x)
            z = ConstantOfShape(shape)
        }""",
        four=4,
        zero=0,
        true=True,
    )
    found = shapes(loaded(tmp_path, model))
    assert found["rows"] == found["more"] == [4, 2]


def test_weights_are_the_bytes_of_all_initialisers():
    model = graph_of("g (float[3] x, float[4] w) => (float[3] y) { y = own.A(x, w) }", w=np.ones(4, np.float32), v=[1, 2])
    assert liveness.weights(model) == 4 * 4 + 2 * 8


def test_operators_are_counted_with_their_domain(tmp_path):
    onnx.save(graph_of("g (float[3] x) => (float[3] y) { a = Neg(x) b = Neg(a) y = own.Neg(b) }"), tmp_path / "m.onnx")
    assert liveness.operators(tmp_path / "m.onnx") == {"Neg": 2, "own.Neg": 1}


@pytest.mark.parametrize(
    ("text", "state", "expected"),
    [  # (bytes, node, tensors of no known size); x is 10 floats, y 1
        ("g (float[10] x) => (float[1] y) { [sum] y = ReduceSum(x) }", (), (44, "sum", 0)),
        ("g (float[10] x) => (float[1] y) { [sum] y = ReduceSum(x) }", ("x",), (4, "sum", 0)),
        ("g (float[10] x) => (float[10] x) { }", (), (40, "", 0)),
        # a dies when b is written, and c is never read: both are alive at their own node
        (
            "g (float[10] x) => (float[1] y) <float[20] a, float[30] b, float[99] c> "
            "{ [one] a = own.A(x) [two] b = own.B(a) [three] c = own.C(b) [four] y = own.D(b) }",
            (),
            (4 * (10 + 30 + 99), "three", 0),
        ),
        ("g (float[10] x) => (float[1] y) <float[20] a, float[30] b> { [one] a = own.A(x) [two] b = own.B(a) [three] y = own.C(b) }",
         (), (4 * 60, "two", 0)),
        # an early tensor that is read again lives until then; equal sums: the first node is named
        ("g (float[10] x) => (float[1] y) <float[5] a, float[5] b, float[5] c> "
         "{ [n1] a = own.A(x) [n2] b = own.B(a) [n3] c = own.C(b) [n4] y = own.D(a) }", (), (4 * 25, "n3", 0)),
        ("g (float[10] x) => (float[1] y) <float[5] a, float[5] b, float[5] c> "
         "{ [n1] a = own.A(x) [n2] b = own.B(a) [n3] c = own.C(b) [n4] y = own.D(c) }", (), (4 * 20, "n2", 0)),
        ("g (float[10] x) => (float[5] y, float[1] z) <float[5] a> { [one] y = own.A(x) [two] a = own.B(y) [n3] z = own.C(a) }",
         (), (4 * 21, "n3", 0)),
        # constants are no activations, however they are written; of two outputs both count
        ("g (float[10] x) => (float[1] y) <float[7] k, float[2] a, float[3] b> "
         "{ [k] k = Constant <value = float[7] {1, 1, 1, 1, 1, 1, 1}> () [split] a, b = own.A(x, k) [end] y = own.B(a, b) }",
         (), (4 * 16, "end", 0)),
        # what has no known size is left out and counted, an input of none only left out
        ("g (float[10] x, float[S] n) => (float[1] y) <float[T] a> { [n1] a = own.A(x) [n2] b = own.B(a, n) [n3] y = own.C(b) }",
         (), (4 * 11, "n3", 2)),
    ],
)  # fmt: skip
def test_a_tensor_lives_from_the_node_that_writes_it_to_the_last_that_reads_it(text, state, expected):
    peak = liveness.peak(graph_of(text).graph, state)
    assert (peak.bytes, peak.node, peak.unknown) == expected


def test_an_output_that_is_left_out_is_no_tensor():
    model = graph_of("g (float[10] x) => (float[1] y) { _, y = own.A(x) }")
    assert liveness.peak(model.graph).unknown == 1
    model.graph.node[0].output[0] = ""
    assert liveness.peak(model.graph).unknown == 0


@pytest.mark.parametrize("operator", ["Reshape", "Squeeze", "Unsqueeze", "Flatten", "Identity"])
def test_a_view_is_its_tensor_and_keeps_it_alive(operator):
    model = graph_of(
        f"""g (float[10] x) => (float[1] y) <float[50] a, float[50] b, float[20] c, float[50] v> {{
            [n1] a = own.A(x) [n2] b = {operator}(a) [n3] v = {operator}(b) [n4] c = own.B(x) [n5] y = own.C(v, c)
        }}"""
    )
    assert liveness.peak(model.graph) == liveness.Peak(4 * (10 + 50 + 20 + 1), "n5", 0)


@pytest.mark.parametrize("operator", ["ScatterElements", "ScatterND", "TensorScatter"])
def test_a_state_is_written_in_place_and_another_tensor_is_not(operator):
    text = f"g (float[100] past, float[1] new) => (float[100] now) {{ [n1] now = {operator}(past, at, new) }}"
    assert liveness.peak(graph_of(text, at=[1]).graph, {"past"}).bytes == 4
    assert liveness.peak(graph_of(text, at=[1]).graph, {"new"}).bytes == 4 * 200
    assert liveness.peak(graph_of(text.replace(operator, "Gather"), at=[1]).graph, {"past"}).bytes == 4 * 101


def test_of_two_branches_the_larger_counts_and_what_they_read_lives_until_then():
    model = graph_of(
        """g (float[10] x, bool c) => (float[1] y) <float[20] a, float[20] b> {
            [n1] a = own.A(x)
            [n2] b = own.B(x)
            [n3] y = If <then_branch = t () => (float[1] u) <float[30] p> { [in] p = own.C(a) u = own.D(p) },
                        else_branch = e () => (float[1] w) <float[6] q> { q = own.E(b) r = own.F(q) w = own.D(r) }> (c)
        }"""
    )
    assert liveness.peak(model.graph) == liveness.Peak(4 * (10 + 20 + 20 + 1) + 1 + 4 * 31, "n3", 1)  # r has no known size


def test_whole_numbers_from_outside_are_brought_into_bodies_within_bodies():
    model = graph_of(
        """g (float[10] x, bool c) => (float[1] y) {
            y = If <then_branch = t () => (float[1] u) {
                        u = If <then_branch = s () => (float[1] p) { p = own.A(x, b, a, half) },
                                else_branch = r () => (float[1] q) { q = own.B(x) }> (c)
                    },
                    else_branch = e () => (float[1] w) { w = own.C(x, a) }> (c)
        }""",
        a=[2],
        b=[3],
        half=np.float32(0.5),
        unread=[4],
    )
    liveness._bring_sizes_inside(model.graph, {})
    outer = {a.name: a.g for a in model.graph.node[0].attribute}
    inner = {a.name: a.g for a in outer["then_branch"].node[-1].attribute}
    held = {
        name: {n.output[0]: numpy_helper.to_array(n.attribute[0].t).tolist() for n in body.node if n.op_type == "Constant"}
        for name, body in {"then": inner["then_branch"], "else": inner["else_branch"], "outer else": outer["else_branch"]}.items()
    }
    assert held == {"then": {"a": [2], "b": [3]}, "else": {}, "outer else": {"a": [2]}}
    assert [n.op_type for n in inner["then_branch"].node] == ["Constant", "Constant", "A"]
    assert [n.output[0] for n in inner["then_branch"].node[:2]] == ["a", "b"]
    assert [n.op_type for n in outer["then_branch"].node] == ["If"]


def test_what_a_loop_stacks_up_is_as_long_as_its_trip_count_where_that_is_known():
    body = "<body = b (int64 i, bool go, float[S] v) => (bool on, float[S] w, float[2] r) { on = Identity(go) w = Neg(v) r = own.A(v) }>"
    model = graph_of(
        f"""g (float[S] x, bool go, int64 n) => (float[A] last, float[B, 2] rows) <float[C] k, float[D, 2] m, float[9, 2] o, float s> {{
            last, rows = Loop {body} (six, go, x)
            k, m = Loop {body} (n, go, x)
            p, o = Loop {body} (six, go, x)
            t, s = Loop {body} (six, go, x)
            u, v = Loop {body} (six, go, x)
            q = own.B(six)
        }}""",
        six=6,
    )
    assert liveness._count_passes(model) == 1
    found = shapes(model)
    assert found["rows"] == [6, 2] and found["last"] == ["A"]  # what is carried is as long as it was
    assert (found["k"], found["m"], found["o"], found["s"]) == (["C"], ["D", 2], [9, 2], [])
    assert liveness._count_passes(model) == 0


def test_a_shape_is_known_of_inputs_outputs_and_what_lies_between():
    model = graph_of(
        """g (float[2, 3] x, float z) => (float[4] y) <float[5, 6] a, float[7] h> {
            a = own.A(x)
            y = own.B(a)
            sx = Shape(x)  sa = Shape(a)  sy = Shape(y)  sz = Shape(z)
            n = own.C(x)
            sn = Shape(n)
            s1 = Shape <start = 1> (a)
        }"""
    )
    del model.graph.value_info[1].type.tensor_type.shape.dim[:]
    model.graph.value_info[1].type.tensor_type.ClearField("shape")
    model.graph.node.append(helper.make_node("Shape", ["h"], ["sh"]))
    assert liveness._fold_sizes(model) == 5
    folded = {n.output[0]: numpy_helper.to_array(n.attribute[0].t).tolist() for n in model.graph.node if n.op_type == "Constant"}
    assert folded == {"sx": [2, 3], "sa": [5, 6], "sy": [4], "sz": [], "s1": [6]}


def test_shapes_are_those_whose_every_length_is_known():
    model = graph_of(
        """g (float[2, 4] x, float[S, 3] n) => (float[2, 5] y, float[S, 3] m, float[2, T] t) <float[2, 3] known, float[U, 3] unknown> {
            y = own.A(x, w)
            m = Neg(n)
        }""",
        w=np.ones((4, 5), np.int8),
        scale=1.0,
    )
    assert liveness.shapes(model.graph) == {"w": [4, 5], "scale": [], "x": [2, 4], "y": [2, 5], "known": [2, 3]}


def test_numbers_in_another_file_are_not_looked_at():
    tensor = numpy_helper.from_array(np.array([3]), "n")
    assert liveness._is_small_integer(tensor)
    tensor.data_location = TensorProto.EXTERNAL
    assert not liveness._is_small_integer(tensor)
    assert not liveness._is_small_integer(numpy_helper.from_array(np.array([3], np.float32), "f"))


def test_a_value_of_no_known_type_has_no_size():
    assert liveness.value_bytes(helper.make_tensor_value_info("x", TensorProto.UNDEFINED, [3])) is None


def test_one_length_of_a_shape_is_known_also_where_another_is_not(tmp_path):
    """x is four rows of any length; the loop makes four rows, and with x they are of any length again."""
    model = graph_of(
        """g (float[4, S] x) => (float[A] y, float[B] z) {
            shape = Shape(x)
            rows = Gather(shape, first)
            ones = ConstantOfShape(rows)
            y = own.A(ones)
        }""",
        first=[0],
    )
    assert shapes(loaded(tmp_path, model))["ones"] == [4]
    looped = graph_of(
        """g (float[S] x) => (float[A] y) {
            rows = Loop <body = b (int64 i, bool go) => (bool on, float[1] row) { on = Identity(go) row = Gather(x, first) }> (five, true)
            wide = Add(rows, x)
            shape = Shape(wide)
            count = Gather(shape, first)
            ones = ConstantOfShape(count)
            y = own.A(ones)
        }""",
        first=[0],
        five=5,
        true=True,
    )
    assert shapes(loaded(tmp_path, looped))["ones"] == [5]
