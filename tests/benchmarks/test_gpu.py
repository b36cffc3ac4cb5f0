"""benchmarks/gpu.py: what it keeps of steps that end well, fail, hang, or run beside others; and every step at a tiny size on a CPU."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from benchmarks.gpu import Step, run_steps

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = """
import json, pathlib, subprocess, sys, time
kind, options = sys.argv[1], sys.argv[2:]
path = pathlib.Path(options[options.index("--json") + 1])
print(f"| {kind} |", flush=True)
print(f"log of {kind}", file=sys.stderr)
path.write_text(json.dumps({"kind": kind, "device": options[options.index("--device") + 1], "at": time.time()}))
if kind == "fails":
    sys.exit(3)
if kind == "hangs":
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    path.write_text(json.dumps({"child": child.pid}))
    time.sleep(600)
if kind == "reads":
    path.write_text(json.dumps({"seen": list(json.loads(pathlib.Path(options[0]).read_text()))}))
if kind == "beside":
    time.sleep(1)
    path.write_text(json.dumps({"at": time.time()}))
"""


@pytest.fixture
def step(tmp_path):
    script = tmp_path / "step.py"
    script.write_text(SCRIPT)
    return lambda name, seconds=60.0, **options: Step(name, (str(script), name), seconds, **options)


def run(steps, out) -> tuple[int, dict, str]:
    status = run_steps(steps, out, ("--device", "cpu"))
    return status, json.loads((out / "results.json").read_text()), (out / "results.md").read_text()


def test_a_step_that_fails_stops_no_other_one_and_shows_in_the_exit_status(step, tmp_path):
    status, results, text = run([step("first"), step("fails"), step("last")], tmp_path / "out")
    assert status == 1
    assert {name: one["status"] for name, one in results.items()} == {
        "first": "done",
        "fails": "failed with exit status 3",
        "last": "done",
    }
    assert results["last"]["data"]["device"] == "cpu"
    assert [text.index(f"| {name} |") for name in ("first", "fails", "last")] == sorted(
        text.index(f"| {name} |") for name in ("first", "fails", "last")
    )
    assert (tmp_path / "out" / "log.txt").read_text().count("log of") == 3


def test_a_step_out_of_time_is_ended_with_all_that_it_started_and_keeps_what_it_had_written(step, tmp_path):
    status, results, text = run([step("hangs", seconds=3.0), step("last")], tmp_path / "out")
    assert status == 1
    assert results["hangs"]["status"] == "out of time after 3 s"
    assert "| hangs |" in text
    deadline = time.monotonic() + 10
    while psutil.pid_exists(results["hangs"]["data"]["child"]) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not psutil.pid_exists(results["hangs"]["data"]["child"])


def test_a_step_beside_the_others_is_waited_for_by_the_one_that_needs_it(step, tmp_path):
    steps = [step("beside", beside=True), step("meanwhile"), step("after", needs="beside")]
    status, results, _ = run(steps, tmp_path / "out")
    assert status == 0
    assert results["meanwhile"]["data"]["at"] < results["beside"]["data"]["at"] <= results["after"]["data"]["at"]


def test_results_are_there_before_the_last_step_ends(step, tmp_path):
    out = tmp_path / "out"
    last = step("reads")
    last = Step("reads", (*last.command, str(out / "results.json")), last.seconds)
    _, results, _ = run([step("first"), last], out)
    assert results["reads"]["data"]["seen"] == ["first"]


def test_an_unknown_step_is_refused_with_those_there_are():
    command = [sys.executable, "benchmarks/gpu.py", "--plan", "--steps", "kernels"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "no step kernels; expected some of bundle, facts, kernel, torch" in done.stderr


@pytest.mark.slow
def test_every_step_runs_on_a_cpu_at_a_tiny_size(tmp_path):
    command = [sys.executable, "benchmarks/gpu.py", "--out", str(tmp_path), "--device", "cpu"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    results = json.loads((tmp_path / "results.json").read_text())
    assert {name: one["status"] for name, one in results.items()} == dict.fromkeys(results, "done"), done.stderr[-3000:]
    assert list(results) == ["bundle", "facts", "kernel", "torch", "checks", "onnxruntime", "0.5b"]
    assert done.returncode == 0


@pytest.mark.slow
def test_every_step_has_a_plan():
    done = subprocess.run([sys.executable, "benchmarks/gpu.py", "--plan"], cwd=ROOT, capture_output=True, text=True, check=True)
    plans = done.stdout.split("\n## ")[1:]
    assert [plan.split(":")[0] for plan in plans] == ["facts", "kernel", "torch", "checks", "onnxruntime", "0.5b"]
    assert all(len(plan.splitlines()) > 4 for plan in plans)
