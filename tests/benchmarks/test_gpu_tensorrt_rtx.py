"""The probe of TensorRT-RTX: every engine gets an answer, in the library's words, and a library that is missing gives none."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "gpu_tensorrt_rtx.py"


def test_every_engine_gets_an_answer_with_words(tmp_path: Path):
    for package in ("tensorrt_rtx", "onnx", "onnxruntime"):
        pytest.importorskip(package, reason=f"{package} is not installed")
    report = tmp_path / "answers.json"
    command = [sys.executable, SCRIPT, tmp_path / "engines", "--device", "cpu", "--json", report]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    answers = json.loads(report.read_text())["engines"]
    names = ["probe-any.engine", "probe-sm120.engine", "probe-sm80.engine", "probe-sm89.engine", "current"]
    assert [answer["engine"] for answer in answers] == names
    for answer in answers:
        assert answer["verdict"] == "ran" or "ERROR: " in answer["words"], answer


def test_a_library_that_does_not_load_answers_nothing(tmp_path: Path):
    (tmp_path / "tensorrt_rtx.py").write_text("raise ImportError('libtensorrt_rtx.so.1: no such file')\n")
    (tmp_path / "probe-any.engine").write_bytes(b"")
    done = subprocess.run([sys.executable, SCRIPT, tmp_path], env={"PYTHONPATH": str(tmp_path)}, capture_output=True, text=True)
    assert done.returncode == 1
    assert "| probe-any.engine | refused | nothing |" in done.stdout and "libtensorrt_rtx.so.1: no such file" in done.stdout


def test_a_process_that_dies_is_an_answer_too(tmp_path: Path):
    (tmp_path / "tensorrt_rtx.py").write_text("import os; os.abort()\n")
    (tmp_path / "probe-any.engine").write_bytes(b"")
    done = subprocess.run([sys.executable, SCRIPT, tmp_path], env={"PYTHONPATH": str(tmp_path)}, capture_output=True, text=True)
    assert "the process ended with status -6" in done.stdout
