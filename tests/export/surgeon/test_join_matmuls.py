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


def test_only_products_of_the_same_tensor_with_a_stored_matrix_are_joined():
    text = """
    g (float[3, 4] x, float[4, 2] given) => (float[3, 2] a, float[3, 5] b, float[3, 2] c, float[2, 4] d, float[1, 3, 2] e, float[4, 2] f)
    <float[4, 2] wb, float[4, 5] wc, float[2, 3] rows, float[1, 4, 2] deep, float[3, 2] turned>
    {
        pa = MatMul(x, wb)
        a = Abs(pa)
        pb = MatMul(x, wc)
        b = Abs(pb)
        pc = MatMul(x, given)
        c = Abs(pc)
        pd = MatMul(rows, x)
        d = Abs(pd)
        pe = MatMul(x, deep)
        e = Abs(pe)
        xt = Transpose<perm = [1, 0]>(x)
        pf = MatMul(xt, turned)
        f = Abs(pf)
    }"""
    shapes = {"wb": (4, 2), "wc": (4, 5), "rows": (2, 3), "deep": (1, 4, 2), "turned": (3, 2)}
    model = model_from_text(text, **{name: normal(*shape, seed=i) for i, (name, shape) in enumerate(shapes.items(), 1)})
    rewritten, (report,) = rewrite(model, ["join_matmuls"], FEED | {"given": normal(4, 2, seed=9)}, tolerance=1e-5)
    assert report.rewrites == 2
    assert counts(rewritten) == {"MatMul": 5, "Split": 1, "Abs": 6, "Transpose": 1}


@pytest.mark.parametrize(("name", "joined"), [("compress/a/MatMul", 2), ("vision/input/MatMul", 2), ("vision/layer.0/q/MatMul", 3)])
def test_the_arithmetic_of_compression_and_input_is_no_layer(name, joined):
    model = _model(BIASED)
    model.graph.node[0].name = name
    assert rewrite(model, ["join_matmuls"], FEED, tolerance=1e-5)[1][0].rewrites == joined


@pytest.mark.parametrize(
    ("sum_", "more"),
    [
        ("sa = Add(pa, one)", ""),  # one number for all columns
        ("sa = Add(pa, whole)", ""),  # a value of its own for each row
        ("sa = Add(pa, pa)", ""),
        ("sa = Add(pa, ba)", "d = Abs(pa)"),  # the product itself is read too
    ],
)
def test_what_is_added_is_a_bias_only_where_it_is_a_stored_row_and_alone_reads_the_product(sum_, more):
    text = BIASED.replace("sa = Add(pa, ba)", f"{sum_}\n    {more}").replace(
        "float[4, 5] wa", "float[1] one, float[3, 5] whole, float[4, 5] wa"
    )
    if more:
        text = text.replace("=> (", "=> (float[3, 5] d, ")
    constants = {name: normal(*shape, seed=i) for i, (name, shape) in enumerate(SHAPES.items(), 1)}
    model = model_from_text(text, **constants, one=normal(1, seed=8), whole=normal(3, 5, seed=9))
    rewritten, (report,) = rewrite(model, ["join_matmuls"], FEED, tolerance=1e-5)
    made = counts(rewritten)
    assert (report.rewrites, made["MatMul"], made["Split"], made["Add"]) == (3, 1, 1, 3)


def test_products_of_a_batch_are_split_along_the_last_axis():
    text = BIASED.replace("float[3, 4] x", "float[2, 3, 4] x").replace(
        "float[3, 5] a, float[3, 2] b, float[3, 5] c", "float[2, 3, 5] a, float[2, 3, 2] b, float[2, 3, 5] c"
    )
    rewritten, _ = rewrite(_model(text), ["join_matmuls"], {"x": normal(2, 3, 4)}, tolerance=1e-5)
    assert [node.op_type for node in rewritten.graph.node] == ["MatMul", "Add", "Split", "Abs", "Relu", "Tanh"]
    parts = {value.name: [dim.dim_value for dim in value.type.tensor_type.shape.dim] for value in rewritten.graph.value_info}
    assert [parts[name] for name in rewritten.graph.node[2].output] == [[2, 3, 5], [2, 3, 2], [2, 3, 5]]
    assert parts[rewritten.graph.node[0].output[0]] == parts[rewritten.graph.node[1].output[0]] == [2, 3, 12]
