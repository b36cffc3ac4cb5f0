"""batch: which Reshapes copy their first dimension, where shapes are constants and where they are put together at run time."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from refusal import naming
from surgeon_graphs import model_from_text, normal, ops, run

from export.surgeon import run_passes
from runtime.bundle import BATCH

CONSTANTS = "int64[1] one = {1}, int64[1] two = {2}, int64[2] ones = {1, 1}, int64[1] rest = {-1}, int64[1] eight = {8}, int64[2] flat = {1, -1}"


def _batched(
    body: str, head: str = "float[1, s, 8] x", out: str = "float[1, a, b] y"
) -> tuple[onnx.ModelProto, onnx.ModelProto, int, str]:
    model = model_from_text(f"g ({head}) => ({out}) <{CONSTANTS}> {{ {body} }}")
    before = onnx.ModelProto()
    before.CopyFrom(model)
    after, (report,) = run_passes(model, ["batch"], graph="llm/decoder.batch")
    return before, after, report.rewrites, report.note


@pytest.mark.parametrize(
    ("body", "rewrites", "left"),
    [
        ("n = Shape<start = 1, end = 2>(x)\n s = Concat<axis = 0>(one, n, rest)\n y = Reshape(x, s)", 1, ["Shape", "Concat", "Reshape"]),
        ("n = Shape<start = 1, end = 2>(x)\n s = Concat<axis = 0>(one, n, rest)\n a = Reshape<allowzero = 1>(x, s)\n b = Relu(a)\n y = Reshape(b, s)", 2,
         ["Shape", "Concat", "Reshape", "Relu", "Reshape"]),
        ("a = Reshape(x, flat)\n n = Shape<start = 1, end = 2>(x)\n s = Concat<axis = 0>(one, n, eight)\n y = Reshape(a, s)", 2,
         ["Reshape", "Shape", "Concat", "Reshape"]),
    ],
    ids=["put together", "one shape of two", "a constant"],
)  # fmt: skip
def test_a_shape_that_begins_with_the_batch_copies_it(body, rewrites, left):
    before, after, made, note = _batched(body)
    assert made == rewrites and ops(after) == left and naming(1, BATCH).match(note)
    onnx.checker.check_model(after)
    x = normal(3, 5, 8)
    (got,) = run(after, {"x": x})
    np.testing.assert_array_equal(got, np.concatenate([run(before, {"x": row[None]})[0] for row in x]))
    values = {tensor.name: numpy_helper.to_array(tensor).tolist() for tensor in after.graph.initializer}
    for node in after.graph.node:
        assert not [attribute for attribute in node.attribute if attribute.name == "allowzero"]
        if node.op_type == "Concat":
            assert values[node.input[0]] == [0] and len(node.input) == 3
    assert len(set(values)) == len(after.graph.initializer)


@pytest.mark.parametrize(
    "body",
    [
        "n = Shape<start = 1, end = 2>(x)\n s = Concat<axis = 0>(n, one, eight)\n y = Reshape(x, s)",
        "n = Shape<start = 0, end = 1>(x)\n s = Concat<axis = 0>(n, rest, eight)\n y = Reshape(x, s)",
        "s = Concat<axis = 0>(two, rest, two)\n a = Reshape(x, s)\n y = ReduceMax(a, first)",
        "s = Concat<axis = 0>(ones, rest)\n y = Reshape(x, s)",
        "n = Shape(x)\n s = Add(n, zero)\n y = Reshape(x, s)",
        "n = Shape(x)\n s = Mul(one, n)\n y = Reshape(x, s)",
    ],
    ids=["the length first", "the batch of run time", "another number", "two at once", "a sum", "a product"],
)
def test_a_shape_that_begins_with_something_else_stays(body):
    body = body.replace("zero", "shift")
    model = model_from_text(
        f"g (float[1, s, 8] x) => (float[1, a, b] y) <{CONSTANTS}> {{ {body} }}",
        shift=np.zeros(3, np.int64),
        first=np.zeros(1, np.int64),
    )
    names = [(node.op_type, list(node.input)) for node in model.graph.node]
    after, (report,) = run_passes(model, ["batch"], graph="llm/decoder.batch")
    assert report.rewrites == 0
    assert [(node.op_type, list(node.input)) for node in after.graph.node] == names


def test_a_row_of_one_number_and_a_shape_from_outside_stay():
    model = model_from_text(
        "g (float[1, 1] x, int64[1, 2] wanted, int64[1] size) => (float[1] y, float[1, 1] z, float[1] v) "
        "<int64[1] one = {1}> { y = Reshape(x, one)\n w = Squeeze(wanted)\n z = Reshape(x, w)\n v = Reshape(x, size) }"
    )
    after, (report,) = run_passes(model, ["batch"], graph="llm/decoder.batch")
    assert report.rewrites == 0
    assert [list(node.input) for node in after.graph.node] == [["x", "one"], ["wanted"], ["x", "w"], ["x", "size"]]


@pytest.mark.parametrize(
    ("head", "out"),
    [
        ("float[2, 4, 8] x", "float[1, 8, 8] y"),
        ("float[1, 4, 8] x, float[3] z", "float[1, 4, 8] y"),
        ("float[1, 4, 8] x, float z", "float[1, 4, 8] y"),
        ("float[b, 4, 8] x", "float[1, a, 8] y"),
    ],
    ids=["an input of two", "one of three besides", "a number besides", "an open batch"],
)
def test_a_graph_of_another_batch_is_left_as_it_is(head, out):
    before, after, rewrites, _ = _batched("s = Concat<axis = 0>(one, rest, eight)\n y = Reshape(x, s)", head, out)
    assert rewrites == 0
    assert [node.input for node in after.graph.node] == [node.input for node in before.graph.node]
    assert [value.type for value in after.graph.input] == [value.type for value in before.graph.input]


def test_what_was_inferred_for_a_batch_of_one_is_forgotten_and_every_other_dimension_is_kept():
    model = model_from_text(
        "g (float[1, 4, 8] x, float[1, n] z) => (float[1, 4, 8] y, float[1, n] w) { a = Relu(x)\n y = Neg(a)\n w = Abs(z) }"
    )
    assert [value.name for value in model.graph.value_info] == ["a"]
    after, (report,) = run_passes(model, ["batch"], graph="llm/decoder.batch")
    assert naming(2, BATCH).match(report.note)

    def dims(value):
        return [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim]

    assert [dims(value) for value in [*after.graph.input, *after.graph.output]] == [[BATCH, 4, 8], [BATCH, "n"]] * 2
    assert not [value for value in after.graph.value_info if dims(value)]
