"""The budget: what is over it raises the worst layers a step, and nothing else."""

from __future__ import annotations

import numpy as np
import pytest

from export.quantize import llm_precision
from export.quantize.layers import worst
from export.quantize.report import LayerReport, Report
from runtime.errors import ExportError
from runtime.tools.compare import relative_error


@pytest.mark.parametrize(
    ("text", "expected"), [("fp16", ("fp16", 0)), ("int8", ("int8", 0)), ("int4", ("int4", 32)), ("int4:128", ("int4", 128))]
)
def test_precisions_of_the_llm(text, expected):
    assert llm_precision(text) == expected


@pytest.mark.parametrize("text", ["int4:", "int4:48", "int4:0", "int8:32", "int2", "", "INT4"])
def test_other_precisions_are_refused(text):
    with pytest.raises(ExportError, match=r"expected fp32, fp16, int8, int4 or int4:BLOCK"):
        llm_precision(text)


def test_the_worst_layers_go_first_a_twelfth_then_twice_as_many():
    errors = {f"layer{n}": n / 100 for n in range(36)}
    assert worst(errors, errors) == ["layer35", "layer34", "layer33"]
    assert worst(errors, {"layer2", "layer9"}) == ["layer9", "layer2"]
    assert worst({"a": 0.1, "b": 0.2}, ["a", "b"]) == ["b"]
    assert len(worst(errors, errors, rounds=2)) == 12


def test_the_relative_error_is_of_the_whole():
    assert relative_error(np.array([3.0, 4.0]), np.array([3.0, 0.0])) == pytest.approx(4 / 3)
    assert relative_error(np.zeros(2), np.zeros(2)) == 0


def test_a_report_names_the_worst_layer_that_was_raised():
    layers = [LayerReport("a", "int8", 0.1), LayerReport("b", "fp32", 0.3), LayerReport("c", "fp32", 0.2)]
    report = Report("int8", 0.04, 0.05, "clips", layers)
    assert report.lowered == 1
    assert "2 of 3 layers in higher precision, the worst b (0.300)" in report.note()
    assert "higher" not in Report("int8", 0.04, 0.05, "clips", layers[:1]).note()
