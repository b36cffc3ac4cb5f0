"""Which options are refused, and which are accepted, whatever the checkpoint is."""

from __future__ import annotations

from typing import Any

import pytest
from refusal import naming

from export.options import ExportOptions, check_options
from runtime.core.errors import ExportError, UserError

STANDARD = ["--attention standard", "opset 24", "--attention portable"]
INT4 = ["--llm-precision int4:64", "opset 21", "--llm-precision int8"]
BOTH = {"llm_precision": "int4:64", "attention": "standard"}


@pytest.mark.parametrize(
    ("release", "options", "highest", "named", "newer"),
    [
        ("10.3", {"attention": "standard"}, 20, STANDARD, "10.15"),
        ("10.7", {"attention": "standard"}, 20, STANDARD, "10.15"),
        ("10.3", {"llm_precision": "int4:64"}, 20, INT4, "10.13"),
        ("10.3", BOTH, 20, STANDARD + INT4, "10.15"),
        ("10.13", BOTH, 22, STANDARD, "10.15"),
        ("10.3", {"only": "llm", "llm_precision": "int4:64"}, 20, INT4, "10.13"),
    ],
)
def test_options_that_a_release_does_not_take_are_named_with_what_to_do(
    release: str, options: dict[str, Any], highest: int, named: list[str], newer: str
) -> None:
    with pytest.raises(ExportError, match=naming(f"TensorRT {release}", highest, *named, f"TensorRT {newer}")) as refused:
        check_options(ExportOptions(tensorrt=release, **options))
    assert all((part in str(refused.value)) == (part in named) for part in STANDARD + INT4)


@pytest.mark.parametrize(
    ("release", "options"),
    [
        ("10.3", {}),
        ("10.3", {"precision": "int8"}),
        ("10.3", {"llm_precision": "int4", "only": "vision"}),
        ("10.13", {"llm_precision": "int4"}),
        ("10.15", {"llm_precision": "int4", "attention": "standard"}),
        ("11.1", {"attention": "standard"}),
    ],
)
def test_options_that_a_release_takes(release: str, options: dict[str, Any]) -> None:
    check_options(ExportOptions(tensorrt=release, **options))


def test_where_no_release_takes_it_none_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("export.decoder.OPSET", {"standard": 25})
    with pytest.raises(ExportError, match=naming("opset 25", "TensorRT 11.1", 24, "--attention portable")):
        check_options(ExportOptions(tensorrt="11.1", attention="standard"))


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"precision": "int8", "error_budget": 0.0}, ["error_budget", "0.0"]),
        ({"precision": "int8", "calibrate": ""}, ["--calibrate"]),
        ({"precision": "int8", "calibrate": "/no/such"}, ["--calibrate", "/no/such"]),
        ({"max_context": 0}, ["max_context", "0", "at least 1"]),
        ({"frames": 0}, ["frames", "0", "at least 1", "1024"]),
        ({"frames": 1, "split": True}, ["--split", "1 frame ", "--frames"]),
        ({"frames": 1, "split": True, "only": "llm"}, ["--split", "--only llm"]),
        ({"llm_precision": "int5"}, ["--llm-precision", "int5", "fp32, fp16, int8, int4", "16, 32, 64, 128, 256"]),
        ({"only": "visoin"}, ["only", "visoin", "vision, llm"]),
        ({"attention": "flash"}, ["--attention flash", "float16", "--precision fp16"]),
        ({"attention": "flash", "precision": "fp16", "llm_precision": "int4"}, ["--attention flash", "the LLM int4"]),
        (
            {"attention": "flash", "only": "vision", "llm_precision": "fp16"},
            ["--attention flash", "the vision encoder would be fp32"],
        ),
        ({"attention": "flash", "precision": "fp16", "tensorrt": "11.1"}, ["--attention flash", "TensorRT", "standard"]),
    ],
)
def test_an_option_that_is_refused_is_named_with_what_is_expected(options: dict[str, Any], named: list[str]) -> None:
    with pytest.raises(ExportError) as refused:
        check_options(ExportOptions(**options))
    assert all(part in str(refused.value) for part in named)


@pytest.mark.parametrize(
    "options", [{"precision": "int8", "error_budget": 1.5}, {"precision": "int8", "calibrate": "/"}, {"only": "llm"}]
)
def test_options_that_are_taken(options: dict[str, Any]) -> None:
    check_options(ExportOptions(**options))


@pytest.mark.parametrize(
    "options",
    [
        {"frames": 1}, {"frames": 1024}, {"frames": 2, "split": True}, {"frames": 2, "precision": "int8"}, {"max_context": 1},
        {"frames": 1, "precision": "int8", "only": "llm"}, {"error_budget": 1e-6, "precision": "int8"},
        {"only": "vision", "split": True, "input": "frames", "place": "before-projector"},
        {"only": "llm", "llm_precision": "int4", "attention": "standard", "max_context": 512},
    ],
    ids=str,
)  # fmt: skip
def test_options_at_their_limits_are_taken(options: dict[str, Any]) -> None:
    check_options(ExportOptions(**options))


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"frames": 1025}, ["frames", 1025, 1, 1024]),
        ({"only": "llm", "input": "frames"}, ["--input", "--only llm"]),
        ({"precision": "int8", "only": "llm", "llm_precision": "fp32", "error_budget": 0.1}, ["--error-budget", "--llm-precision int8 or int4"]),
        ({"only": "vision", "calibrate": "."}, ["--calibrate", "--precision int8"]),
        ({"error_budget": -0.1, "precision": "int8"}, ["error_budget", "-0.1", 0]),
        ({"error_budget": float("nan"), "precision": "int8"}, ["error_budget", "nan"]),
    ],
)  # fmt: skip
def test_options_past_their_limits_are_refused(options: dict[str, Any], named: list[Any]) -> None:
    with pytest.raises(ExportError, match=naming(*named)):
        check_options(ExportOptions(**options))


@pytest.mark.parametrize(
    "package", ["torch", "transformers", "onnx", "onnxscript", "onnx_graphsurgeon", "safetensors", "onnxruntime"]
)
def test_a_package_that_an_export_needs_later_is_missed_at_once(monkeypatch: pytest.MonkeyPatch, package: str) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == package else name)
    with pytest.raises(UserError, match=naming(f'"{package}"', "pip install")):
        check_options(ExportOptions())
