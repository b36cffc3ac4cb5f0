"""frame_loop: encoder and projector run frame by frame in a Loop, with the numbers of the batch."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from surgeon_graphs import model_from_text, normal, ops, rewrite, run

from export.surgeon import run_passes
from export.surgeon.graph import drop_outputs

T = 5


def _body(model: onnx.ModelProto) -> onnx.GraphProto:
    (loop,) = [node for node in model.graph.node if node.op_type == "Loop"]
    return next(attribute.g for attribute in loop.attribute if attribute.name == "body")


def _body_ops(model: onnx.ModelProto) -> list[str]:
    return [node.op_type for node in _body(model).node]


ENCODER = f"""
g (float[{T}, 3, 4, 4] x) => (float[4, 6] y, float[{T}, 4, 8] features)
<float[8, 3, 2, 2] patch, int64[3] flat = {{ {T}, 8, -1 }}, float[1, 4, 8] position, float[8] scale, float[8, 8] w, float[8, 6] p,
 int64[4] heads = {{ {T}, 4, 2, 4 }}, int64[3] joined = {{ -1, 4, 8 }}, int64[2] rows = {{ {4 * T}, 8 }}, int64[1] some = {{2}},
 int64[2] axes = {{0, 1}}, int64[1] zero = {{0}}, int64[1] one = {{1}}, int64[1] end = {{4}}, int64[4] grid = {{ {T}, 2, 2, 6 }}>
{{
    conv = Conv<strides = [2, 2]>(x, patch)
    merged = Reshape(conv, flat)
    patches = Transpose<perm = [0, 2, 1]>(merged)
    embedded = Add(patches, position)
    normed = LayerNormalization(embedded, scale)
    q = MatMul(normed, w)
    split = Reshape(q, heads)
    queries = Transpose<perm = [0, 2, 1, 3]>(split)
    keys = Transpose<perm = [0, 2, 3, 1]>(split)
    scores = MatMul(queries, keys)
    weights = Softmax(scores)
    mixed = MatMul(weights, queries)
    back = Transpose<perm = [0, 2, 1, 3]>(mixed)
    all_heads = Reshape(back, joined)
    features = Add(all_heads, embedded)
    table = Reshape(features, rows)
    projected = MatMul(table, p)
    squares = Reshape(projected, grid)
    frame = Gather<axis = 0>(squares, some)
    picked = ReduceSum<keepdims = 0>(frame, axes)
    total = ReduceSum<keepdims = 0>(squares, axes)
    mean = Add(picked, total)
    doubled = Concat<axis = 0>(mean, picked)
    y = Slice(doubled, zero, end, zero, one)
}}"""


def _encoder() -> onnx.ModelProto:
    weights = {"patch": (8, 3, 2, 2), "position": (1, 4, 8), "scale": (8,), "w": (8, 8), "p": (8, 6)}
    return model_from_text(ENCODER, **{name: normal(*shape, seed=i) for i, (name, shape) in enumerate(weights.items(), 1)})


def test_encoder_and_projector_go_into_the_loop_and_what_mixes_frames_stays_out():
    model = _encoder()
    after, (report,) = rewrite(model, ["frame_loop"], {"x": normal(T, 3, 4, 4)}, tolerance=1e-5)
    assert ops(after) == ["Loop", "Reshape", "Reshape", "Gather", "ReduceSum", "ReduceSum", "Add", "Concat", "Slice"]
    assert report.rewrites == 17
    assert _body_ops(after)[:3] == ["Identity", "Gather", "Unsqueeze"]
    assert _body_ops(after)[3:20] == ops(model)[:17]
    loop = after.graph.node[0]
    assert list(loop.output) == ["features", "projected/stacked"], "the projector's 4 rows a frame are stacked, then merged"


def test_inside_the_loop_every_tensor_is_of_one_frame():
    after, _ = run_passes(_encoder(), ["frame_loop"], graph="vision")
    body = _body(after)
    shapes = {value.name: [dim.dim_value for dim in value.type.tensor_type.shape.dim] for value in body.value_info}
    assert shapes["conv"] == [1, 8, 2, 2]
    assert shapes["scores"] == [1, 2, 4, 4]
    assert shapes["table"] == [4, 8]
    assert not any(T in shape or 4 * T in shape for shape in shapes.values())


def test_weights_stay_in_the_outer_graph_once():
    after, _ = run_passes(_encoder(), ["frame_loop"], graph="vision")
    assert not _body(after).initializer
    names = [tensor.name for tensor in after.graph.initializer]
    assert len(set(names)) == len(names) and {"patch", "w", "p"} <= set(names)


def test_dropped_outputs_are_no_longer_stacked():
    after, _ = run_passes(_encoder(), ["frame_loop"], graph="vision")
    final = drop_outputs(after, {"features"})
    onnx.checker.check_model(final, full_check=True)
    assert [output.name for output in final.graph.output] == ["y"]
    assert list(final.graph.node[0].output) == ["projected/stacked"]
    assert len(_body(final).node) == len(_body(after).node) - 1
    feed = {"x": normal(T, 3, 4, 4)}
    np.testing.assert_array_equal(run(final, feed)[0], run(after, feed)[0])


def test_a_dropped_output_that_something_reads_keeps_its_type():
    model = model_from_text("g (float[2, 3] x) => (float[2, 3] a, float[2, 3] y) { a = Neg(x)\n y = Relu(a) }")
    final = drop_outputs(model, {"a"})
    assert ops(final) == ["Neg", "Relu"] and [value.name for value in final.graph.value_info] == ["a"]


def test_the_compress_scope_stays_out_even_where_it_keeps_frames_apart():
    model = model_from_text(
        "g (float[3, 4, 8] x) => (float[3, 4, 1] y) <float[8, 8] w, int64[1] last = {-1}> { a = MatMul(x, w)\n y = ReduceL2(a, last) }",
        w=normal(8, 8),
    )
    model.graph.node[1].name = "compress/nsp/ReduceL2"
    after, (report,) = rewrite(model, ["frame_loop"], {"x": normal(3, 4, 8)}, tolerance=1e-6)
    assert ops(after) == ["Loop", "ReduceL2"] and report.rewrites == 1


@pytest.mark.parametrize(
    "mixes",
    [
        "b = Softmax<axis = 0>(a)",
        "b = Transpose<perm = [1, 0, 2]>(a)",
        "b = CumSum(a, zero)",
        "b = Add(a, along)",
        "b = MatMul(batch, a)",
        "b = Slice(a, back, zero, zero, back)",
        "b = Slice(a, starts, ends, axes, steps)",  # along frames and along another axis
        "b = Gather<axis = 0>(a, order)",
        "b = Gather(a, order)",  # which is along the first axis
        "b = LayerNormalization<axis = 0>(a, along)",
    ],
)
def test_an_operator_that_mixes_or_tells_frames_apart_stays_out(mixes):
    model = model_from_text(
        f"""
    g (float[4, 4, 4] x) => (float[4, 4, 4] y)
    <float[4, 4] w, float[4, 4, 4] along, float[4, 4, 4] batch, int64 zero = {{0}}, int64[1] back = {{-1}}, int64[4] order = {{3, 1, 0, 2}}> {{
        a = MatMul(x, w)
        {mixes.replace("zero, zero", "end, one")}
        y = Relu(b)
    }}""",
        w=normal(4, 4),
        along=normal(4, 4, 4),
        batch=normal(4, 4, 4, seed=3),
        end=np.array([-5]),
        one=np.array([0]),
        starts=np.array([-1, 0]),
        ends=np.array([-5, 4]),
        axes=np.array([0, 1]),
        steps=np.array([-1, 1]),
    )
    after, (report,) = rewrite(model, ["frame_loop"], {"x": normal(4, 4, 4)}, tolerance=1e-5)
    assert ops(after) == ["Loop", mixes.split("= ", 1)[1].split("<")[0].split("(")[0], "Relu"]
    assert report.rewrites == 1


@pytest.mark.parametrize(
    ("gemm", "after"),
    [
        ("Gemm(a, w)", ["Loop"]),
        ("Gemm(a, w, row)", ["Loop"]),
        ("Gemm(a, w, one_row)", ["Loop"]),
        ("Gemm<transB = 1>(a, w)", ["Loop"]),
        ("Gemm<transA = 1>(a, w)", ["Loop", "Gemm", "Relu"]),  # its rows are the columns of all frames
        ("Gemm(a, w, rows)", ["Loop", "Gemm", "Relu"]),  # each frame adds a row of its own
        ("Gemm(a, w, column)", ["Loop", "Gemm", "Relu"]),  # and here a number of its own
    ],
)
def test_a_gemm_goes_into_the_loop_where_its_rows_are_those_of_a_frame(gemm, after):
    model = model_from_text(
        f"g (float[4, 4] x) => (float[4, 4] y) {{ a = MatMul(x, w)\n b = {gemm}\n y = Relu(b) }}",
        w=normal(4, 4),
        row=normal(4, seed=1),
        one_row=normal(1, 4, seed=1),
        rows=normal(4, 4, seed=2),
        column=normal(4, 1, seed=4),
    )
    assert ops(rewrite(model, ["frame_loop"], {"x": normal(4, 4, seed=3)}, tolerance=1e-5)[0]) == after


def test_frames_that_are_put_behind_each_other_stay_out():
    model = model_from_text(
        "g (float[4, 2, 3] x) => (float[8, 2, 3] y) { a = MatMul(x, w)\n b = Concat<axis = 0>(a, a)\n y = Relu(b) }", w=normal(3, 3)
    )
    after, _ = rewrite(model, ["frame_loop"], {"x": normal(4, 2, 3)}, tolerance=1e-5)
    assert ops(after) == ["Loop", "Concat", "Relu"]


def test_frames_that_are_split_along_the_first_axis_stay_out():
    model = model_from_text(
        """
    g (float[4, 2, 3] x) => (float[4, 3] y) <int64[2] rows = {8, 3}> {
        a = MatMul(x, w)
        b = Reshape(a, rows)
        c, d = Split<num_outputs = 2>(b)
        y = Add(c, d)
    }""",
        w=normal(3, 3),
    )
    after, _ = rewrite(model, ["frame_loop"], {"x": normal(4, 2, 3)}, tolerance=1e-5)
    assert ops(after) == ["Loop", "Reshape", "Split", "Add"]


@pytest.mark.parametrize("norm", ["Softmax(a)", "LayerNormalization(a, scale)", "RMSNormalization(a, scale)"])
def test_what_goes_along_the_last_axis_when_none_is_named_goes_into_the_loop(norm):
    model = model_from_text(
        f"g (float[4, 6] x) => (float[4, 6] y) {{ a = MatMul(x, w)\n b = {norm}\n y = Relu(b) }}",
        opset=23,
        w=normal(6, 6),
        scale=normal(6),
    )
    assert ops(rewrite(model, ["frame_loop"], {"x": normal(4, 6)}, tolerance=1e-5)[0]) == ["Loop"]


@pytest.mark.parametrize(("other", "before"), [("other", []), ("w", ["DequantizeLinear"])])
def test_what_dequantizes_a_weight_is_where_the_weight_is_read(other, before):
    model = model_from_text(
        f"""
    g (float[4, 2, 3] x) => (float[2, 3] y) <int8[2, 3] q, float step = {{0.5}}, int64[1] frames = {{0}}> {{
        w = DequantizeLinear(q, step)
        a = MatMul(x, m)
        b = Add(a, w)
        c = ReduceMax<keepdims = 0>(b, frames)
        y = Mul(c, {other})
    }}""",
        q=np.arange(-3, 3, dtype=np.int8).reshape(2, 3),
        m=normal(3, 3),
        other=normal(2, 3),
    )
    after, (report,) = rewrite(model, ["frame_loop"], {"x": normal(4, 2, 3)}, tolerance=1e-5)
    assert ops(after) == [*before, "Loop", "ReduceMax", "Mul"] and report.rewrites == 2
    assert _body_ops(after)[3:6] == ["MatMul", "DequantizeLinear", "Add"]


@pytest.mark.parametrize("joined", ["MatMul(a, b)", "Add(a, b)", "Add(b, a)", "Add(b, shifted)"])
def test_a_matrix_of_all_frames_beside_each_frame_stays_out(joined):
    model = model_from_text(
        f"""
    g (float[4, 4, 4] x, float[4, 4] z) => (float[4, 4, 4] y) {{
        a = MatMul(x, w)
        shifted = Add(a, one)
        b = MatMul(z, w)
        c = {joined}
        y = Add(c, shifted)
    }}""",
        w=normal(4, 4),
        one=normal(1, 4, 4, seed=2),
    )
    after, (report,) = rewrite(model, ["frame_loop"], {"x": normal(4, 4, 4), "z": normal(4, 4, seed=1)}, tolerance=1e-5)
    assert ops(after) == ["Loop", joined.split("(")[0], "Add"] and report.rewrites == 3


@pytest.mark.parametrize(
    ("product", "inside"),
    [
        ("MatMul(a, w)", True),
        ("MatMul(a, one)", True),
        ("MatMul(a, batch)", False),  # each frame by a matrix of its own
        ("MatMul(w, a)", True),
        ("MatMul(one, a)", True),
        ("MatMul(batch, a)", False),
        ("MatMul(a, a)", True),
        ("MatMul(w, rows)", False),  # a frame is a row here, and these are sums over frames
        ("MatMul(rows, rows)", False),
        ("MatMul(sums, w)", False),  # a frame is a number
        ("MatMul(w, sums)", False),
        ("MatMul(rows, w)", True),
    ],
)
def test_a_product_goes_into_the_loop_where_it_is_one_of_each_frame(product, inside):
    shape = "4, 4, 4" if "a" in product[7:-1].split(", ") else "4" if "sums" in product else "4, 4"
    model = model_from_text(
        f"""
    g (float[4, 4, 4] x) => (float[{shape}] y) <int64[1] last = {{-1}}> {{
        a = MatMul(x, w)
        rows = ReduceSum<keepdims = 0>(a, last)
        sums = ReduceMax<keepdims = 0>(rows, last)
        b = {product}
        y = Relu(b)
    }}""",
        w=normal(4, 4),
        one=normal(1, 4, 4, seed=1),
        batch=normal(4, 4, 4, seed=2),
    )
    after, _ = rewrite(model, ["frame_loop"], {"x": normal(4, 4, 4, seed=3)}, tolerance=1e-5)
    assert [op for op in ops(after) if op in ("MatMul", "Relu")] == ([] if inside else ["MatMul", "Relu"])


@pytest.mark.parametrize(
    ("moved", "shape", "inside"),
    [
        ("ReduceSum<keepdims = 0>(a, at2)", (4, 4), True),
        ("ReduceSum<keepdims = 0>(a, last)", (4, 4), True),
        ("ReduceSum<keepdims = 0>(a, both)", (4,), True),
        ("ReduceSum<keepdims = 0>(a, first)", (4, 4), False),  # over all frames
        ("ReduceSum<keepdims = 0>(a, across)", (4,), False),
        ("Unsqueeze(a, at2)", (4, 4, 1, 4), True),
        ("Unsqueeze(a, at3)", (4, 4, 4, 1), True),
        ("Squeeze(thin, at2)", (4, 4), True),
        ("Slice(a, at2, at3, at2)", (4, 4, 1), True),
        ("Slice(a, at2, at3)", (1, 4, 4), False),  # the third frame
    ],
)
def test_what_works_along_axes_goes_into_the_loop_where_that_of_the_frames_is_none_of_them(moved, shape, inside):
    model = model_from_text(
        f"""
    g (float[4, 4, 4] x) => (float[{", ".join(map(str, shape))}] y)
    <int64[1] at2 = {{2}}, int64[1] at3 = {{3}}, int64[1] last = {{-1}}, int64[1] first = {{-3}}, int64[2] both = {{1, 2}},
     int64[2] across = {{0, 1}}>
    {{
        a = MatMul(x, w)
        thin = ReduceMax<keepdims = 1>(a, last)
        b = {moved}
        y = Relu(b)
    }}""",
        w=normal(4, 4),
    )
    after, _ = rewrite(model, ["frame_loop"], {"x": normal(4, 4, 4, seed=1)}, tolerance=1e-5)
    assert ("Relu" in _body_ops(after), "Relu" in ops(after)) == (inside, not inside)


def test_a_weight_read_inside_and_outside_is_there_once():
    model = model_from_text(
        """
    g (float[4, 2, 2] x) => (float[2, 2] y) <float[2, 2] w, int64[1] first = {0}> {
        a = MatMul(x, w)
        b = Softmax<axis = 0>(a)
        c = MatMul(b, w)
        y = ReduceMax<keepdims = 0>(c, first)
    }""",
        w=normal(2, 2),
    )
    after, _ = rewrite(model, ["frame_loop"], {"x": normal(4, 2, 2)}, tolerance=1e-5)
    assert ops(after) == ["Loop", "Softmax", "MatMul", "ReduceMax"]
    assert [tensor.name for tensor in after.graph.initializer].count("w") == 1


def test_a_graph_without_a_framed_product_is_left_as_it_is():
    model = model_from_text("g (float[4, 3] x) => (float[4, 3] y) { y = Relu(x) }")
    after, (report,) = rewrite(model, ["frame_loop"], {"x": normal(4, 3)})
    assert ops(after) == ["Relu"] and report.rewrites == 0


def test_the_loop_is_not_among_the_default_passes():
    _, reports = run_passes(_encoder(), graph="vision")
    assert "frame_loop" not in {report.name for report in reports}
