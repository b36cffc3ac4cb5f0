"""float32_norms: in a float16 graph the norms and softmax of compression run in float32, by whole islands of operators."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx.reference import ReferenceEvaluator
from surgeon_graphs import model_from_text, normal, ops, rewrite, run

from export.surgeon import run_passes
from runtime.core.errors import ExportError

HALF, FLOAT = onnx.TensorProto.FLOAT16, onnx.TensorProto.FLOAT


def _compress(model: onnx.ModelProto, prefix: str = "compress/nsp/") -> onnx.ModelProto:
    for node in model.graph.node:
        node.name = prefix + node.name
    return model


def _type(model: onnx.ModelProto, name: str) -> int:
    inferred = onnx.shape_inference.infer_shapes(model, strict_mode=True)
    return next(v.type.tensor_type.elem_type for v in [*inferred.graph.value_info, *inferred.graph.output] if v.name == name)


def test_a_sum_of_squares_that_overflows_in_float16_is_right_afterwards():
    model = _compress(
        model_from_text(
            """
    g (float16[2, 3584] x) => (float16[2, 3584] y) <int64[1] axes = {-1}, float16[1] count, float16[1] eps> {
        square = Mul(x, x)
        sum = ReduceSum(square, axes)
        mean = Div(sum, count)
        safe = Add(mean, eps)
        root = Sqrt(safe)
        y = Div(x, root)
    }""",
            count=np.float16([3584]),
            eps=np.float16([0.001]),
        )
    )
    x = normal(2, 3584, dtype=np.float16) * np.float16(20)
    # ONNX Runtime's CPU kernels widen float16 themselves; the reference evaluator computes in the types that the graph says
    with np.errstate(over="ignore"):
        assert not ReferenceEvaluator(model).run(None, {"x": x})[0].any(), "the sum is infinite in float16"
    after, (report,) = run_passes(model, ["float32_norms"], graph="vision", precision="fp16")
    assert ops(after) == ["Cast", "Mul", "ReduceSum", "Div", "Add", "Sqrt", "Cast", "Div"]
    assert [node.name for node in after.graph.node if node.op_type == "Cast"] == ["x/Cast", "compress/nsp/Cast"]
    types = [_type(after, node.output[0]) for node in after.graph.node]
    assert types == [FLOAT] * 6 + [HALF] * 2
    wide = x.astype(np.float64)
    expected = wide / np.sqrt((wide**2).mean(-1, keepdims=True) + 0.001)
    for got in (ReferenceEvaluator(after).run(None, {"x": x})[0], run(after, {"x": x})[0]):
        np.testing.assert_allclose(got, expected, rtol=2e-3, atol=1e-3)
    assert report.rewrites == 5
    assert report.note == "1 norms and softmaxes in float32"


def test_norm_temperature_and_softmax_are_one_island_with_a_cast_at_each_end():
    model = _compress(
        model_from_text(
            """
    g (float16[3, 4, 16] x) => (float16[3, 16] y) <int64[1] axes = {-1}, float16[1] t, int64[3] shape = {3, 1, 4}, int64[1] one = {1}> {
        norm = ReduceL2<keepdims = 0>(x, axes)
        logits = Mul(norm, t)
        windows = Reshape(logits, shape)
        weights = Softmax<axis = -1>(windows)
        pooled = MatMul(weights, x)
        y = Squeeze(pooled, one)
    }""",
            t=np.float16([0.25]),
        )
    )
    after, (report,) = rewrite(
        model, ["float32_norms"], {"x": normal(3, 4, 16, dtype=np.float16)}, precision="fp16", tolerance=2e-3
    )
    assert ops(after) == ["Cast", "ReduceL2", "Mul", "Reshape", "Softmax", "Cast", "MatMul", "Squeeze"]
    assert report.rewrites == 4 and report.note == "2 norms and softmaxes in float32"


def test_a_norm_that_is_a_graph_output_keeps_its_type():
    model = _compress(model_from_text("g (float16[2, 8] x) => (float16[2, 1] y) <int64[1] axes = {-1}> { y = ReduceL2(x, axes) }"))
    after, _ = rewrite(model, ["float32_norms"], {"x": normal(2, 8, dtype=np.float16)}, precision="fp16", tolerance=1e-3)
    assert ops(after) == ["Cast", "ReduceL2", "Cast"]


def test_softmax_outside_compression_stays_and_a_spelled_out_rms_norm_does_not():
    model = _compress(
        model_from_text(
            """
    g (float16[2, 8] x) => (float16[2, 8] y) <float16 two, int64[1] axes = {-1}, float16 eps> {
        p = Softmax(x)
        square = Pow(x, two)
        mean = ReduceMean(square, axes)
        safe = Add(mean, eps)
        root = Sqrt(safe)
        scale = Reciprocal(root)
        n = Mul(x, scale)
        y = Add(p, n)
    }""",
            two=np.array(2, np.float16),
            eps=np.array(0.001, np.float16),
        ),
        "llm/layer.0/",
    )
    after, _ = rewrite(model, ["float32_norms"], {"x": normal(2, 8, dtype=np.float16)}, "llm/decoder", "fp16", tolerance=4e-3)
    assert ops(after) == ["Softmax", "Cast", "Pow", "ReduceMean", "Add", "Sqrt", "Reciprocal", "Cast", "Mul", "Add"]


def test_a_layer_norm_takes_its_statistics_in_float32():
    model = model_from_text(
        """
    g (float16[2, 8] x) => (float16[2, 8] y) <float16[8] w> {
        y = LayerNormalization<stash_type = 10>(x, w)
    }""",
        w=np.ones(8, np.float16),
    )
    after, (report,) = run_passes(model, ["float32_norms"], graph="vision", precision="fp16")
    assert after.graph.node[0].attribute[0].i == 1 and report.rewrites == 1


def test_statistics_and_an_island_are_counted_together():
    model = _compress(
        model_from_text(
            """
    g (float16[2, 8] x) => (float16[2, 1] y) <float16[8] w, int64[1] axes = {-1}> {
        a = LayerNormalization<stash_type = 10>(x, w)
        b = LayerNormalization<stash_type = 1>(a, w)
        c = Abs(b)
        y = ReduceL2(c, axes)
    }""",
            w=np.ones(8, np.float16),
        )
    )
    _, (report,) = run_passes(model, ["float32_norms"], graph="vision", precision="fp16")
    assert report.rewrites == 2


@pytest.mark.parametrize(
    ("before", "expected"),
    [
        ("s = Mul(x, x)", ["Cast", "Mul", "ReduceSum", "Cast"]),
        ("s = Pow(x, two)", ["Cast", "Pow", "ReduceSum", "Cast"]),
        ("s = Exp(x)", ["Cast", "Exp", "ReduceSum", "Cast"]),
        ("s = Mul(x, z)", ["Mul", "Cast", "ReduceSum", "Cast"]),  # no square, and no more than its sum can overflow
        ("s = Add(x, x)", ["Add", "Cast", "ReduceSum", "Cast"]),
    ],
)
@pytest.mark.parametrize("scope", ["compress/nsp/", "llm/layer.0/"])
def test_what_is_squared_for_a_sum_is_squared_in_float32(before, expected, scope):
    model = _compress(
        model_from_text(
            f"""
    g (float16[2, 8] x, float16[2, 8] z) => (float16[2, 1] y) <float16 two, int64[1] axes = {{-1}}> {{
        {before}
        y = ReduceSum(s, axes)
    }}""",
            two=np.array(2, np.float16),
        ),
        scope,
    )
    feed = {"x": normal(2, 8, dtype=np.float16), "z": normal(2, 8, dtype=np.float16, seed=1)}
    after, _ = rewrite(model, ["float32_norms"], feed, precision="fp16", tolerance=1e-2)
    assert ops(after) == expected


def test_a_value_that_leaves_the_graph_inside_an_island_is_float16_there_alone():
    model = _compress(
        model_from_text("""
    g (float16[2, 8] x) => (float16[2, 1] sum, float16[2, 1] y) <int64[1] axes = {-1}> {
        sum = ReduceSum(x, axes)
        y = Sqrt(sum)
    }""")
    )
    after, (report,) = rewrite(
        model, ["float32_norms"], {"x": np.abs(normal(2, 8, dtype=np.float16))}, precision="fp16", tolerance=1e-3
    )
    assert sorted(ops(after)) == ["Cast", "Cast", "Cast", "ReduceSum", "Sqrt"] and report.rewrites == 2
    root = next(node for node in after.graph.node if node.op_type == "Sqrt")
    assert _type(after, root.input[0]) == FLOAT


def test_a_float32_graph_has_nothing_to_move():
    model = _compress(model_from_text("g (float[2, 8] x) => (float[2, 1] y) <int64[1] axes = {-1}> { y = ReduceL2(x, axes) }"))
    after, (report,) = rewrite(model, ["float32_norms"], {"x": normal(2, 8)})
    assert ops(after) == ["ReduceL2"]
    assert (report.rewrites, report.note) == (0, "1 norms and softmaxes in float32")


def test_a_norm_of_unknown_type_is_an_error_that_names_it():
    model = _compress(
        model_from_text("""
    g (float16[2, 8] x) => (float16[2, 1] y) <int64[1] axes = {-1}> {
        a = Neg(x)
        y = ReduceL2(a, axes)
    }""")
    )
    del model.graph.value_info[:]
    with pytest.raises(ExportError, match=r"the type of a is not known, so compress/nsp/node_y may reduce in float16"):
        run_passes(model, ["float32_norms"], graph="vision", precision="fp16")
