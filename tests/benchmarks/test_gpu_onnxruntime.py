"""benchmarks/gpu_onnxruntime.py: its plan counts what the checkpoint's tensors say, its placement what a profile says, and it runs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = "benchmarks/gpu_onnxruntime.py"
FRAMES = 4


@pytest.fixture
def module(monkeypatch: pytest.MonkeyPatch):
    """A module of benchmarks/ by its name; they are scripts, not a package."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    return import_module


@pytest.mark.parametrize("size", ["0.5b", "tiny"])
def test_the_plan_counts_what_the_checkpoint_holds(module, size):
    """The matrices by the tensors that random_checkpoint.py writes; the rest by hand."""
    plan, checkpoint = module("gpu_onnxruntime_plan"), module("random_checkpoint")
    shape = checkpoint.SIZES[size]
    matrices = {name: int(np.prod(dims)) for name, dims, _, _ in checkpoint.weights(shape) if len(dims) > 1}
    seeing = sum(
        values for name, values in matrices.items() if ("vision_tower" in name or "projector" in name) and "position" not in name
    )
    speaking = sum(values for name, values in matrices.items() if "language_model" in name)  # the embeddings are the head, once
    patches, hidden = (shape.image // 14) ** 2, shape.llm.width
    encode, prefill, step = plan.stages(shape, FRAMES)
    scores = FRAMES * shape.vision.layers * shape.vision.heads * 2 * patches * patches * (shape.vision.width // shape.vision.heads)
    assert encode.operations == 2 * (FRAMES * patches * seeing + scores)
    assert encode.bytes == 2 * (seeing + FRAMES * 3 * shape.image**2)
    positions = plan.visual_tokens(shape, FRAMES) + 32
    keys = [
        dims[0] for name, dims, _, _ in checkpoint.weights(shape) if "language_model" in name and name.endswith("k_proj.weight")
    ]
    cache = 2 * 2 * positions * sum(keys)
    assert plan.kv_bytes(shape, positions) == cache
    assert step.bytes == prefill.bytes == 2 * speaking + cache
    head = shape.vocabulary * hidden
    attention = 2 * positions * hidden * shape.llm.layers  # one query: scores, and what they weigh
    assert step.operations == 2 * (speaking + attention)
    assert prefill.operations == 2 * (positions * (speaking - head) + head) + positions * attention


def test_the_plan_of_the_0_5b_bundle(module):
    plan, sizes = module("gpu_onnxruntime_plan"), module("random_checkpoint").SIZES
    assert plan.visual_tokens(sizes["0.5b"], 32) == 5409
    encode, _, step = plan.stages(sizes["0.5b"], 32)
    assert (encode.bound, step.bound) == ("operations", "bytes")
    assert 0.02 < encode.seconds < 0.04 and 0.0003 < step.seconds < 0.0005


def test_the_plan_needs_no_onnxruntime(tmp_path):
    (tmp_path / "onnxruntime.py").write_text("raise ImportError('not here')")
    printed = _run("--plan", "--json", str(tmp_path / "plan.json"), path=tmp_path)
    assert "one decode step" in printed
    assert len(json.loads((tmp_path / "plan.json").read_text())["plan"]) == 3


def test_nodes_are_counted_once_and_copies_apart(module):
    def event(name, operator, provider, index):
        return {
            "cat": "Node",
            "name": f"{name}_kernel_time",
            "args": {"op_name": operator, "provider": provider, "node_index": index},
        }

    counted = module("gpu_onnxruntime_parity").placement_from_profile(
        [
            event("a", "MatMul", "CUDAExecutionProvider", "1"),
            event("a", "MatMul", "CUDAExecutionProvider", "1"),
            event("b", "TensorScatter", "CPUExecutionProvider", "2"),
            event("c", "MemcpyToHost", "CUDAExecutionProvider", "3"),
            {"cat": "Session", "name": "model_run", "args": {}},
        ]
    )
    assert (counted["cuda"], counted["cpu"], counted["copies"]) == (1, 1, 1)
    assert counted["on the CPU"] == {"TensorScatter": 1}


def test_an_attempt_that_fails_says_why_and_stops_nothing(module, tmp_path, capsys):
    report = module("gpu_onnxruntime_report").Report(tmp_path / "numbers.json")
    assert report.attempt("graph", lambda: 1 / 0) is None
    report.section("next", "text", {"a": 1})
    assert "**graph** failed: ZeroDivisionError" in capsys.readouterr().out
    assert json.loads((tmp_path / "numbers.json").read_text())["next"] == {"a": 1}


def test_a_part_that_dies_or_hangs_is_said(module, tmp_path, capsys):
    reporting = module("gpu_onnxruntime_report")
    report = reporting.Report(tmp_path / "numbers.json")
    reporting.run_apart("crash", ["-c", "import os; os.abort()"], report, tmp_path / "crash.json", 30)
    reporting.run_apart("hang", ["-c", "import time; time.sleep(60)"], report, tmp_path / "hang.json", 0.5)
    said = capsys.readouterr().out
    assert "**crash, unfinished** failed: its process ended with -6" in said
    assert "**hang, unfinished** failed: it did not end within 0.5 s" in said
    assert {"crash", "hang"} <= report.numbers.keys()


def test_a_bundle_that_was_stripped_and_filled_runs(tmp_path, bundle_path):
    from runtime.bundle import Bundle
    from runtime.engine import EngineOptions
    from runtime.llm.decoder import LocalDecoder
    from runtime.tools import reference
    from runtime.vision import VisionEncoder

    stripped, out = tmp_path / "stripped", tmp_path / "filled"
    _run("--strip", str(bundle_path), str(stripped))
    size = sum(path.stat().st_size for path in stripped.rglob("*") if path.is_file())
    assert size < sum(path.stat().st_size for path in bundle_path.rglob("*.onnx")) / 3
    _run("--fill", str(stripped), str(out))
    bundle = Bundle.open(out, verify=True)
    tokens = VisionEncoder.open(bundle, "onnx", EngineOptions("cpu")).tokens(reference.clip(bundle))
    assert tokens.shape == (bundle.manifest.tokens_per_clip, bundle.manifest.hidden_size) and np.isfinite(tokens).all()
    logits = LocalDecoder.open(bundle, "onnx", EngineOptions("cpu")).conversation().extend(tokens[None].astype(np.float32))
    assert logits.std() > 0


@pytest.mark.slow
def test_every_part_runs_on_a_cpu(tmp_path):
    _run("--make", "tiny", str(tmp_path / "tiny"), "--frames", str(FRAMES), "--threads", "2")
    numbers = tmp_path / "numbers.json"
    paths = ["--demo", str(tmp_path / "demo"), "--bundle", str(tmp_path / "tiny" / "fp16"), "--json", str(numbers)]
    printed = _run("--device", "cpu", "--size", "tiny", "--rounds", "1", "--cache-gb", "0.05", "--threads", "2", *paths)
    assert "failed" not in printed
    made = json.loads(numbers.read_text())
    parts = {"parity", "placement", "state", "options", "bench", "placement-large", "race", "prefill", "options-large"}
    assert parts == made.keys()
    assert all(made["parity"][f"parity of {name} on cpu"]["ok"] for name in ("fp32", "fp16", "fp32-standard", "fp16-standard"))
    for name in ("fp32", "fp16-standard"):
        caches = made["state"][f"KV cache of {name}, 64 positions read"]
        assert all(facts["one buffer"] and facts["rows kept"] for facts in caches.values() if isinstance(facts, dict))


def _run(*arguments: str, path: Path | None = None) -> str:
    environment = os.environ | ({"PYTHONPATH": str(path)} if path else {})
    done = subprocess.run(
        [sys.executable, SCRIPT, *arguments], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout
