"""Float16 arithmetic on a CPU: every node computes in float32 and its float16 output is rounded."""

from __future__ import annotations

import numpy as np
import onnx
import onnx.parser
import pytest
from onnx import numpy_helper
from onnx.reference import ReferenceEvaluator

from runtime.engine.onnx import OnnxEngine
from runtime.tools.float16 import frame_and_clip, rounded
from runtime.tools.float16_rows import _parts


def _model(text: str, opset: int = 20, **constants: np.ndarray) -> onnx.ModelProto:
    model = onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["" : {opset}]>\n{text}')
    model.graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in constants.items())
    return model


def _run(model: onnx.ModelProto, **feeds: np.ndarray) -> np.ndarray:
    (got,) = OnnxEngine.load(rounded(model).SerializeToString(), as_written=True).run(feeds).values()
    return got


def test_every_sum_is_rounded():
    model = _model("g (float16[1] x) => (float16[1] y) { a = Add(x, one) b = Add(a, one) y = Sub(b, x) }", one=np.float16([1]))
    x = np.float16([2048])  # the next float16 is 2050
    assert ReferenceEvaluator(model).run(None, {"x": x})[0] == 0
    assert _run(model, x=x) == 0
    plain = OnnxEngine.load(model.SerializeToString()).run({"x": x})["y"]
    assert plain == 2, "ONNX Runtime's CPU provider itself does not round: rounded() would not be needed"


def test_a_product_is_rounded_once_not_at_every_step():
    model = _model("g (float16[1, 3000] x) => (float16[1, 1] y) { y = MatMul(x, w) }", w=np.full((3000, 1), 1.001, np.float16))
    x = np.ones((1, 3000), np.float16)
    exact = 3000 * float(np.float16(1.001))
    assert _run(model, x=x) == np.float16(exact)


def test_an_overflow_is_infinite():
    model = _model("g (float16[1, 4] x) => (float16[1, 1] y) <float16[1, 1] s> { a = MatMul(x, w) y = Mul(a, s) }",
                   w=np.full((4, 1), 300, np.float16), s=np.full((1, 1), 0.01, np.float16))  # fmt: skip
    assert np.isinf(_run(model, x=np.full((1, 4), 300, np.float16)))


def test_what_the_graph_computes_in_float32_stays_float32():
    model = _model(
        """g (float16[1, 4] x) => (float16[1, 1] y) <float[1, 1] s> {
            wide = Cast<to = 1>(x)
            a = MatMul(wide, w)
            b = Mul(a, s)
            y = Cast<to = 10>(b)
        }""",
        w=np.full((4, 1), 300, np.float32),
        s=np.full((1, 1), 0.01, np.float32),
    )
    assert _run(model, x=np.full((1, 4), 300, np.float16)) == pytest.approx(3600)


def test_the_body_of_a_loop_rounds_too():
    model = _model(
        """g (float16[3, 2] x) => (float16[3, 2] y) <int64 count = {3}, bool always = {1}> {
            y = Loop(count, always) <body = body (int64 i, bool before) => (bool after, float16[2] row) {
                after = Identity(before)
                picked = Gather(x, i)
                up = Add(picked, big)
                row = Sub(up, big)
            }>
        }""",
        big=np.array(2048, np.float16),
    )
    x = np.float16([[0.6, 1.4], [3, 4.5], [0.4, 7]])
    np.testing.assert_array_equal(_run(model, x=x), (x + np.float16(2048)) - np.float16(2048))


@pytest.mark.parametrize("scale", [1.0, 100.0])
def test_an_attention_is_one_kernel_with_scores_in_float32(scale):
    model = _model(
        "g (float16[1, 2, 5, 8] q, float16[1, 2, 5, 8] k, float16[1, 2, 5, 8] v) => (float16[1, 2, 5, 8] y) { y = Attention(q, k, v) }",
        opset=24,
    )
    rng = np.random.default_rng(0)
    q, k, v = (rng.normal(0, scale, (1, 2, 5, 8)).astype(np.float16) for _ in range(3))
    wide = [one.astype(np.float64) for one in (q, k, v)]
    scores = wide[0] @ wide[1].swapaxes(2, 3) / 8**0.5
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    expected = (weights / weights.sum(-1, keepdims=True) @ wide[2]).astype(np.float16)
    np.testing.assert_allclose(_run(model, q=q, k=k, v=v), expected, rtol=1e-3, atol=1e-3 * scale)


def test_a_loop_over_frames_comes_apart_into_a_frame_and_a_clip():
    model = _model(
        """g (float16[3, 2] x) => (float16[2] y) <int64 count = {3}, bool always = {1}, float16[2, 2] w, int64[1] axis = {0}> {
            rows = Loop(count, always) <body = body (int64 i, bool before) => (bool after, float16[2] row) {
                after = Identity(before)
                picked = Gather(x, i)
                row = MatMul(picked, w)
            }>
            y = ReduceMax<keepdims = 0>(rows, axis)
        }""",
        w=np.float16([[1, 2], [3, 4]]),
    )
    frame, clip = frame_and_clip(model)
    x = np.float16([[1, 1], [0, 2], [5, 0]])
    np.testing.assert_array_equal(_run(frame, x=x), [[4, 6]])
    np.testing.assert_array_equal(_run(clip, rows=x), [5, 2])
    assert frame_and_clip(clip) is None
    assert [node.op_type for node in frame.graph.node] == ["Loop"] and [node.op_type for node in clip.graph.node] == ["ReduceMax"]
    assert [len(graph.graph.output) for graph in (frame, clip)] == [1, 1] and len(clip.graph.input) == 1
    assert (
        frame.graph.output[0].type.tensor_type.elem_type
        == clip.graph.input[0].type.tensor_type.elem_type
        == onnx.TensorProto.FLOAT16
    )
    assert model.graph.output[0].name == "y" and len(model.graph.node) == 2  # which stays as it is


def test_what_a_clip_needs_beside_its_features_is_kept_and_nothing_more():
    model = _model(
        """g (float16[3, 2] x) => (float16[2] y) <int64 count = {3}, bool always = {1}, int64[1] axis = {0}> {
            doubled = Add(w, w)
            other = Neg(w)
            rows = Loop(count, always) <body = body (int64 i, bool before) => (bool after, float16[2] row) {
                after = Identity(before)
                picked = Gather(x, i)
                row = Add(picked, doubled)
            }>
            largest = ReduceMax<keepdims = 0>(rows, axis)
            y = Add(largest, other)
        }""",
        w=np.float16([1, 2]),
    )
    frame, clip = frame_and_clip(model)
    assert [node.op_type for node in frame.graph.node] == ["Add", "Neg", "Loop"]
    assert [node.op_type for node in clip.graph.node] == ["Neg", "ReduceMax", "Add"]
    x = np.float16([[1, 1], [0, 2], [5, 0]])
    np.testing.assert_array_equal(_run(frame, x=x), [[3, 5]])
    np.testing.assert_array_equal(_run(clip, rows=x + np.float16([2, 4])), [6, 4])


LOOP = """{name} = Loop(count, always) <body = body (int64 i, bool before) => (bool after, float16[2] row) {{
    after = Identity(before)
    row = Gather(x, i)
}}>"""


@pytest.mark.parametrize("loops", [["one"], ["one", "two"]])
def test_only_one_loop_comes_apart(loops):
    body = "".join(LOOP.format(name=name) for name in loops)
    total = f"y = Add({loops[0]}, {loops[-1]})"
    model = _model(f"g (float16[3, 2] x) => (float16[3, 2] y) <int64 count = {{3}}, bool always = {{1}}> {{ {body} {total} }}")
    assert (frame_and_clip(model) is None) == (len(loops) == 2)


def test_what_moves_is_left_alone_and_what_computes_is_widened_once():
    model = _model(
        "g (float16[2] x, float[2] z) => (float16[2] y, float[2] u) { a = Add(x, x) b = Neg(x) c = Identity(a) y = Mul(b, c) u = Neg(z) }"
    )
    before = model.SerializeToString()
    got = rounded(model)
    assert [node.op_type for node in got.graph.node] == [
        "Cast", "Add", "Cast", "Neg", "Cast", "Identity", "Cast", "Cast", "Mul", "Cast", "Neg",
    ]  # fmt: skip
    casts = [(node.input[0], node.output[0], node.attribute[0].i) for node in got.graph.node if node.op_type == "Cast"]
    assert casts == [
        ("x", "x/float32", 1), ("a/exact", "a", 10), ("b/exact", "b", 10), ("b", "b/float32", 1), ("c", "c/float32", 1), ("y/exact", "y", 10),
    ]  # fmt: skip
    assert model.SerializeToString() == before


def test_a_frame_and_a_clip_are_looked_for_where_a_bundle_has_them(tmp_path):
    for name, found in (("", ["whole"]), (".loop", ["whole"]), (".compressor", ["whole"]), (".encoder", ["encoder", "compressor"])):
        graph = name.removeprefix(".") or "whole"
        onnx.save(_model(f"{graph} (float16[1] x) => (float16[1] y) {{ y = Neg(x) }}"), tmp_path / f"vision{name}.onnx")
        assert [model.graph.name for model in _parts(tmp_path)] == found  # this Loop graph has no Loop to take apart
