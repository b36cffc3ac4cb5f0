"""layout: chains of Transpose and Reshape become one node or none."""

from __future__ import annotations

import numpy as np
import pytest
from surgeon_graphs import model_from_text, normal, ops, rewrite


def test_transposes_that_undo_each_other_vanish_and_others_compose():
    model = model_from_text("""
    g (float[2, 3, 4] x) => (float[2, 3, 4] y, float[3, 4, 2] z) {
        a = Transpose<perm = [2, 0, 1]>(x)
        b = Transpose<perm = [1, 2, 0]>(a)
        y = Relu(b)
        c = Transpose<perm = [1, 0, 2]>(x)
        z = Transpose<perm = [0, 2, 1]>(c)
    }""")
    after, (report,) = rewrite(model, ["layout"], {"x": normal(2, 3, 4)})
    assert [(node.op_type, list(node.input)) for node in after.graph.node] == [("Relu", ["x"]), ("Transpose", ["x"])]
    assert list(after.graph.node[1].attribute[0].ints) == [1, 2, 0]
    assert report.rewrites == 2


def test_reshape_of_a_reshape_is_one_unless_it_copies_a_dimension():
    model = model_from_text("""
    g (float[2, 3, 4] x) => (float[4, 6] y, float[6, 2, 2] z) <int64[2] flat = {6, 4}, int64[2] wide = {4, -1}, int64[3] copies = {0, 2, 2}> {
        a = Reshape(x, flat)
        y = Reshape(a, wide)
        b = Relu(x)
        c = Reshape(b, flat)
        z = Reshape(c, copies)
    }""")
    after, _ = rewrite(model, ["layout"], {"x": normal(2, 3, 4)})
    assert [(node.op_type, node.input[0]) for node in after.graph.node] == [
        ("Reshape", "x"),
        ("Relu", "x"),
        ("Reshape", "b"),
        ("Reshape", "c"),
    ]


def test_keys_transposed_through_a_merged_batch_are_one_transpose():
    model = model_from_text("""
    g (float[2, 5, 3, 4] k, float[2, 3, 5, 4] q) => (float[2, 3, 5, 5] y)
    <int64[3] merged = {-1, 5, 4}, int64[4] split = {2, 3, 4, 5}>
    {
        heads = Transpose<perm = [0, 2, 1, 3]>(k)
        a = Reshape(heads, merged)
        b = Transpose<perm = [0, 2, 1]>(a)
        c = Reshape(b, split)
        y = MatMul(q, c)
    }""")
    assert ops(model) == ["Transpose", "Reshape", "Transpose", "Reshape", "MatMul"]
    model.graph.node[3].name = "vision/layer.0/Reshape_2"
    after, _ = rewrite(model, ["layout"], {"k": normal(2, 5, 3, 4), "q": normal(2, 3, 5, 4, seed=1)})
    assert ops(after) == ["Transpose", "MatMul"]
    assert list(after.graph.node[0].attribute[0].ints) == [0, 2, 3, 1]
    assert (after.graph.node[0].name, after.graph.node[0].output[0]) == ("vision/layer.0/Transpose", "vision/layer.0/Transpose")


def test_a_split_that_is_not_the_merged_batch_stays():
    model = model_from_text("""
    g (float[2, 3, 5, 4] k) => (float[3, 2, 4, 5] y) <int64[3] merged = {6, 5, 4}, int64[4] split = {3, 2, 4, 5}> {
        a = Reshape(k, merged)
        b = Transpose<perm = [0, 2, 1]>(a)
        y = Reshape(b, split)
    }""")
    after, (report,) = rewrite(model, ["layout"], {"k": normal(2, 3, 5, 4)})
    assert ops(after) == ["Reshape", "Transpose", "Reshape"] and report.rewrites == 0


@pytest.mark.parametrize(
    ("perm", "merged", "split"),
    [
        ([0, 2, 1], [6, 4, 5], [2, 3, 5, 4]),  # other last axes than before, so not only the batch was merged
        ([0, 2, 1], [6, 5, 4], [2, 3, 2, 10]),
        ([0, 2, 1], [6, 5, 4], [6, 1, 4, 5]),
        ([1, 0, 2], [6, 5, 4], [2, 3, 4, 5]),
        ([1, 2, 0], [6, 5, 4], [2, 3, 4, 5]),
        ([2, 1, 0], [6, 5, 4], [2, 3, 4, 5]),
    ],
)
def test_only_a_batch_that_is_merged_and_split_again_is_taken_out(perm, merged, split):
    model = model_from_text(
        f"""g (float[2, 3, 5, 4] k) => (float{split} y) {{
            a = Reshape(k, merged)
            b = Transpose<perm = {perm}>(a)
            y = Reshape(b, split)
        }}""",
        merged=np.array(merged),
        split=np.array(split),
    )
    after, (report,) = rewrite(model, ["layout"], {"k": normal(2, 3, 5, 4)})
    assert ops(after) == ["Reshape", "Transpose", "Reshape"] and report.rewrites == 0


def test_a_transposed_input_that_was_not_reshaped_stays():
    model = model_from_text("""
    g (float[6, 5, 4] k) => (float[2, 3, 4, 5] y) <int64[4] split = {2, 3, 4, 5}> {
        a = Relu(k)
        b = Transpose<perm = [0, 2, 1]>(a)
        c = Reshape(b, split)
        d = Transpose<perm = [0, 2, 1]>(k)
        e = Reshape(d, split)
        y = Add(c, e)
    }""")
    after, (report,) = rewrite(model, ["layout"], {"k": normal(6, 5, 4)})
    assert ops(after) == ["Relu", "Transpose", "Reshape", "Transpose", "Reshape", "Add"] and report.rewrites == 0


def test_an_output_keeps_its_name_where_the_batch_is_taken_out_before_it():
    model = model_from_text("""
    g (float[2, 3, 5, 4] k) => (float[2, 3, 4, 5] y) <int64[3] merged = {6, 5, 4}, int64[4] split = {2, 3, 4, 5}> {
        a = Reshape(k, merged)
        b = Transpose<perm = [0, 2, 1]>(a)
        y = Reshape(b, split)
    }""")
    after, (report,) = rewrite(model, ["layout"], {"k": normal(2, 3, 5, 4)})
    assert [(node.op_type, list(node.output)) for node in after.graph.node] == [("Transpose", ["y"])] and report.rewrites == 1


def test_transposes_without_a_permutation_and_those_into_an_output_that_undo_each_other():
    model = model_from_text("""
    g (float[2, 3] x) => (float[2, 3] y, float[3, 2] z) {
        a = Transpose(x)
        y = Transpose(a)
        b = Relu(x)
        c = Transpose<perm = [1, 0]>(b)
        d = Transpose<perm = [1, 0]>(c)
        e = Transpose<perm = [1, 0]>(d)
        z = Abs(e)
    }""")
    after, _ = rewrite(model, ["layout"], {"x": normal(2, 3)})
    assert ops(after) == ["Transpose", "Transpose", "Relu", "Transpose", "Abs"]


def test_a_shape_with_a_zero_that_is_no_copy_is_one_reshape():
    model = model_from_text("""
    g (float[0, 6] x) => (float[3, 0] y) <int64[2] flat = {6, 0}, int64[2] wide = {3, 0}> {
        a = Reshape<allowzero = 1>(x, flat)
        y = Reshape<allowzero = 1>(a, wide)
    }""")
    after, _ = rewrite(model, ["layout"], {"x": normal(0, 6)})
    assert [(node.op_type, list(node.input)) for node in after.graph.node] == [("Reshape", ["x", "wide"])]


def test_a_reshape_to_a_shape_of_run_time_stays():
    model = model_from_text("""
    g (float[2, 6] x, int64[2] shape) => (float[n, m] y) <int64[2] flat = {6, 2}> {
        a = Reshape(x, flat)
        y = Reshape(a, shape)
    }""")
    after, (report,) = rewrite(model, ["layout"], {"x": normal(2, 6), "shape": np.array([3, 4])})
    assert ops(after) == ["Reshape", "Reshape"] and report.rewrites == 0


def test_what_changes_nothing_and_what_is_there_twice_count_one_each():
    model = model_from_text("""
    g (float[2, 3] x) => (float[2, 3] y) {
        a = Identity(x)
        b = Identity(a)
        c = Relu(b)
        d = Relu(b)
        y = Add(c, d)
    }""")
    after, (report,) = rewrite(model, ["layout"], {"x": normal(2, 3)})
    assert ops(after) == ["Relu", "Add"] and report.rewrites == 3
