"""A bundle in int8 and int4: it says what was done, agrees with torch within its tolerance, answers, and builds in TensorRT-RTX."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

from export.demo import CLIPS
from export.options import ExportOptions
from export.pipeline import export_bundle
from export.quantize import vision
from export.tensorrt import check
from runtime.bundle import Bundle
from runtime.chat import VideoChat
from runtime.core.errors import ExportError
from runtime.prompt.embeddings import Embeddings
from runtime.tools import parity
from runtime.tools.inspect import inspect, text

QUESTIONS = {"shapes.mp4": ["which shape is red ?", "what color is the circle ?"], "flash.mp4": ["how many objects are there ?"]}


@pytest.fixture(scope="module")
def quantized(tmp_path_factory) -> Bundle:
    out = tmp_path_factory.mktemp("bundles") / "quantized"
    result = export_bundle(ExportOptions(out=str(out), precision="int8", llm_precision="int4:64"))
    assert {row["stage"] for row in result.verified} >= {"vision/encoder", "visual_tokens (loop)", "llm/prefill"}
    return Bundle.open(out)


def test_the_manifest_and_the_report_say_what_was_done(quantized):
    manifest = quantized.manifest
    assert (manifest.precision, manifest.llm_precision, manifest.llm.block, manifest.opset) == ("int8", "int4", 64, 21)
    report = json.loads(quantized.file("quantization.json").read_text())
    assert report.keys() == {"vision", "llm/decoder"}
    for part in report.values():
        assert part["error"] <= part["budget"]
        assert {layer["precision"] for layer in part["layers"]} <= {"int4", "int8", "fp32"}
        assert all(0 < layer["error"] < 0.5 for layer in part["layers"])
    assert len(report["vision"]["layers"]) == 3 * 4 + 2  # query, key and value are one
    assert "llm/lm_head/MatMul" in {layer["layer"] for layer in report["llm/decoder"]["layers"]}
    page = text(inspect(quantized))
    assert "vision int8, LLM int4" in page and "relative error" in page


def test_it_is_smaller(quantized, bundle):
    def weights(of: Bundle) -> int:
        return sum(
            entry.size for name, entry in of.manifest.files.items() if name.endswith((".onnx", ".npy")) and "reference" not in name
        )

    assert weights(quantized) < 0.45 * weights(bundle)


def test_it_agrees_with_torch_within_its_tolerance(quantized):
    report = parity.parity(quantized, ["onnx"])
    assert report.rows and all(report.rows)
    errors = {row.stage: row.error for row in report.rows}
    assert 1e-3 < errors["vision/encoder"] < 0.05  # it is quantised, and not by much


def test_it_answers_as_the_float_one(quantized, bundle):
    chats = [VideoChat.open(one) for one in (quantized, bundle)]
    for name, questions in QUESTIONS.items():
        for question in questions:
            assert len({"".join(chat.ask(CLIPS / name, question)) for chat in chats}) == 1


def test_onnx_runtime_computes_the_loop_in_integers(quantized, tmp_path):
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    options.log_severity_level = 3
    onnxruntime.InferenceSession(str(quantized.file("vision.loop.onnx")), options)
    optimized = onnx.load(tmp_path / "optimized.onnx").graph
    (loop,) = [node for node in optimized.node if node.op_type == "Loop"]
    body = next(attribute.g for attribute in loop.attribute if attribute.name == "body")
    assert Counter(node.op_type for node in body.node)["MatMulIntegerToFloat"] == 14


def test_tensorrt_parses_the_vision_encoder_from_10_3_on_and_int4_from_10_13(quantized):
    vision, decoder = (onnx.load(quantized.model(graph), load_external_data=False) for graph in ("vision", "llm/decoder"))
    assert not check(vision, "10.3")
    assert [str(found) for found in check(decoder, "10.3")] == ["opset 21: this parser supports opsets 9 to 20"]
    assert not check(decoder, "10.13")


def test_tensorrt_rtx_builds_it(quantized, tmp_path):
    import shutil

    pytest.importorskip("tensorrt_rtx")
    from runtime.engine.trt_build import BuildOptions, build

    copied = tmp_path / "bundle"
    shutil.copytree(quantized.path, copied)
    build(Bundle.open(copied), BuildOptions(backend="tensorrt-rtx"))
    record = json.loads(next(copied.glob("engines/*/build.json")).read_text())
    assert set(record["graphs"]) == {"vision", "llm/decoder"}


def test_embeddings_are_rows_times_their_scale(quantized, bundle):
    rows, exact = Embeddings(quantized), np.load(bundle.file("llm/embed_tokens.npy"))
    assert rows.shape == exact.shape and rows.dtype == np.float32
    assert np.abs(rows[[3, 5, 3]] - exact[[3, 5, 3]]).max() < np.abs(exact).max() / 127
    np.testing.assert_array_equal(rows[[3, 5, 3]][0], rows[[3]][0])
    assert rows[[]].shape == (0, exact.shape[1])
    np.testing.assert_array_equal(Embeddings(bundle)[[4, 2]], exact[[4, 2]])


@pytest.mark.slow
def test_a_tight_budget_keeps_layers_in_higher_precision(tmp_path):
    options = ExportOptions(out=str(tmp_path / "b"), precision="int8", llm_precision="int4", error_budget=0.012)
    report = json.loads(export_bundle(options).bundle.file("quantization.json").read_text())
    for graph, lowest in (("vision", "int8"), ("llm/decoder", "int4")):
        layers = report[graph]["layers"]
        raised = [layer["error"] for layer in layers if layer["precision"] != lowest]
        left = [layer["error"] for layer in layers if layer["precision"] == lowest]
        assert report[graph]["error"] <= 0.012 and raised
        assert min(raised) >= max(left, default=0)


@pytest.mark.parametrize(
    "options",
    [
        pytest.param({"split": True}, marks=pytest.mark.slow),
        pytest.param({"input": "frames:40x60"}, marks=pytest.mark.slow),
        pytest.param({"only": "llm"}, marks=pytest.mark.slow),
        pytest.param({"place": "before-projector"}, marks=pytest.mark.slow),
    ],
)
def test_it_goes_with_the_other_options(options, tmp_path):
    result = export_bundle(ExportOptions(out=str(tmp_path / "b"), precision="int8", **options))
    quantized = {row.graph for row in result.bundle.manifest.report if row.name == "quantize int8"}
    assert quantized == ({"llm/decoder"} if options == {"only": "llm"} else {"vision", "llm/decoder"})


def test_the_users_clips_calibrate_and_the_error_is_measured_on_frames_held_out(tmp_path, monkeypatch):
    runs: list[list[bytes]] = []

    def recorded(engine, frames, real=vision._runs):
        runs.append([frame.tobytes() for frame in frames])
        return real(engine, frames)

    monkeypatch.setattr(vision, "_runs", recorded)
    result = export_bundle(ExportOptions(out=str(tmp_path / "b"), only="vision", precision="int8", calibrate=str(CLIPS)))
    assert "2 videos of" in json.loads(result.bundle.file("quantization.json").read_text())["vision"]["calibration"]
    equalized, calibrated, exact, quantized = (set(frames) for frames in runs[:4])
    assert (len(runs[1]), len(runs[2])) == (24, 8) and equalized < calibrated
    assert exact == quantized and not exact & calibrated


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"llm_precision": "int3"}, "--llm-precision is"),
        ({"precision": "int4"}, "precision is"),
        ({"error_budget": 0.0}, "error_budget is 0"),
        ({"calibrate": "/nowhere"}, "is not a directory"),
    ],
)
def test_wrong_options_are_refused_before_anything_is_read(options, message, tmp_path: Path):
    with pytest.raises(ExportError, match=message):
        export_bundle(ExportOptions(out=str(tmp_path / "b"), **options))
    assert not list(tmp_path.iterdir())
