"""benchmarks/gpu.py: steps that end well, fail, hang, run beside others or are interrupted; and every step, tiny, on a CPU."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from process_ends import LONG, assert_ends, wait_until

from benchmarks.gpu import Step, all_steps, run_steps

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = """
import json, os, pathlib, subprocess, sys, time
kind, options = sys.argv[1], sys.argv[2:]
path = pathlib.Path(options[options.index("--json") + 1])
folder = pathlib.Path(__file__).parent

def write(**data):
    part = path.with_name(path.name + ".partial")
    part.write_text(json.dumps(data))
    part.replace(path)

def wait_for(name):
    while not (folder / name).exists():
        time.sleep(0.02)

print(f"| {kind} |", flush=True)
print(f"log of {kind}", file=sys.stderr)
write(kind=kind, device=options[options.index("--device") + 1])
if kind == "fails":
    sys.exit(3)
if kind in ("hangs", "leaves"):
    command = [sys.executable, "-c", "import pathlib, sys, time; pathlib.Path(sys.argv[1]).touch(); time.sleep(600)"]
    child = subprocess.Popen([*command, str(folder / "child")])
    wait_for("child")
    write(child=child.pid)
    (folder / "pids.part").write_text(json.dumps([os.getpid(), child.pid]))
    (folder / "pids.part").replace(folder / "pids")
    if kind == "hangs":
        parts = path.with_name(path.name + ".parts")
        parts.mkdir()
        (parts / "race.json").write_text(json.dumps({"ms": 1}))
        time.sleep(600)
if kind == "reads":
    write(seen=list(json.loads(pathlib.Path(options[0]).read_text())))
if kind == "beside":
    wait_for("meanwhile")
    write(began=(folder / "before").exists())
if kind in ("before", "meanwhile"):
    (folder / kind).touch()
"""


@pytest.fixture
def step(tmp_path):
    script = tmp_path / "step.py"
    script.write_text(SCRIPT)
    return lambda name, seconds=LONG, **options: Step(name, (str(script), name), seconds, **options)


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


@pytest.mark.slow
def test_a_step_out_of_time_is_ended_with_all_that_it_started_and_keeps_what_it_had_written(step, tmp_path):
    status, results, text = run([step("hangs", seconds=10.0), step("last")], tmp_path / "out")
    assert status == 1
    assert results["hangs"]["status"] == "out of time after 10 s"
    assert "| hangs |" in text
    assert results["hangs"]["data"]["race"] == {"ms": 1}, "what a part had written beside the step's own numbers"
    assert_ends(results["hangs"]["data"]["child"])


def test_what_a_step_leaves_behind_is_ended_too(step, tmp_path):
    status, results, _ = run([step("leaves")], tmp_path / "out")
    assert (status, results["leaves"]["status"]) == (0, "done")
    assert_ends(results["leaves"]["data"]["child"])


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_step_under_way_and_keeps_its_results(step, tmp_path, number):
    out, pids = tmp_path / "out", tmp_path / "pids"
    hangs = step("hangs")
    program = (
        "import sys; from pathlib import Path; from benchmarks import gpu\n"
        f"gpu.all_steps = lambda *_: [gpu.Step('hangs', {hangs.command!r}, 600.0)]\n"
        f"sys.argv = ['gpu.py', '--out', {str(out)!r}, '--device', 'cpu']\n"
        "sys.exit(gpu.main())\n"
    )
    process = subprocess.Popen([sys.executable, "-c", program], cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)})
    try:
        wait_until(pids.exists)
        process.send_signal(number)
        assert process.wait(LONG) == 128 + number
    finally:
        process.kill()
    for pid in json.loads(pids.read_text()):
        assert_ends(pid)
    result = json.loads((out / "results.json").read_text())["hangs"]
    assert result["status"] == "interrupted"
    assert result["data"]["race"] == {"ms": 1}


def test_a_step_beside_others_begins_at_its_place_and_is_waited_for_by_the_one_that_needs_it(step, tmp_path):
    steps = [step("before"), step("beside", beside=True), step("meanwhile"), step("after", needs="beside")]
    status, results, _ = run(steps, tmp_path / "out")  # `beside` ends only after `meanwhile` ran
    assert (status, list(results)) == (0, ["before", "beside", "meanwhile", "after"])
    assert results["beside"]["data"]["began"]
    last = step("reads", needs="beside")
    last = Step("reads", (*last.command, str(tmp_path / "again" / "results.json")), LONG, needs="beside")
    _, results, _ = run([step("beside", beside=True), last], tmp_path / "again")
    assert results["reads"]["data"]["seen"] == ["beside"]


def test_the_export_does_not_run_beside_what_measures_launches(tmp_path):
    names = [step.name for step in all_steps(tmp_path, "cuda")]
    assert names == ["facts", "kernel", "torch", "bundle", "checks", "onnxruntime", "0.5b"]


def test_the_limits_of_parts_fit_into_those_of_their_steps(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import gpu_check_list
    import gpu_onnxruntime
    import gpu_tensorrt_rtx

    steps = {step.name: step for step in all_steps(tmp_path, "cuda", tmp_path)}
    for name in ("onnxruntime", "0.5b"):
        command = steps[name].command
        parts = [part for part in command[command.index("--parts") + 1 :] if part in gpu_onnxruntime.PARTS]
        making = 60 if "--demo" in command else 0
        assert len(parts) == 4
        assert making + sum(gpu_onnxruntime.PARTS[part][2] for part in parts) <= steps[name].seconds
    engines = len(gpu_tensorrt_rtx.TARGETS) + 1
    assert engines * gpu_tensorrt_rtx.LIMIT <= steps["tensorrt-rtx"].seconds
    limits = [check.limit for check in gpu_check_list.planned("cuda", tmp_path)]
    assert 30 + sum(limits) / 14 + max(limits) <= steps["checks"].seconds  # builds; the most that 14 at a time can take


def test_results_are_there_before_the_last_step_ends(step, tmp_path):
    out = tmp_path / "out"
    last = step("reads")
    last = Step("reads", (*last.command, str(out / "results.json")), last.seconds)
    _, results, _ = run([step("first"), last], out)
    assert results["reads"]["data"]["seen"] == ["first"]


def test_a_second_run_keeps_the_results_of_other_steps_and_replaces_its_own(step, tmp_path):
    out = tmp_path / "out"
    run([step("first"), step("fails")], out)
    fixed = Step("fails", step("third").command, LONG)
    status, results, text = run([fixed, step("last")], out)
    assert status == 0, "what failed in an earlier run is not this run's"
    assert {name: one["status"] for name, one in results.items()} == dict.fromkeys(["first", "fails", "last"], "done")
    assert list(results) == ["first", "fails", "last"]
    assert "| first |" in text and "| third |" in text and "| fails |" not in text
    (out / "results.json").write_text("[]")
    with pytest.raises(SystemExit, match="is not what this script writes"):
        run([step("last")], out)
    assert (out / "results.json").read_text() == "[]"


def test_an_unknown_step_is_refused_with_those_there_are():
    command = [sys.executable, "benchmarks/gpu.py", "--plan", "--steps", "kernels"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "no step kernels; expected some of facts, kernel, torch, bundle" in done.stderr


@pytest.fixture(scope="module")
def on_a_cpu(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of a run of every step, tiny: its results, and the bundles that it made."""
    out = tmp_path_factory.mktemp("gpu")
    command = [sys.executable, "benchmarks/gpu.py", "--out", str(out), "--device", "cpu"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return out


def _results(out: Path) -> dict[str, dict]:
    return json.loads((out / "results.json").read_text())


@pytest.mark.slow
def test_every_step_runs_on_a_cpu_at_a_tiny_size(on_a_cpu):
    status = {name: one["status"] for name, one in _results(on_a_cpu).items()}
    assert status == dict.fromkeys(["facts", "kernel", "torch", "bundle", "checks", "onnxruntime", "0.5b"], "done")
    assert list(status) == ["facts", "kernel", "torch", "bundle", "checks", "onnxruntime", "0.5b"]


@pytest.mark.slow
def test_the_programs_for_a_gpu_are_right_on_stand_ins(on_a_cpu):
    assert [check["verdict"] for check in _results(on_a_cpu)["checks"]["data"]["checks"]] == ["passed", "passed"]


@pytest.mark.slow
def test_torch_is_timed_by_stages_that_add_up_to_the_first_token(on_a_cpu):
    step = _results(on_a_cpu)["torch"]
    report = step["data"]
    assert report["not_compiled"] is None
    assert [(block["size"], block["frames"], len(block["ways"])) for block in report["blocks"]] == [
        ("tiny", 4, 4),
        ("tiny-qwen3-vl", 4, 3),
    ]
    for block in report["blocks"]:
        assert block["graph_breaks"] == 0
        assert "it needs a GPU" in block["left_out"]["st-gridpool, kernel"]
        decoded = {way["tokens"]: way["decode_seconds"] for way in block["ways"]}  # once for a number of tokens
        assert sum(sum(way["first"]) for way in block["ways"]) + sum(decoded.values()) < block["wall_seconds"]
        for way in block["ways"]:
            seconds = way["seconds"]
            assert {len(spent) for spent in seconds.values()} == {2} == {len(way["first"])}
            assert way["first"] == [sum(stages) for stages in zip(*seconds.values(), strict=True)]
            line = next(line for line in step["text"].splitlines() if line.startswith(f"| {block['size']} | 4 | {way['name']} |"))
            assert float(line.split("|")[8]) == pytest.approx(1000 * float(np.median(way["first"])), rel=0.02, abs=0.6)
    assert "compress" not in report["blocks"][0]["ways"][0]["seconds"]
    assert [way["tokens"] for way in report["blocks"][0]["ways"]] == [65, 65, 64, 64]
    assert [way["tokens"] for way in report["blocks"][1]["ways"]] == [32, 32, 8]


@pytest.mark.slow
def test_onnx_runtime_agrees_with_torch_and_keeps_the_rows_of_its_caches(on_a_cpu):
    results = _results(on_a_cpu)
    made = results["onnxruntime"]["data"]
    assert made.keys() == {"parity", "placement", "options", "state"}
    assert results["0.5b"]["data"].keys() == {"race", "prefill", "bench", "placement-large"}
    assert "failed" not in results["onnxruntime"]["text"] + results["0.5b"]["text"]
    assert all(made["parity"][f"parity of {name} on cpu"]["ok"] for name in ("fp32", "fp16", "fp32-standard", "fp16-standard"))
    for name in ("fp32", "fp16-standard"):
        caches = made["state"][f"KV cache of {name}, 64 positions read"]
        assert all(measured["rows kept"] for measured in caches.values() if isinstance(measured, dict))


@pytest.mark.slow
def test_without_parts_onnx_runtime_runs_all_that_the_bundle_is_for(on_a_cpu, tmp_path):
    numbers = tmp_path / "numbers.json"
    options = ["--device", "cpu", "--size", "tiny", "--rounds", "1", "--bundle", str(on_a_cpu / "large" / "fp16")]
    command = [sys.executable, "benchmarks/gpu_onnxruntime.py", *options, "--json", str(numbers)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "failed" not in done.stdout
    assert json.loads(numbers.read_text()).keys() == {"bench", "placement-large", "race", "prefill", "options-large"}


@pytest.mark.slow
def test_every_step_has_a_plan():
    done = subprocess.run([sys.executable, "benchmarks/gpu.py", "--plan"], cwd=ROOT, capture_output=True, text=True, check=True)
    plans = done.stdout.split("\n## ")[1:]
    assert [plan.split(":")[0] for plan in plans] == ["facts", "kernel", "torch", "checks", "onnxruntime", "0.5b"]
    assert all(len(plan.splitlines()) > 4 for plan in plans)
