"""gathernd and scatternd: constant indices become Slice, Gather and Concat."""

from __future__ import annotations

import numpy as np
import pytest
from surgeon_graphs import model_from_text, normal, ops, rewrite

from export.surgeon import gathernd, scatternd
from export.surgeon.graph import graph_from_model


@pytest.mark.parametrize(
    ("indices", "batch", "expected"),
    [
        ([[3], [0], [3]], 0, ["Gather"]),
        ([[1], [2], [3]], 0, ["Slice"]),
        ([[[2], [0]], [[-1], [1]]], 0, ["Gather"]),
        ([[[0], [1]], [[2], [3]]], 0, ["Gather"]),
        ([[2]], 0, ["Slice"]),
        ([[0, 4], [3, 0], [-1, -5]], 0, ["Reshape", "Gather"]),
        ([[1, 4], [2, 0]], 0, ["Reshape", "Slice"]),
        ([[0, 1, 2], [3, 4, 5]], 0, ["Reshape", "Gather"]),
        ([[4], [0], [-2], [1]], 1, ["Reshape", "Gather"]),
        ([[[4, 1], [0, 0]], [[1, -1], [2, 2]], [[0, 3], [4, 5]], [[1, 1], [1, 1]]], 1, ["Reshape", "Gather"]),
    ],
)
def test_gathernd_with_constant_indices(indices, batch, expected):
    indices = np.array(indices, np.int64)
    shape = [*indices.shape[:-1], *(4, 5, 6)[batch + indices.shape[-1] :]]
    dims = ", ".join(map(str, indices.shape))
    text = f"""
    g (float[4, 5, 6] x) => (float[{", ".join(map(str, shape))}] y) <int64[{dims}] at> {{
        a = GatherND<batch_dims = {batch}>(x, at)
        y = Relu(a)
    }}"""
    after, (report,) = rewrite(model_from_text(text, at=indices), ["gathernd"], {"x": normal(4, 5, 6)})
    assert ops(after) == [*expected, "Relu"]
    assert report.rewrites == 1 and report.note == "no GatherND"


def test_gathernd_with_indices_of_run_time_stays_and_is_reported():
    model = model_from_text("g (float[4, 5] x, int64[2, 1] at) => (float[2, 5] y) { y = GatherND(x, at) }")
    feed = {"x": normal(4, 5), "at": np.array([[3], [1]])}
    after, (report,) = rewrite(model, ["gathernd"], feed)
    assert ops(after) == ["GatherND"]
    assert report.rewrites == 0 and report.note.startswith("1 GatherND")


@pytest.mark.parametrize(
    ("indices", "expected"),
    [
        ([[1], [3]], ["Slice", "Slice", "Slice", "Slice", "Slice", "Concat"]),
        ([[2], [3]], ["Slice", "Slice", "Concat"]),
        ([[0], [-4]], ["Slice", "Slice", "Slice", "Slice", "Concat"]),
        ([[0], [1], [2], [3], [4], [5]], ["Concat"]),
        ([[5]], ["Slice", "Concat"]),
        ([[[2], [3]], [[4], [5]]], ["Reshape", "Slice", "Concat"]),
        ([[[5]], [[0]]], ["Reshape", "Slice", "Slice", "Slice", "Concat"]),
        ([[1, 0], [1, 1], [1, 2]], ["Reshape", "Slice", "Slice", "Concat", "Reshape"]),
        ([[5, 4], [0, -5]], ["Reshape", "Slice", "Slice", "Slice", "Concat", "Reshape"]),
    ],
)
def test_scatternd_of_whole_slices(indices, expected):
    indices = np.array(indices, np.int64)
    updates = [*indices.shape[:-1], *(6, 5, 2)[indices.shape[-1] :]]
    dims = ", ".join(map(str, indices.shape))
    text = f"""
    g (float[6, 5, 2] x, float[{", ".join(map(str, updates))}] new) => (float[6, 5, 2] y) <int64[{dims}] at> {{
        a = ScatterND(x, at, new)
        y = Relu(a)
    }}"""
    feed = {"x": normal(6, 5, 2), "new": normal(*updates, seed=1)}
    after, (report,) = rewrite(model_from_text(text, at=indices), ["scatternd"], feed)
    assert ops(after) == [*expected, "Relu"]
    assert report.rewrites == 1 and report.note == "no ScatterND"


def test_a_later_update_of_the_same_row_wins():
    text = "g (float[3, 2] x, float[2, 2] new) => (float[3, 2] y) <int64[2, 1] at> { y = ScatterND(x, at, new) }"
    after, _ = rewrite(
        model_from_text(text, at=np.array([[1], [1]])), ["scatternd"], {"x": normal(3, 2), "new": normal(2, 2, seed=1)}
    )
    assert "ScatterND" not in ops(after)


def test_many_scattered_rows_are_one_gather_over_data_and_updates():
    rows = np.random.default_rng(0).permutation(300)[:150].astype(np.int64)[:, None]
    text = "g (float[300, 2] x, float[150, 2] new) => (float[300, 2] y) <int64[150, 1] at> { y = ScatterND(x, at, new) }"
    after, _ = rewrite(model_from_text(text, at=rows), ["scatternd"], {"x": normal(300, 2), "new": normal(150, 2, seed=1)})
    assert ops(after) == ["Concat", "Gather"]


def test_where_nothing_is_picked_or_written_the_result_is_nothing_or_the_data():
    text = "g (float[3, 2] x) => (float[0, 2] y) <int64[0, 1] at> { a = GatherND(x, at)\n y = Relu(a) }"
    after, _ = rewrite(model_from_text(text, at=np.zeros((0, 1), np.int64)), ["gathernd"], {"x": normal(3, 2)})
    assert ops(after) == ["Gather", "Relu"]
    text = "g (float[3, 2] x, float[0, 2] new) => (float[3, 2] y) <int64[0, 1] at> { y = ScatterND(x, at, new) }"
    after, (report,) = rewrite(
        model_from_text(text, at=np.zeros((0, 1), np.int64)), ["scatternd"], {"x": normal(3, 2), "new": normal(0, 2)}
    )
    assert ops(after) == ["ScatterND"] and report.rewrites == 0


def test_indices_into_a_tensor_of_unknown_length_are_left_alone():
    text = "g (float[n, 2] x, float[1, 2] new) => (float[n, 2] y) <int64[1, 1] at = {1}> { y = ScatterND(x, at, new) }"
    after, (report,) = rewrite(model_from_text(text), ["scatternd"], {"x": normal(3, 2), "new": normal(1, 2, seed=1)})
    assert ops(after) == ["ScatterND"] and report.rewrites == 0


def test_offsets_count_from_the_end_and_along_the_batch():
    at = np.array([[[0, -1]], [[2, 1]]])  # [2, 1, 2] into the second and third axis of [2, 3, 4]
    np.testing.assert_array_equal(gathernd.offsets_of(at, (2, 3, 4), 1), [[0 * 12 + 0 * 4 + 3], [1 * 12 + 2 * 4 + 1]])
    at = np.array([[[0], [-1], [2]], [[1], [1], [0]]])  # [2, 3, 1] into the last axis
    np.testing.assert_array_equal(gathernd.offsets_of(at, (2, 3, 4), 2), [[0, 7, 10], [13, 17, 20]])
    np.testing.assert_array_equal(gathernd.offsets_of(at[0, :, :1], (5,)), [0, 4, 2])


def test_a_reduction_is_left_alone():
    text = 'g (float[3, 2] x, float[1, 2] new) => (float[3, 2] y) <int64[1, 1] at> { y = ScatterND<reduction = "add">(x, at, new) }'
    after, (report,) = rewrite(
        model_from_text(text, at=np.array([[1]])), ["scatternd"], {"x": normal(3, 2), "new": normal(1, 2, seed=1)}
    )
    assert ops(after) == ["ScatterND"] and report.rewrites == 0


@pytest.mark.parametrize(("rows", "expected"), [(64, ["Concat"]), (65, ["Concat", "Gather"])])
def test_more_than_64_runs_of_rows_are_a_table(rows, expected):
    at = np.arange(0, rows, 2)[:, None]  # every other row: each row is a run
    text = f"""
    g (float[{rows}, 2] x, float[{len(at)}, 2] new) => (float[{rows}, 2] y) <int64[{len(at)}, 1] at> {{
        y = ScatterND(x, at, new)
    }}"""
    feed = {"x": normal(rows, 2), "new": normal(len(at), 2, seed=1)}
    after, _ = rewrite(model_from_text(text, at=at), ["scatternd"], feed)
    assert [op for op in ops(after) if op != "Slice"] == expected


def test_what_is_left_is_said():
    text = "g (float[3, 2] x, float[1, 2] new, int64[1, 1] at) => (float[3, 2] y) { y = ScatterND(x, at, new) }"
    feed = {"x": normal(3, 2), "new": normal(1, 2, seed=1), "at": np.array([[1]])}
    after, (report,) = rewrite(model_from_text(text), ["scatternd"], feed)
    assert ops(after) == ["ScatterND"]
    assert report.note == "1 ScatterND with indices of run time, or a reduction, left"
    text = "g (float[n, 2] x) => (float[2, 2] y) <int64[2, 1] at = {0, 1}> { y = GatherND(x, at) }"
    after, (report,) = rewrite(model_from_text(text), ["gathernd"], {"x": normal(3, 2)})
    assert ops(after) == ["GatherND"]  # of a length that is not known
    assert report.note == "1 GatherND with indices of run time left"


@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize(
    ("name", "text", "shape"),
    [
        ("gathernd", "float[3, 5, 2] y) <int64[3, 1] at = {3, 0, 3}> { a = GatherND(x, at)\n y = Relu(a) }", [3, 5, 2]),
        ("gathernd", "float[1, 2, 2] y) <int64[1, 2, 2] at = {0, 4, 2, 1}> { a = GatherND(x, at)\n y = Relu(a) }", [1, 2, 2]),
        ("scatternd", "float[4, 5, 2] y) <int64[1, 1] at = {2}> { a = ScatterND(x, at, new)\n y = Relu(a) }", [4, 5, 2]),
    ],
)
def test_the_shape_of_the_result_is_known_afterwards(name, text, shape, known):
    graph = graph_from_model(model_from_text(f"g (float[4, 5, 2] x, float[1, 5, 2] new) => ({text}"))
    result = graph.nodes[0].outputs[0]
    assert result.shape == shape
    result.shape = shape if known else None
    assert {"gathernd": gathernd, "scatternd": scatternd}[name].run(graph) == 1
    assert graph.nodes[-2].outputs[0] is result and result.shape == shape
