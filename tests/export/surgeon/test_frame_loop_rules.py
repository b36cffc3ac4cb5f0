"""frame_loop: the rules, operator by operator, and what is left outside or stacked, on graphs of one product and one operator more."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from refusal import naming
from surgeon_graphs import model_from_text, normal, ops, rewrite

from export.surgeon import run_passes

WEIGHTS = {
    "w": normal(4, 4, seed=1),
    "one": normal(1, 4, 4, seed=2),
    "table": normal(4, 4, seed=3),
    "row": normal(4, seed=4),
    "kernel": normal(4, 4, 1, seed=5),
    "high": np.array(0.5, np.float32),
    "zero": np.array([0]),
    "at1": np.array([1]),
    "at2": np.array([2]),
    "at3": np.array([3]),
    "last": np.array([-1]),
    "front": np.array([-4]),
    "none": np.zeros(0, np.int64),
    "whole": np.array([4, 4, 4]),
    "twice": np.array([2, 1, 1, 1]),
    "turned": np.array([3, 1, 0, 2]),
}


def _body(model: onnx.ModelProto) -> list[str]:
    loops = [node for node in model.graph.node if node.op_type == "Loop"]
    return [node.op_type for node in next(a.g for a in loops[0].attribute if a.name == "body").node] if loops else []


def _model(body: str, out: str = "float[p, q, r] y", head: str = "float[4, 4, 4] x", opset: int = 20, **more) -> onnx.ModelProto:
    used = {
        name: value
        for name, value in (WEIGHTS | more).items()
        if name in body.replace("(", " ").replace(")", " ").replace(",", " ").split()
    }
    return model_from_text(f"g ({head}) => ({out}) {{ {body} }}", opset, **used)


@pytest.mark.parametrize(
    ("moved", "rank", "inside"),
    [
        ("Transpose<perm = [0, 2, 1]>(a)", 3, True),
        ("Transpose(a)", 3, False),  # all axes turned around
        ("Flatten(a)", 2, True),
        ("Flatten<axis = 1>(a)", 2, True),
        ("Flatten<axis = 2>(a)", 2, True),
        ("Flatten<axis = 0>(a)", 2, False),
        ("Expand(thin, whole)", 3, True),
        ("Expand(a, twice)", 4, False),
        ("Conv(a, kernel)", 3, True),
        ("MaxPool<kernel_shape = [2]>(a)", 3, True),
        ("AveragePool<kernel_shape = [2]>(a)", 3, True),
        ("Clip(a, , high)", 3, True),
        ("Where(yes, a, thin)", 3, True),
        ("Concat<axis = 1>(a, thin2)", 3, True),
        ("Concat<axis = -1>(a, a)", 3, True),
        ("Concat<axis = -3>(a, a)", 3, False),
        ("Concat<axis = 1>(a, whole_batch)", 3, False),  # of a matrix for each frame
        ("Gather<axis = 1>(a, turned)", 3, True),
        ("Gather<axis = -1>(a, turned)", 3, True),
        ("Gather<axis = -3>(a, turned)", 3, False),
        ("Softmax<axis = -3>(a)", 3, False),
        ("Softmax<axis = 1>(a)", 3, True),
        ("Unsqueeze(a, last)", 4, True),
        ("Unsqueeze(a, zero)", 4, False),
        ("Unsqueeze(a, front)", 4, False),
        ("Squeeze(thin, last)", 2, True),
        ("Squeeze(thin)", 2, False),  # of whatever axis is 1
        ("ReduceSum<keepdims = 0>(a, none)", 0, False),
        ("ReduceSum<keepdims = 0>(a)", 0, False),
        ("ReduceMax<keepdims = 0>(a, last)", 2, True),
        ("ReduceMin<keepdims = 0>(a, at1)", 2, True),
        ("ReduceMean<keepdims = 0>(a, at1)", 2, True),
        ("ReduceL2<keepdims = 0>(a, at1)", 2, True),
        ("Slice(a, at1, at3, at2)", 3, True),
        ("Slice(a, at1, at3, at2, at2)", 3, True),
        ("Slice(a, at1, at3, zero)", 3, False),
        ("Add(a, table)", 3, True),  # the same for every frame
        ("Add(a, row)", 3, True),
        ("Add(one, a)", 3, True),
        ("CumSum(a, at1)", 3, False),  # no rule: it may do anything
        ("ArgMax<axis = 0>(a)", 3, False),
    ],
)  # fmt: skip
def test_an_operator_goes_into_the_loop_where_it_keeps_frames_apart(moved, rank, inside):
    kind = "int64" if "ArgMax" in moved else "float"
    dims = f"[{', '.join('pqrs'[:rank])}]" if rank else ""
    model = _model(
        f"a = MatMul(x, w)\n thin = ReduceMax<keepdims = 1>(a, last)\n thin2 = ReduceMax<keepdims = 1>(a, at1)\n "
        f"yes = Greater(a, high)\n b = {moved}\n y = Identity(b)",
        f"{kind}{dims} y",
        whole_batch=normal(4, 4, 4, seed=6),
    )  # fmt: skip
    after, _ = rewrite(model, ["frame_loop"], {"x": normal(4, 4, 4)}, tolerance=1e-5)
    op = moved.split("(")[0].split("<")[0]
    count = ops(model).count(op)
    views = op in (
        "Flatten",
        "Squeeze",
        "Unsqueeze",
    )  # at the end they stay outside all the same, unless they leave the graph themselves
    assert _body(after).count("MatMul") == 1
    assert ("Identity" in ops(after)) == (not inside) or views
    assert (op in ops(after)) == (not inside) and (_body(after).count(op) >= count or not inside)


@pytest.mark.parametrize(
    ("call", "inside"), [("Attention(a, a, a)", True), ("Attention(a, a, a, mask)", False), ("Attention(a, one4, one4)", False)]
)
def test_attention_goes_into_the_loop_where_all_it_mixes_is_of_one_frame(call, inside):
    model = _model(
        f"a = MatMul(x, w)\n b = {call}\n y = Relu(b)", "float[4, 2, 4, 4] y", "float[4, 2, 4, 4] x", 23,
        mask=np.zeros((4, 4), np.float32), one4=normal(4, 2, 4, 4),
    )  # fmt: skip
    after, _ = run_passes(model, ["frame_loop"], graph="vision")
    assert ops(after) == (["Loop"] if inside else ["Loop", "Attention", "Relu"])


@pytest.mark.parametrize(
    ("head", "body", "left"),
    [
        ("float[1, 4, 4] x", "y = MatMul(x, w)", ["MatMul"]),
        ("float[2, 4, 4] x", "y = MatMul(x, w)", ["Loop"]),
        ("float[4] x", "a = Unsqueeze(x, zero)\n b = Relu(a)\n c = MatMul(b, w)\n y = Unsqueeze(c, zero)", ["Unsqueeze", "Relu", "MatMul", "Unsqueeze"]),
        ("float[4] x", "a = Unsqueeze(x, at1)\n b = Mul(a, row)\n c = MatMul(b, w)\n y = Unsqueeze(c, zero)", ["Unsqueeze", "Mul", "MatMul", "Unsqueeze"]),
        ("float[t, 4, 4] x", "y = MatMul(x, w)", ["MatMul"]),
        ("float[4, 4, 4] x, float[3, 4, 4] z", "y = MatMul(x, w)\n v = MatMul(z, w)", ["Loop", "MatMul"]),
        ("float[4, 4, 4] x, float[8, 4, 4] z", "y = MatMul(x, w)\n v = MatMul(z, w)", ["Loop", "MatMul"]),
        ("float[4, 4, 4] x, float[4, 4, 4] z", "y = MatMul(x, w)\n v = MatMul(z, w)", ["Loop"]),
        ("float[1, 4, 4] z, float[4, 4, 4] x", "v = MatMul(z, w)\n y = MatMul(x, w)", ["MatMul", "Loop"]),
    ],
)  # fmt: skip
def test_frames_are_those_of_the_first_input_that_has_several(head, body, left):
    v = ", float[m, n, o] v" if "v =" in body else ""
    model = _model(body, f"float[p, q, r] y{v}", head)
    feed = {"x": normal(4, 4, 4), "z": normal(8, 4, 4, seed=1)}
    shapes = {value.name: [dim.dim_value or 4 for dim in value.type.tensor_type.shape.dim] for value in model.graph.input}
    after, _ = rewrite(
        model, ["frame_loop"], {name: normal(*shape) for name, shape in shapes.items() if name in feed}, tolerance=1e-5
    )
    assert ops(after) == left


@pytest.mark.parametrize(
    ("head", "made", "moved"),
    [
        ("int8[1, 4, 4] q", "v = DequantizeLinear(q, high)", False),
        ("float s", "v = DequantizeLinear(bytes, s)", False),
        ("float[1, 4, 4] z", "v = Neg(z)", False),
        ("float s", "v = Neg(w)", False),  # what fold would have computed
        ("float s", "v = DequantizeLinear(bytes, high)", True),
    ],
)
def test_only_what_is_stored_is_read_in_the_loop(head, made, moved):
    model = _model(
        f"{made}\n a = MatMul(x, w)\n b = MatMul(a, v)\n y = Relu(b)", "float[4, 4, 4] y", f"float[4, 4, 4] x, {head}",
        bytes=np.arange(16, dtype=np.int8).reshape(4, 4),
    )  # fmt: skip
    after, (report,) = run_passes(model, ["frame_loop"], graph="vision")
    onnx.checker.check_model(after, full_check=True)
    maker = [made.split("= ")[1].split("(")[0]]
    assert ops(after) == (["Loop"] if moved else [*maker, "Loop", "MatMul", "Relu"]) and report.rewrites == (3 if moved else 1)


@pytest.mark.parametrize(
    ("body", "out", "left", "inside"),
    [
        ("a = MatMul(x, w)\n b = Flatten(a)\n c = Unsqueeze(b, at1)\n y = ReduceMax<keepdims = 0>(c, zero)", "float[p, q] y",
         ["Loop", "Flatten", "Unsqueeze", "ReduceMax"], ["MatMul"]),
        ("a = MatMul(x, w)\n b = Flatten(a)\n c = Relu(b)\n d = ReduceMax<keepdims = 1>(b, zero)\n y = Add(c, d)", "float[p, q] y",
         ["Loop", "ReduceMax", "Add"], ["MatMul", "Flatten", "Relu"]),
        ("a = MatMul(x, w)\n y = Flatten(a)", "float[p, q] y", ["Loop"], ["MatMul", "Flatten"]),
        ("a = MatMul(x, w)\n b = Relu(a)\n y = CumSum(b, zero0)", "float[p, q, r] y", ["Loop", "CumSum"], ["MatMul", "Relu"]),
    ],
    ids=["a chain of views", "a view that is read on both sides", "a view that leaves the graph", "no view"],
)  # fmt: skip
def test_views_at_the_end_of_the_loop_stay_outside(body, out, left, inside):
    model = _model(body, out, zero0=np.array(0))
    after, (report,) = rewrite(model, ["frame_loop"], {"x": normal(4, 4, 4)}, tolerance=1e-5)
    assert ops(after) == left and report.rewrites == len(inside)
    assert [op for op in _body(after)[3:] if op != "Squeeze"] == inside
    assert naming(len(_body(after)), len(left) - 1).match(report.note)


def test_tensors_that_leave_the_loop_are_stacked_by_their_rows_a_frame():
    model = _model(
        "rows = Reshape(x, flat)\n a = MatMul(rows, w)\n b = Relu(a)\n z = Reshape(b, whole)\n y = CumSum(z, zero0)",
        "float[16, 4] a, float[4, 4, 4] z, float[4, 4, 4] y",
        flat=np.array([16, 4]),
        zero0=np.array(0),
    )
    after, (report,) = rewrite(model, ["frame_loop"], {"x": normal(4, 4, 4)}, tolerance=1e-5)
    assert ops(after) == ["Loop", "Reshape", "CumSum"] and report.rewrites == 4
    assert after.graph.node[1].output[0] == "a", "its four rows a frame are merged"
    assert _body(after) == ["Identity", "Gather", "Unsqueeze", "Reshape", "MatMul", "Relu", "Reshape", "Squeeze"]


def test_what_stands_before_and_behind_the_loop_keeps_its_order():
    model = _model(
        "n = Neg(z)\n m = Relu(n)\n a = MatMul(x, w)\n o = Abs(m)\n b = Relu(a)\n c = ReduceMax<keepdims = 0>(b, zero)\n y = Add(c, o)",
        "float[p, q] y",
        "float[4, 4, 4] x, float[4] z",
    )
    after, _ = rewrite(model, ["frame_loop"], {"x": normal(4, 4, 4), "z": normal(4, seed=1)}, tolerance=1e-5)
    assert ops(after) == ["Neg", "Relu", "Loop", "Abs", "ReduceMax", "Add"]
