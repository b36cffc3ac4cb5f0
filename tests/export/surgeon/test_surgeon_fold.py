"""fold: constants are computed, no-ops and doubles go, weights are never copied."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from surgeon_graphs import model_from_text, normal, ops, rewrite

from export.surgeon import fold, run_passes
from export.surgeon.graph import SMALL, graph_from_model


def test_shape_chains_of_a_static_input_become_a_constant():
    model = model_from_text("""
    g (float[2, 3, 4] x) => (float[y0, y1] y) {
        shape = Shape(x)
        zero = Constant<value: tensor = int64[1] {0}>()
        rest = Constant<value: tensor = int64[1] {-1}>()
        first = Gather<axis = 0>(shape, zero)
        target = Concat<axis = 0>(first, rest)
        y = Reshape(x, target)
    }""")
    assert ops(model) == ["Shape", "Constant", "Constant", "Gather", "Concat", "Reshape"]
    after, (report,) = rewrite(model, ["fold"], {"x": normal(2, 3, 4)})
    assert ops(after) == ["Reshape"]
    assert report.rewrites == 5
    assert report.note == "1 nodes left: 1 Reshape"


def test_nodes_that_change_nothing_are_taken_out():
    model = model_from_text("""
    g (float[2, 3] x) => (float[2, 3] y)
    <int64[2] same = {2, 3}, int64[1] zero = {0}, int64[1] end = {9223372036854775807}, int64[1] one = {1}, int64[1] back = {-1},
     int64[1] before = {-9}>
    {
        a = Identity(x)
        b = Cast<to = 1>(a)
        c = Reshape(b, same)
        d = Expand(c, same)
        e = Transpose<perm = [0, 1]>(d)
        f = Slice(e, zero, end, zero, one)
        r = Slice(f, back, before, zero, back)
        h = Concat<axis = 0>(r, f)
        i = Slice(h, zero, end, zero, one)
        s = ReduceSum<keepdims = 1>(i, zero)
        y = Add(s, x)
    }""")
    after, (report,) = rewrite(model, ["fold"], {"x": normal(2, 3)})
    assert ops(after) == ["Slice", "Concat", "ReduceSum", "Add"], "the reversing Slice stays"
    assert report.rewrites == 7


def test_a_slice_that_turns_one_of_two_axes_around_stays():
    model = model_from_text("""
    g (float[2, 3] x) => (float[2, 3] y)
    <int64[2] starts = {-1, 0}, int64[2] ends = {-9, 3}, int64[2] axes = {0, 1}, int64[2] steps = {-1, 1}>
    {
        a = Slice(x, starts, ends, axes, steps)
        y = Relu(a)
    }""")
    after, (report,) = rewrite(model, ["fold"], {"x": normal(2, 3)})
    assert ops(after) == ["Slice", "Relu"] and report.rewrites == 0


def test_a_slice_with_steps_of_run_time_stays():
    model = model_from_text("""
    g (float[2, 3] x, int64[1] steps) => (float[2, 3] y)
    <int64[1] starts = {-1}, int64[1] ends = {-9}, int64[1] axes = {0}>
    {
        a = Relu(x)
        y = Slice(a, starts, ends, axes, steps)
    }""")
    after, (report,) = rewrite(model, ["fold"], {"x": normal(2, 3), "steps": np.array([-1])})
    assert ops(after) == ["Relu", "Slice"] and report.rewrites == 0


def test_a_graph_output_behind_a_no_op_keeps_its_name():
    model = model_from_text("""
    g (float[2, 3] x) => (float[2, 3] y, float[2, 3] z) {
        a = Relu(x)
        y = Identity(a)
        b = Neg(a)
        z = Identity(b)
    }""")
    after, _ = rewrite(model, ["fold"], {"x": normal(2, 3)})
    assert [(node.op_type, node.output[0]) for node in after.graph.node] == [("Relu", "y"), ("Neg", "z")]


def test_an_input_passed_through_to_an_output_stays_passed_through():
    model = model_from_text("g (float[2] x) => (float[2] y) { y = Identity(x) }")
    after, (report,) = rewrite(model, ["fold"], {"x": normal(2)})
    assert ops(after) == ["Identity"] and report.rewrites == 0


def test_equal_constants_and_equal_nodes_are_merged():
    model = model_from_text("""
    g (float[2, 3] x) => (float[2, 3] y)
    <float[1] half = {0.5}, float[1] also_half = {0.5}, int64[1] other_type = {1}, int64[1] axes = {1}>
    {
        a = Mul(x, half)
        b = Mul(x, also_half)
        s = ReduceSum<keepdims = 1>(a, axes)
        t = ReduceSum<keepdims = 1>(b, other_type)
        u = ReduceSum<keepdims = 0>(b, axes)
        v = Unsqueeze(u, axes)
        w = Add(s, t)
        z = Add(w, v)
        y = Sub(x, z)
    }""")
    after, (report,) = rewrite(model, ["fold"], {"x": normal(2, 3)})
    assert report.rewrites == 4, "two nodes and two constants"
    assert ops(after) == ["Mul", "ReduceSum", "ReduceSum", "Unsqueeze", "Add", "Add", "Sub"]
    assert len(after.graph.initializer) == 2


def test_equal_nodes_are_merged_but_for_those_that_make_the_graphs_outputs():
    model = model_from_text("""
    g (float[2] x) => (float[2] y, float[2] z, float[2] w) {
        y = Relu(x)
        z = Relu(x)
        a = Relu(x)
        b = Relu(x)
        c = Neg(b)
        w = Add(a, c)
    }""")
    after, (report,) = rewrite(model, ["fold"], {"x": normal(2)})
    assert ops(after) == ["Relu", "Relu", "Relu", "Neg", "Add"] and report.rewrites == 1
    assert [node.input[0] for node in after.graph.node] == ["x", "x", "x", "a", "a"]


def test_constants_of_one_bit_pattern_and_two_types_stay_two():
    model = model_from_text("""
    g (float[2] x, int32[2] n) => (float[2] y, int32[2] m) <float[1] nothing = {0}, int32[1] zero = {0}> {
        y = Add(x, nothing)
        m = Add(n, zero)
    }""")
    after, (report,) = rewrite(model, ["fold"], {"x": normal(2), "n": np.arange(2, dtype=np.int32)})
    assert len(after.graph.initializer) == 2 and report.rewrites == 0


@pytest.mark.parametrize(
    "made",
    ["RandomNormal<shape = [3]>()", "RandomUniform<shape = [3]>()", "RandomNormalLike(k)", "RandomUniformLike(k)", "Bernoulli(k)"],
)
def test_the_same_random_node_twice_is_two_nodes_even_of_a_constant(made):
    model = model_from_text(f"g () => (float[3] y) <float[3] k = {{0.5, 0.5, 0.5}}> {{ a = {made}\n b = {made}\n y = Sub(a, b) }}")
    after, (report,) = run_passes(model, ["fold"], graph="vision")
    op = made.split("<")[0].split("(")[0]
    assert ops(after) == [op, op, "Sub"] and report.rewrites == 0


def test_a_weight_is_not_folded_into_a_second_copy():
    side = int((SMALL / 4) ** 0.5) + 1
    model = model_from_text(f"""
    g (float[2, {side}] x) => (float[2, {side}] y) <float[{side}, {side}] w> {{
        t = Transpose<perm = [1, 0]>(w)
        y = MatMul(x, t)
    }}""")
    del model.graph.initializer[:]
    model.graph.initializer.append(numpy_helper.from_array(normal(side, side, seed=1), "w"))
    after, (report,) = rewrite(model, ["fold"], {"x": normal(2, side)})
    assert ops(after) == ["Transpose", "MatMul"] and report.rewrites == 0


@pytest.mark.parametrize(("numbers", "left"), [(SMALL // 4, ["Mul", "Add"]), (SMALL // 4 + 1, ["ReduceMax", "Mul", "Add"])])
def test_what_is_computed_from_a_weight_alone_stays_however_small_it_is(numbers, left):
    """A weight may lie in a file of its own, and is not read."""
    model = model_from_text(
        """
    g (float[2] x) => (float[2] y) {
        two = Constant<value: tensor = float[1] {2}>()
        largest = ReduceMax<keepdims = 0>(w)
        a = Mul(x, two)
        y = Add(a, largest)
    }""",
        w=normal(numbers),
    )
    assert ops(rewrite(model, ["fold"], {"x": normal(2)})[0]) == left


def test_external_weights_are_left_on_disk_and_small_tables_are_read(tmp_path):
    model = model_from_text("""
    g (float[4, 8] x) => (float[2, 8] y) <float[8, 8] w, int64[1, 2] rows = {3, 1}> {
        a = Gather<axis = 0>(x, rows)
        axis = Constant<value: tensor = int64[1] {0}>()
        b = Squeeze(a, axis)
        y = MatMul(b, w)
    }""")
    rows = next(tensor for tensor in model.graph.initializer if tensor.name == "rows")
    del model.graph.initializer[:]
    big = np.ones((8, SMALL // 8), np.float32)
    model.graph.initializer.extend([rows, numpy_helper.from_array(big, "unused"), numpy_helper.from_array(normal(8, 8), "w")])
    onnx.save(model, tmp_path / "m.onnx", save_as_external_data=True, location="m.data", size_threshold=0)
    loaded = onnx.load(tmp_path / "m.onnx", load_external_data=False)
    after, _ = run_passes(loaded, ["fold", "int64"], graph="vision", directory=tmp_path)
    types = {tensor.name: (tensor.data_type, len(tensor.external_data)) for tensor in after.graph.initializer}
    assert "unused" not in types
    assert types["rows/int32"] == (onnx.TensorProto.INT32, 0)
    assert types["w"] == (onnx.TensorProto.FLOAT, 0)

    loaded = onnx.load(tmp_path / "m.onnx", load_external_data=False)
    after, _ = run_passes(loaded, ["fold", "int64"], graph="vision")
    assert all(tensor.external_data for tensor in after.graph.initializer if tensor.name in ("w", "rows"))
    onnx.save(after, tmp_path / "after.onnx")
    onnx.checker.check_model(str(tmp_path / "after.onnx"))


def test_an_output_that_is_passed_on_to_another_output_keeps_its_name():
    model = model_from_text("g (float[2] x) => (float[2] y, float[2] z) { y = Relu(x)\n z = Identity(y) }")
    after, (report,) = rewrite(model, ["fold"], {"x": normal(2)})
    assert [(node.op_type, node.output[0]) for node in after.graph.node] == [("Relu", "y"), ("Identity", "z")]
    assert report.rewrites == 0


def test_the_note_names_the_six_most_frequent_operators():
    chain = ["Relu", "Neg", "Abs", "Exp", "Sigmoid", "Tanh", "Sqrt"]
    steps = [op for number, op in enumerate(chain) for _ in range(len(chain) - number)]
    lines = [f"t{at + 1} = {op}(t{at})" for at, op in enumerate(steps)]
    model = model_from_text(f"g (float[2] t0) => (float[2] t{len(steps)}) {{ {' '.join(lines)} }}")
    _, (report,) = run_passes(model, ["fold"], graph="vision")
    assert report.note == "28 nodes left: 7 Relu, 6 Neg, 5 Abs, 4 Exp, 3 Sigmoid, 2 Tanh"


def test_nodes_that_are_dropped_or_merged_make_nothing_any_more_and_are_counted():
    body = "a = Identity(x)\n b = Relu(a)\n c = Identity(b)\n d = Abs(c)\n e = Abs(c)\n f = Abs(b)\n y = Sum(d, e, f)"
    graph = graph_from_model(model_from_text(f"g (float[2] x) => (float[2] y) {{ {body} }}"))
    assert (fold.drop_no_ops(graph), fold.merge_equal_nodes(graph)) == (2, 2)
    left = [(node.op, [t.name for t in node.inputs], [t.name for t in node.outputs]) for node in graph.nodes if node.outputs]
    assert left == [("Relu", ["x"], ["b"]), ("Abs", ["b"], ["d"]), ("Sum", ["d", "d", "d"], ["y"])]


@pytest.mark.parametrize(
    ("op", "kept"),
    [
        ("Cast<to = 11>(a)", True),
        ("Cast<to = 1>(a)", False),
        ("Reshape(a, turned)", True),
        ("Reshape(a, same)", False),
        ("Expand(a, more)", True),
        ("Expand(a, same)", False),
        ("Slice(a, zero, end)", False),  # along the first axis, of one step
        ("Slice(a, one, end)", True),
        ("Transpose<perm = [1, 0]>(a)", True),
        ("Transpose(a)", True),  # which turns the axes around
    ],
)
def test_a_node_that_changes_type_shape_or_order_stays(op, kept):
    model = model_from_text(f"""
    g (float[2, 3] x) => (float[k] y)
    <int64[2] same = {{2, 3}}, int64[2] turned = {{3, 2}}, int64[3] more = {{2, 2, 3}}, int64[1] zero = {{0}}, int64[1] one = {{1}},
     int64[1] end = {{2}}, int64[1] all = {{-1}}>
    {{
        a = Relu(x)
        b = {op}
        c = Cast<to = 1>(b)
        y = Reshape(c, all)
    }}""")
    after, _ = rewrite(model, ["fold"], {"x": normal(2, 3)})
    name = op.split("(")[0].split("<")[0]
    assert [node for node in ops(after) if node not in ("Relu", "Cast", "Reshape")] == (
        [name] if kept and name not in ("Cast", "Reshape") else []
    )
    assert ops(after) == ["Relu", *([name] if kept else []), *(["Cast"] if op.endswith("11>(a)") else []), "Reshape"]


@pytest.mark.parametrize(
    ("twins", "readers", "left"),
    [
        ("a, b = Split<axis = 1, num_outputs = 2>(x)\n c, d = Split<axis = 1, num_outputs = 2>(x)", "y = Sum(a, b, c, d)", ["Split", "Sum"]),
        ("a, z = Split<axis = 1, num_outputs = 2>(x)\n c, d = Split<axis = 1, num_outputs = 2>(x)", "y = Sum(a, c, d)", ["Split", "Split", "Sum"]),
        ("c, d = Split<axis = 1, num_outputs = 2>(x)\n a, z = Split<axis = 1, num_outputs = 2>(x)", "y = Sum(a, c, d)", ["Split", "Split", "Sum"]),
        ("a = LayerNormalization(x, w)\n b, m = LayerNormalization(x, w)", "c = Sum(a, b)\n y = Add(c, m)", ["LayerNormalization"] * 2 + ["Sum", "Add"]),
        ("a = Clip(x, , seven)\n b = Clip(x, , seven)", "y = Sum(a, b)", ["Clip", "Sum"]),
    ],
    ids=["all outputs are read inside", "one leaves the graph", "one of the second leaves it", "one has an output more", "an input is left out"],
)  # fmt: skip
def test_twins_of_several_outputs(twins, readers, left):
    z = ", float[2, 2] z" if "a, z" in twins else ""
    model = model_from_text(
        f"g (float[2, 4] x) => (float[2, k] y{z}) {{ {twins}\n {readers} }}",
        w=np.ones(4, np.float32),
        seven=np.array(7, np.float32),
    )
    after, _ = rewrite(model, ["fold"], {"x": normal(2, 4)}, tolerance=1e-6)
    assert ops(after) == left


def test_constants_that_meet_only_constants_are_computed_where_every_node_reads_one():
    model = model_from_text(
        "g (float[2] x) => (float[2] y) { a = Neg(k)\n b = Mul(a, l)\n y = Max(x, b, l) }", k=normal(2), l=normal(2, seed=1)
    )
    after, (report,) = rewrite(model, ["fold"], {"x": normal(2, seed=2)})
    assert ops(after) == ["Max"] and report.rewrites == 2


def test_a_weight_beside_a_small_constant_is_not_read():
    model = model_from_text(
        "g (float[2] x) => (float[2] y) <int64[1] axes = {0}> { largest = ReduceMax<keepdims = 0>(w, axes)\n y = Add(x, largest) }",
        w=normal(SMALL // 4 + 1),
    )
    assert ops(rewrite(model, ["fold"], {"x": normal(2)})[0]) == ["ReduceMax", "Add"]
