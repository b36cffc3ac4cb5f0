"""int64: positions, masks and tables become int32; shapes, inputs and outputs keep the type that ONNX or the contract asks for."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from refusal import naming
from surgeon_graphs import model_from_text, normal, ops, rewrite

from export.surgeon import int64
from export.surgeon.graph import Context, graph_from_model

INT32, INT64 = onnx.TensorProto.INT32, onnx.TensorProto.INT64

CONTEXT = Context(onnx.ModelProto())


def _types(model: onnx.ModelProto) -> dict[str, int]:
    inferred = onnx.shape_inference.infer_shapes(model, strict_mode=True)
    values = [*inferred.graph.value_info, *inferred.graph.input, *inferred.graph.output]
    return {v.name: v.type.tensor_type.elem_type for v in values} | {t.name: t.data_type for t in inferred.graph.initializer}


def test_position_arithmetic_is_narrowed_behind_one_cast_of_the_input():
    model = model_from_text("""
    g (int64[1, 3] positions, float[8, 4] table) => (float[1, 3, 4] y, bool[1, 3, 3] mask)
    <int64[1] one = {1}, int64[1] last = {-1}, int64[1] first = {1}>
    {
        next = Add(positions, one)
        y = Gather<axis = 0>(table, next)
        rows = Unsqueeze(positions, last)
        columns = Unsqueeze(positions, first)
        mask = LessOrEqual(columns, rows)
    }""")
    after, (report,) = rewrite(model, ["int64"], {"positions": np.array([[2, 0, 5]]), "table": normal(8, 4)})
    assert ops(after) == ["Cast", "Add", "Gather", "Unsqueeze", "Unsqueeze", "LessOrEqual"]
    types = _types(after)
    assert {types[name] for name in ("next", "rows", "columns", "one/int32", "positions/int32")} == {INT32}
    assert types["positions"] == INT64
    assert {types[name] for name in ("last", "first")} == {INT64}, "the axes of Unsqueeze stay int64"
    assert report.rewrites == 4
    assert not any(op in report.note for op in int64.POLYMORPHIC)


def test_what_computes_a_shape_stays_int64():
    model = model_from_text("""
    g (float[N, 6] x) => (float[M, 2, 3] y) <int64[1] zero = {0}, int64[2] tail = {2, 3}> {
        shape = Shape(x)
        rows = Gather<axis = 0>(shape, zero)
        target = Concat<axis = 0>(rows, tail)
        y = Reshape(x, target)
    }""")
    after, (report,) = rewrite(model, ["int64"], {"x": normal(4, 6)})
    assert ops(after) == ["Shape", "Gather", "Concat", "Reshape"]
    assert _types(after)["target"] == INT64
    assert report.rewrites == 1, "only Gather's constant index table is int32"
    assert naming(2, "Concat", "Gather").match(report.note)


def test_an_int64_output_keeps_its_type():
    model = model_from_text("g (int64[3] x) => (int64[3] y) <int64[1] one = {1}> { a = Add(x, one)\n y = Mul(a, one) }")
    after, (report,) = rewrite(model, ["int64"], {"x": np.arange(3)})
    assert ops(after) == ["Add", "Mul"] and report.rewrites == 0


def test_constants_that_do_not_fit_keep_their_node_int64():
    model = model_from_text("""
    g (int64[2] x, float[4] table) => (float[2] y) <int64[1] big = {4294967296}> {
        a = Mod(x, big)
        b = Add(a, a)
        y = Gather(table, b)
    }""")
    after, (report,) = rewrite(model, ["int64"], {"x": np.array([0, 1]), "table": normal(4)})
    assert ops(after) == ["Mod", "Add", "Gather"] and report.rewrites == 0


def test_a_single_comparison_is_not_worth_a_cast():
    model = model_from_text("g (int64[3] mask) => (bool[3] y) <int64[1] zero = {0}> { y = Equal(mask, zero) }")
    after, (report,) = rewrite(model, ["int64"], {"mask": np.array([1, 0, 1])})
    assert ops(after) == ["Equal"] and report.rewrites == 0


def test_indices_of_topk_and_of_a_cast_are_narrowed_for_arithmetic():
    model = model_from_text("""
    g (float[2, 6] x, float[24] table, float[2, 1] row) => (float[2, 3] y) <int64[1] k = {3}, int64[1] width = {6}, int64[1] one = {1}> {
        values, indices = TopK(x, k)
        base = Cast<to = 7>(row)
        offset = Mul(base, width)
        flat = Add(offset, indices)
        next = Add(flat, one)
        picked = Gather(table, next)
        y = Add(picked, values)
    }""")
    feed = {"x": normal(2, 6), "table": normal(24, seed=1), "row": np.array([[0], [2]], np.float32)}
    after, (report,) = rewrite(model, ["int64"], feed)
    assert ops(after) == ["TopK", "Cast", "Cast", "Mul", "Add", "Add", "Gather", "Add"], "the cast to int64 became one to int32"
    types = _types(after)
    assert {types[name] for name in ("offset", "flat", "next")} == {INT32} and types["indices"] == INT64
    assert report.rewrites == 3


def test_one_node_behind_a_cast_to_int64_is_worth_it_because_the_cast_only_changes():
    model = model_from_text("""
    g (float[3] row, float[9] table) => (float[3] y) <int64[1] one = {1}> {
        wide = Cast<to = 7>(row)
        next = Add(wide, one)
        y = Gather(table, next)
    }""")
    after, (report,) = rewrite(model, ["int64"], {"row": np.float32([0, 7, 3]), "table": normal(9)})
    assert ops(after) == ["Cast", "Add", "Gather"] and report.rewrites == 1
    assert _types(after)["next"] == INT32


def test_a_constant_that_is_also_a_shape_is_split_in_two():
    model = model_from_text(
        """
    g (float[4, 3] x) => (float[2, 3] y, float[3, 4] z) <int64[2] both = {3, 4}, float[5, 3] table> {
        y = Gather<axis = 0>(table, both)
        z = Reshape(x, both)
    }""",
        table=normal(5, 3),
    )
    after, _ = rewrite(model, ["int64"], {"x": normal(4, 3)})
    types = _types(after)
    assert (types["both"], types["both/int32"]) == (INT64, INT32)


def test_a_value_that_a_subgraph_reads_stays_int64():
    model = model_from_text(
        """
    g (int64[2] x, bool c) => (int64[2] y, float[2] z) <int64[1] one = {1}, float[9] table> {
        a = Add(x, one)
        b = Add(a, one)
        z = Gather(table, b)
        y = If(c) <then_branch = t () => (int64[2] u) { u = Identity(b) }, else_branch = e () => (int64[2] v) { v = Neg(b) }>
    }""",
        table=normal(9),
    )
    after, (report,) = rewrite(model, ["int64"], {"x": np.array([1, 2]), "c": np.array(True)})
    assert ops(after) == ["Add", "Add", "Gather", "If"] and report.rewrites == 0


@pytest.mark.parametrize(
    ("value", "fits"),
    [(2**31 - 1, True), (2**31, False), (-(2**31), True), (-(2**31) - 1, False)],
)
def test_constants_that_fit_into_32_bits(value, fits):
    text = "g (int64[2] x, float[9] t) => (float[2] y) { a = Sub(x, c)\n b = Add(a, a)\n y = Gather(t, b) }"
    graph = graph_from_model(model_from_text(text.replace("{", "<int64[2] c> {", 1), c=np.array([0, value])))
    assert int64.run(graph, CONTEXT) == (2 if fits else 0)


@pytest.mark.parametrize(("row", "narrowed"), [([2, 8], True), ([0, 2**31], False)])
def test_tables_of_indices_are_narrowed_where_they_fit(row, narrowed):
    text = """g (float[2, 3] x, float[2, 1] u) => (float[2, 1] a, float[2, 3] b, float[2, 3] c) <int64[2, 1] at, int64[2, 1] to> {
        a = GatherElements<axis = 1>(x, at)
        b = ScatterElements<axis = 1>(x, at, u)
        c = ScatterElements<axis = 1>(x, to, u)
    }"""
    model = model_from_text(text, at=np.array(row)[:, None], to=np.array([[1], [0]]))
    graph = graph_from_model(model)
    assert int64.run(graph, CONTEXT) == (3 if narrowed else 1)
    assert [node.inputs[1].dtype for node in graph.nodes] == [*[np.int32 if narrowed else np.int64] * 2, np.int32]
    assert int64.run(graph, CONTEXT) == 0


def test_two_nodes_that_share_one_cast_are_worth_it():
    model = model_from_text("""
    g (int64[2] x, float[9] t) => (float[2] y, float[2] z) <int64[1] one = {1}, int64[1] two = {2}> {
        a = Add(x, one)
        y = Gather(t, a)
        b = Sub(x, two)
        z = Gather(t, b)
    }""")
    after, (report,) = rewrite(model, ["int64"], {"x": np.array([2, 5]), "t": normal(9)})
    assert ops(after) == ["Cast", "Add", "Gather", "Sub", "Gather"] and report.rewrites == 2


def test_as_many_casts_as_nodes_are_not_worth_it():
    model = model_from_text("""
    g (int64[2] x, int64[2] z, float[9] t) => (float[2] y, bool[2] m) {
        a = Add(x, z)
        y = Gather(t, a)
        m = Less(a, x)
    }""")
    after, (report,) = rewrite(model, ["int64"], {"x": np.array([2, 5]), "z": np.array([1, 0]), "t": normal(9)})
    assert ops(after) == ["Add", "Gather", "Less"] and report.rewrites == 0
    assert naming(2, "Add", "Less").match(report.note)


def test_both_branches_of_a_choice_are_narrowed_and_a_cast_takes_the_result():
    model = model_from_text("""
    g (int64[2] x, bool[2] c, float[9] t) => (float[2] y, float[2] z) <int64[1] one = {1}, int64[2] other = {7, 8}> {
        a = Add(x, one)
        b = Where(c, a, other)
        d = Where(c, other, x)
        y = Gather(t, b)
        z = Cast<to = 1>(d)
    }""")
    feed = {"x": np.array([2, 5]), "c": np.array([True, False]), "t": normal(9)}
    after, (report,) = rewrite(model, ["int64"], feed)
    assert ops(after) == ["Cast", "Add", "Where", "Where", "Gather", "Cast"] and report.rewrites == 3
    types = _types(after)
    assert {types[name] for name in ("a", "b", "d", "other/int32")} == {INT32}


def test_a_result_that_is_also_a_shape_keeps_every_node_before_it_int64():
    model = model_from_text("""
    g (int64[2] x, float[4] t, float[4] u) => (float[n, m] y, float[2] z) <int64[1] one = {1}> {
        a = Add(x, one)
        b = Sub(a, one)
        y = Reshape(u, b)
        z = Gather(t, a)
    }""")
    after, (report,) = rewrite(model, ["int64"], {"x": np.array([2, 2]), "t": normal(4), "u": normal(4)})
    assert ops(after) == ["Add", "Sub", "Reshape", "Gather"] and report.rewrites == 0


def test_an_empty_constant_fits():
    model = model_from_text(
        """g (int64[2] x, float[9] t) => (float[2] y) <int64[0] none, int64[1] one = {1}> {
        a = Concat<axis = 0>(x, none)
        b = Add(a, one)
        y = Gather(t, b)
    }""",
        none=np.zeros(0, np.int64),
    )
    after, (report,) = rewrite(model, ["int64"], {"x": np.array([2, 5]), "t": normal(9)})
    assert ops(after) == ["Cast", "Concat", "Add", "Gather"] and report.rewrites == 2
