"""benchmarks/gpu_onnxruntime.py: its plan counts what the checkpoint's tensors say, and its checks can fail. test_gpu.py runs it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from process_ends import assert_ends

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
    assert {"crash", "hang"} <= report.numbers.keys() and not report.ok


@pytest.mark.slow
def test_a_part_that_hangs_keeps_its_numbers_and_leaves_no_process(module, tmp_path):
    reporting, part = module("gpu_onnxruntime_report"), tmp_path / "part.json"
    program = (
        "import json, subprocess, sys, time\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])\n"
        f"open({str(part)!r}, 'w').write(json.dumps({{'child': child.pid}}))\n"
        "time.sleep(600)\n"
    )
    reporting.run_apart("part", ["-c", program], reporting.Report(tmp_path / "numbers.json"), part, 5)
    child = json.loads((tmp_path / "numbers.json").read_text())["part"]["child"]
    assert_ends(child)


def test_a_part_that_recorded_a_failure_ends_the_run_with_1(module, tmp_path, capsys):
    reporting = module("gpu_onnxruntime_report")
    report = reporting.Report(None)
    reporting.run_apart("good", ["-c", ""], report, tmp_path / "good.json", 60)
    assert report.ok
    reporting.run_apart("bad", ["-c", f"raise SystemExit({reporting.FAILED})"], report, tmp_path / "bad.json", 60)
    assert not report.ok and "unfinished" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--device", "cpu", "--bundle", "{}/none"), "none is not there; --make 0.5b makes it"),
        (("--device", "cpu", "--parts", "parity", "--bundle", "{}"), "**parity** failed: it needs bundles of --demo DIR"),
        (("--device", "cuda", "--bundle", "{}"), "**ONNX Runtime on cuda** failed: "),
    ],
)
def test_what_is_missing_is_said_and_shows_in_the_exit_status(tmp_path, arguments, words):
    if "cuda" in arguments and Path("/dev/nvidia0").exists():
        pytest.skip("needs a machine without a GPU")
    command = [sys.executable, SCRIPT, *(one.format(tmp_path) for one in arguments)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 1, done.stderr
    assert words in done.stdout


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_a_demo_bundle_with_flash_attention_is_for_cuda_and_left_out_on_a_cpu(module, monkeypatch, tmp_path, capsys, device):
    script, made = module("gpu_onnxruntime"), module("gpu_onnxruntime_bundles")

    def make(kind, directory, *rest) -> int:
        for name in made.DEMO:
            (directory / name).mkdir()
            (directory / name / "manifest.json").touch()
        return 0

    monkeypatch.setattr(made, "make", make)
    report = module("gpu_onnxruntime_report").Report(None)
    args = SimpleNamespace(demo=tmp_path, parts=["parity"], device=device, frames=FRAMES, threads=1)
    names = [path.name for path in script._demo_bundles(args, report)]
    assert names == ["fp32", "fp16", "fp32-standard", "fp16-standard", *(["fp16-flash"] if device == "cuda" else [])] and report.ok
    assert ("fp16-flash is left out: its decoder runs on CUDA alone" in capsys.readouterr().err) == (device == "cpu")


def test_a_parity_that_is_not_ok_fails_the_part(module, monkeypatch, bundle_path, capsys):
    from runtime.tools import parity

    report = module("gpu_onnxruntime_report").Report(None)
    row = SimpleNamespace(stage="llm/prefill", error=1.0, tolerance=1e-4, ok=False, note="")
    result = SimpleNamespace(rows=[row], ok=False, as_dict=dict)
    monkeypatch.setattr(parity, "parity", lambda *_: result)
    module("gpu_onnxruntime_parity").parity_of(SimpleNamespace(bundles=[bundle_path], device="cpu"), report)
    assert not report.ok and "not within tolerance: llm/prefill" in capsys.readouterr().out


@pytest.fixture
def decode_step(module, bundle):
    from runtime.bundle import DECODER
    from runtime.engine import EngineOptions
    from runtime.engine.onnx import OnnxEngine

    return module("gpu_onnxruntime_state")._Step(OnnxEngine.open(bundle, DECODER, EngineOptions("cpu")), bundle)


def test_a_step_writes_its_row_of_the_cache_and_no_other(decode_step):
    assert decode_step.keeps_rows()


@pytest.mark.parametrize("row", [None, 0, 63, 65, -1])
def test_a_step_that_does_not_write_its_row_or_writes_another_is_seen(decode_step, row):
    run, (*_, last) = decode_step.run, decode_step.state.values.values()

    def faulty() -> None:
        if row is None:
            return
        run()
        cache = last.numpy().copy()
        cache[:, :, row] = 0
        last.update_inplace(cache)

    decode_step.run = faulty
    assert not decode_step.keeps_rows()


def test_a_session_that_replays_without_writing_its_tokens_is_seen(module, monkeypatch, bundle_path):
    options, rounds = module("gpu_onnxruntime_options"), 2
    args = SimpleNamespace(device="cpu", rounds=rounds)
    start = time.perf_counter()
    measured, tokens = options._measure(bundle_path, args, {})
    spent = measured["load s"] + measured["first run s"] + rounds * measured["run ms"] / 1000  # the median of two is their mean
    assert spent < time.perf_counter() - start and np.isfinite(tokens).all()
    runs, real = [], options.run_bound

    def stops(made, binding) -> None:
        runs.append(1)
        if len(runs) <= 1 + 3 + rounds:  # the first, those that warm up, those that are timed
            real(made, binding)

    monkeypatch.setattr(options, "run_bound", stops)
    with pytest.raises(RuntimeError, match="were not written"):
        options._measure(bundle_path, args, {})


def test_other_tokens_than_the_plain_sessions_fail_unless_the_precision_is_another(module, monkeypatch, capsys):
    options, reporting = module("gpu_onnxruntime_options"), module("gpu_onnxruntime_report")
    changed = {}

    def measure(directory, args, switches) -> tuple:
        tokens = np.full((2, 3), 4, np.float32)
        tokens[0, 0] += 4 * changed.get(next(iter(switches), ""), 0)
        return {"load s": 1.0, "first run s": 1.0, "run ms": 1.0, "GPU MB held": 1.0}, tokens

    monkeypatch.setattr(options, "_measure", measure)
    for planted, ok in (
        ({}, True),
        ({"use_tf32": 0.01}, True),
        ({"enable_cuda_graph": 0.01}, False),
        ({"prefer_nhwc": 1e-5}, True),
    ):
        changed.clear()
        changed.update(planted)
        report = reporting.Report(None)
        options.options_of(SimpleNamespace(bundles=[Path("fp32")]), report)
        assert report.ok == ok
    printed = capsys.readouterr().out
    assert (
        "| CUDA graph | 1 | 1 | 1 | 0.01 | **no** | 1 |" in printed
        and "other tokens than the plain session's: CUDA graph" in printed
    )
    assert "| TF32 | 1 | 1 | 1 | 0.01 | not asked | 1 |" in printed


def test_a_bundle_that_was_stripped_and_filled_runs(tmp_path, bundle_path):
    from runtime.bundle import Bundle
    from runtime.engine import EngineOptions
    from runtime.llm.decoder import LocalDecoder
    from runtime.tools import reference
    from runtime.vision.encoder import VisionEncoder

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


def _run(*arguments: str, path: Path | None = None) -> str:
    environment = os.environ | ({"PYTHONPATH": str(path)} if path else {})
    done = subprocess.run(
        [sys.executable, SCRIPT, *arguments], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout
