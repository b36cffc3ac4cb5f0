"""The probe of TensorRT-RTX: every engine gets an answer in the library's words, unless it is missing, crashes or hangs."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

REFUSES = """
import types

class ILogger:
    INTERNAL_ERROR, ERROR, WARNING = (types.SimpleNamespace(name=name) for name in ("INTERNAL_ERROR", "ERROR", "WARNING"))
    def __init__(self): pass

class Runtime:
    def __init__(self, logger): self.logger = logger
    def deserialize_cuda_engine(self, content): self.logger.log(ILogger.ERROR, "not for this GPU")
"""
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


def test_a_process_that_dies_is_no_refusal(tmp_path: Path):
    (tmp_path / "tensorrt_rtx.py").write_text("import os; os.abort()\n")
    (tmp_path / "probe-any.engine").write_bytes(b"")
    done = subprocess.run([sys.executable, SCRIPT, tmp_path], env={"PYTHONPATH": str(tmp_path)}, capture_output=True, text=True)
    assert "| probe-any.engine | crashed | unknown |" in done.stdout and "the process ended with status -6" in done.stdout
    assert done.returncode == 1


def test_a_process_that_hangs_is_no_refusal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys):
    monkeypatch.syspath_prepend(str(SCRIPT.parent))
    import gpu_tensorrt_rtx

    monkeypatch.setattr(gpu_tensorrt_rtx, "LIMIT", 1)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    (tmp_path / "tensorrt_rtx.py").write_text("import time; time.sleep(600)\n")
    (tmp_path / "probe-any.engine").write_bytes(b"")
    assert gpu_tensorrt_rtx._print_answers(tmp_path, tmp_path / "answers.json") == 1
    (answer,) = json.loads((tmp_path / "answers.json").read_text())["engines"]
    assert (answer["verdict"], answer["words"]) == ("hung", "not done after 1 s")


def test_a_refusal_is_an_answer(tmp_path: Path):
    (tmp_path / "tensorrt_rtx.py").write_text(REFUSES)
    (tmp_path / "probe-any.engine").write_bytes(b"")
    done = subprocess.run([sys.executable, SCRIPT, tmp_path], env={"PYTHONPATH": str(tmp_path)}, capture_output=True, text=True)
    assert "| probe-any.engine | refused | import |" in done.stdout and "ERROR: not for this GPU" in done.stdout
    assert done.returncode == 0
