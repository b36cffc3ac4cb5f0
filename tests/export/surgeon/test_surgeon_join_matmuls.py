"""join_matmuls: products that read one tensor become one, with the same numbers."""

from __future__ import annotations

import onnx
import pytest
from surgeon_graphs import counts, model_from_text, normal, rewrite

BIASED = """
g (float[3, 4] x) => (float[3, 5] a, float[3, 2] b, float[3, 5] c)
<float[4, 5] wa, float[4, 2] wb, float[4, 5] wc, float[5] ba, float[2] bb, float[5] bc>
{
    pa = MatMul(x, wa)
    sa = Add(pa, ba)
    a = Abs(sa)
    pb = MatMul(x, wb)
    sb = Add(bb, pb)
    b = Relu(sb)
    pc = MatMul(x, wc)
    sc = Add(pc, bc)
    c = Tanh(sc)
}"""
SHAPES = {"wa": (4, 5), "wb": (4, 2), "wc": (4, 5), "ba": (5,), "bb": (2,), "bc": (5,)}
FEED = {"x": normal(3, 4)}


def _model(text: str) -> onnx.ModelProto:
    return model_from_text(text, **{name: normal(*shape, seed=i) for i, (name, shape) in enumerate(SHAPES.items(), 1)})


@pytest.mark.parametrize("bias", [True, False])
def test_three_products_become_one(bias):
    text = BIASED if bias else BIASED.replace("sc = Add(pc, bc)", "sc = Sub(pc, bc)")
    rewritten, (report,) = rewrite(_model(text), ["join_matmuls"], FEED, tolerance=1e-5)
    assert report.rewrites == 3
    made = counts(rewritten)
    assert made["MatMul"] == made["Split"] == 1
    assert made.get("Add") == (1 if bias else 2)


def test_a_product_that_is_an_output_stays_alone():
    text = BIASED.replace("    sa = Add(pa, ba)\n    a = Abs(sa)\n", "    a = Add(pa, ba)\n")
    assert rewrite(_model(text), ["join_matmuls"], FEED, tolerance=1e-5)[1][0].rewrites == 2


def test_one_product_stays_alone():
    text = "g (float[3, 4] x) => (float[3, 5] a) { a = MatMul(x, wa) }"
    assert rewrite(_model(text), ["join_matmuls"], FEED)[1][0].rewrites == 0


@pytest.mark.parametrize(
    ("names", "joined"),
    [
        (["llm/layer.0/q/MatMul", "llm/layer.0/k/MatMul", "llm/layer.0/v/MatMul"], "llm/layer.0/q+k+v/MatMul"),
        (["q/MatMul", "k/MatMul", "v/MatMul"], "q+k+v/MatMul"),
        (["llm/layer.0/q/MatMul", "llm/layer.1/k/MatMul", "llm/layer.0/v/MatMul"], "llm/layer.0/q/MatMul/joined"),
        (["one", "two", "three"], "one/joined"),
    ],
)
def test_the_product_is_called_after_those_that_it_joins(names, joined):
    model = _model(BIASED)
    for node, name in zip([node for node in model.graph.node if node.op_type == "MatMul"], names, strict=True):
        node.name = name
    rewritten, _ = rewrite(model, ["join_matmuls"], FEED, tolerance=1e-5)
    assert [node.name for node in rewritten.graph.node if node.op_type == "MatMul"] == [joined]
