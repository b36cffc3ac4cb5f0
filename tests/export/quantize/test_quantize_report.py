"""The report of a quantisation: its one line, and the file in a bundle."""

from __future__ import annotations

import json

import pytest
from refusal import naming

from export.quantize.report import LayerReport, Report, write

LAYERS = [LayerReport("a", "int4", 0.125), LayerReport("b", "int8", 0.5, True), LayerReport("c", "fp32", 0.25)]


@pytest.mark.parametrize(
    ("layers", "lowered", "raised"),
    [(LAYERS, 1, ["2 of 3", "b", "0.500"]), (LAYERS[:1], 1, []), (LAYERS[2:], 0, ["1 of 1", "c", "0.250"]), ([], 0, [])],
)
def test_a_report_in_one_line_names_the_worst_layer_that_was_raised(layers, lowered, raised):
    report = Report("int4", 0.0625, 0.15, "clips", layers)
    assert report.lowered == lowered
    assert naming(0.0625, 0.15, *raised).match(report.note()) and (" of " in report.note()) == bool(raised)


def test_reports_of_both_components_are_in_one_file(tmp_path):
    write(
        tmp_path, {"vision": Report("int8", 0.5, 0.05, "clips", LAYERS[1:2]), "llm/decoder": Report("int4", 0.25, 0.15, "more", [])}
    )
    layer = {"layer": "b", "precision": "int8", "error": 0.5, "equalized": True}
    assert json.loads((tmp_path / "quantization.json").read_text()) == {
        "vision": {"precision": "int8", "error": 0.5, "budget": 0.05, "calibration": "clips", "layers": [layer]},
        "llm/decoder": {"precision": "int4", "error": 0.25, "budget": 0.15, "calibration": "more", "layers": []},
    }
    assert [path.name for path in tmp_path.iterdir()] == ["quantization.json"]


def test_a_layer_is_not_equalised_unless_it_says_so():
    assert LayerReport("a", "int8", 0.5) == LayerReport("a", "int8", 0.5, False)
