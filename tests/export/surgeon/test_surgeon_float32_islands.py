"""float32_norms: what belongs to an island and what does not, one operator at a time."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from surgeon_graphs import model_from_text, normal, ops, rewrite

from export.surgeon import float32_norms, run_passes
from export.surgeon.graph import graph_from_model
from runtime.core.errors import ExportError


def _compress(body: str, **constants: np.ndarray) -> onnx.ModelProto:
    model = model_from_text(body, **constants)
    for node in model.graph.node:
        node.name = f"compress/nsp/{node.name}"
    return model


HEAD = "float16[2, 8] x, float16[2, 1] z, int64[2] shape"


@pytest.mark.parametrize(
    ("behind", "expected"),
    [
        ("y = Mul(s, z)", ["Cast", "ReduceSum", "Cast", "Mul"]),  # z comes from outside
        ("y = Mul(z, s)", ["Cast", "ReduceSum", "Cast", "Mul"]),
        ("y = Mul(s, two)", ["Cast", "ReduceSum", "Mul", "Cast"]),
        ("y = Mul(two, s)", ["Cast", "ReduceSum", "Mul", "Cast"]),
        ("y = Mul(s, s)", ["Cast", "ReduceSum", "Mul", "Cast"]),
        ("y = Reshape(s, shape)", ["Cast", "ReduceSum", "Reshape", "Cast"]),  # a shape is no value that is computed with
        ("y = MatMul(s, two)", ["Cast", "ReduceSum", "Cast", "MatMul"]),
        ("y = Clip(s, , seven)", ["Cast", "ReduceSum", "Clip", "Cast"]),
        ("t = Cast<to = 1>(s)\n y = Cast<to = 10>(t)", ["Cast", "ReduceSum", "Cast", "Cast", "Cast"]),
        ("p = Pow(base, s)\n y = Cast<to = 10>(p)", ["Cast", "ReduceSum", "Cast", "Pow", "Cast"]),  # which is float32 as it is
    ],
)
def test_an_island_goes_on_while_its_value_meets_constants_alone(behind, expected):
    model = _compress(
        f"g ({HEAD}) => (float16[2, 1] y) <int64[1] axes = {{-1}}> {{ s = ReduceSum(x, axes)\n {behind} }}",
        two=np.full((1, 1), 2, np.float16),
        seven=np.array(7, np.float16),
        base=np.full((1, 1), 1.5, np.float32),
    )
    feed = {"x": normal(2, 8, dtype=np.float16), "z": normal(2, 1, dtype=np.float16, seed=1), "shape": np.array([2, 1])}
    after, _ = rewrite(model, ["float32_norms"], feed, precision="fp16", tolerance=1e-2)
    assert ops(after) == expected


@pytest.mark.parametrize(
    ("before", "expected"),
    [
        ("a = Mul(x, x)\n s = Mul(a, a)", ["Mul", "Cast", "Mul", "ReduceSum", "Cast"]),  # of a fourth power the last square
        ("a = Pow(x, two)\n s = Pow(a, two)", ["Cast", "Pow", "Pow", "ReduceSum", "Cast"]),
        ("a = Exp(x)\n s = Exp(a)", ["Cast", "Exp", "Exp", "ReduceSum", "Cast"]),
        ("a = Neg(x)\n s = Abs(a)", ["Neg", "Abs", "Cast", "ReduceSum", "Cast"]),
    ],
)
def test_what_stands_before_a_sum(before, expected):
    model = _compress(
        f"g ({HEAD}) => (float16[2, 1] y) <int64[1] axes = {{-1}}> {{ {before}\n y = ReduceSum(s, axes) }}",
        two=np.array(2, np.float16),
    )
    feed = {"x": normal(2, 8, dtype=np.float16) / 4, "z": normal(2, 1, dtype=np.float16), "shape": np.array([2, 1])}
    after, _ = rewrite(model, ["float32_norms"], feed, precision="fp16", tolerance=2e-2)
    assert ops(after) == expected


@pytest.mark.parametrize(
    ("stash", "rewrites", "values"), [("", 0, []), ("<stash_type = 1>", 0, [1]), ("<stash_type = 10>", 1, [1])]
)
def test_a_layer_norm_that_says_nothing_has_its_statistics_in_float32(stash, rewrites, values):
    model = model_from_text(
        f"g (float16[2, 8] x) => (float16[2, 8] y) {{ y = LayerNormalization{stash}(x, w) }}", w=np.ones(8, np.float16)
    )
    after, (report,) = run_passes(model, ["float32_norms"], graph="vision", precision="fp16")
    assert report.rewrites == rewrites and [a.i for a in after.graph.node[0].attribute if a.name == "stash_type"] == values


@pytest.mark.parametrize(
    ("op", "name", "refused"),
    [
        ("ReduceSum(x, axes)", "compress/nsp/sum", True),
        ("ReduceMax(x, axes)", "compress/nsp/max", False),
        ("ReduceSum(x, axes)", "llm/sum", True),
        ("Softmax(x)", "compress/nsp/softmax", True),
        ("Softmax(x)", "llm/softmax", False),
    ],
)
def test_a_norm_that_is_still_in_float16_is_an_error_that_names_it(op, name, refused):
    model = model_from_text(f"g (float16[2, 8] x) => (float16[a, b] y) <int64[1] axes = {{-1}}> {{ y = {op} }}")
    model.graph.node[0].name = name
    graph = graph_from_model(model)
    graph.name = "vision"
    if refused:
        with pytest.raises(ExportError, match=f"^vision: {name} reduces in float16; expected float32$"):
            float32_norms.check(graph)
    else:
        assert float32_norms.check(graph) == "0 norms and softmaxes in float32"
