"""float32: no norm, softmax of compression or statistic may compute in float16."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from refusal import naming
from surgeon_graphs import model_from_text

from export.surgeon import run_passes
from runtime.core.errors import ExportError


def check(model: onnx.ModelProto, scope: str = "compress/nsp") -> str:
    for node in model.graph.node:
        node.name = f"{scope}/{node.op_type}"
    _, (report,) = run_passes(model, ["float32"], graph="vision")
    assert report.rewrites == 0
    return report.note


def of_type(kind: str, body: str = "y = ReduceL2(x, axes)") -> onnx.ModelProto:
    return model_from_text(f"g ({kind}[2, 8] x) => ({kind}[2, n] y) <int64[1] axes = {{-1}}> {{ {body} }}")


def test_norms_in_float32_are_counted():
    assert naming(1, "float32").match(check(of_type("float")))
    cast = "w = Cast<to = 1>(x)\n p = Softmax(w)\n s = ReduceSum(p, axes)\n y = Cast<to = 10>(s)"
    assert naming(2, "float32").match(check(of_type("float16", cast)))


@pytest.mark.parametrize(
    ("scope", "op", "refused"),
    [
        ("compress/nsp", "ReduceL2(x, axes)", True),
        ("compress/nsp", "ReduceSum(x, axes)", True),
        ("compress/nsp", "Softmax(x)", True),
        ("compress/nsp", "Exp(x)", True),
        ("compress/nsp", "Abs(x)", False),
        ("vision/encoder", "ReduceMean(x, axes)", True),
        ("vision/encoder", "Pow(x, x)", True),
        ("vision/encoder", "Softmax(x)", False),
        ("vision/encoder", "Exp(x)", False),
    ],
)
def test_a_reduction_in_float16_is_an_error_that_names_the_node(scope: str, op: str, refused: bool):
    model = of_type("float16", f"y = {op}")
    if refused:
        with pytest.raises(ExportError, match=naming("vision", f"{scope}/{op.partition('(')[0]}", "float16")):
            check(model, scope)
    else:
        check(model, scope)


def test_statistics_in_float16_are_an_error():
    text = "g (float16[2, 8] x) => (float16[2, 8] y) { y = LayerNormalization<stash_type = 10>(x, w) }"
    with pytest.raises(ExportError, match="LayerNormalization"):
        check(model_from_text(text, w=np.ones(8, np.float16)))
    check(model_from_text(text.replace("10", "1"), w=np.ones(8, np.float16)))


def test_a_norm_of_unknown_type_is_an_error_that_names_its_input():
    model = of_type("float16", "a = Neg(x)\n y = ReduceL2(a, axes)")
    del model.graph.value_info[:]
    with pytest.raises(ExportError, match=naming("a", "compress/nsp/ReduceL2")):
        check(model)
