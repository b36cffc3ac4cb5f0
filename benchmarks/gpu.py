"""Everything that wants a GPU, in one command on a bare machine; results are written as they come.

    python benchmarks/gpu.py --out DIR                        every step, each within its own time limit
    python benchmarks/gpu.py --out DIR --steps kernel torch   some of them
    python benchmarks/gpu.py --plan                           what each step does, its bytes and its expected times; needs no GPU
    python benchmarks/gpu.py --out DIR --device cpu           every step at a tiny size, to show that it runs

Out: DIR/results.md (the tables of all steps), DIR/results.json ({step: {"status", "seconds", "data"}}) and DIR/log.txt. Both results
are written again after each step, so that whatever ends the run loses nothing that was measured. A step that fails or runs out of
time stops no other one; the exit status is 1 where there was such a step. Bundles are made under DIR too.

A step is a script with the options --device, --plan and --json: its tables go to stdout, its progress to stderr. Needed are torch with
CUDA, transformers, cuda-bindings and NVRTC; the steps onnxruntime and 0.5b need onnxruntime-gpu, onnx-graphsurgeon and polygraphy, the
step checks nvcc, CMake and compute-sanitizer, and the step tensorrt-rtx that package and --engines.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Step:
    """command: after the interpreter; seconds: its time limit; beside: started first and left to run beside the others, until a
    step that `needs` it begins."""

    name: str
    command: tuple[str, ...]
    seconds: float
    beside: bool = False
    needs: str = ""


@dataclass
class Outcome:
    """status: "done", "failed" with the exit status, or "out of time"; text: what it printed; data: its JSON."""

    status: str
    seconds: float
    text: str
    data: Any = field(default_factory=dict)


@dataclass
class _Running:
    process: subprocess.Popen
    started: float
    out: Path
    json: Path


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, help="directory of the results; made where it is missing")
    parser.add_argument("--steps", nargs="+", metavar="STEP", help="only these")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument(
        "--engines", type=Path, metavar="DIR", help="what gpu_tensorrt_rtx.py --make wrote, for the step tensorrt-rtx"
    )
    parser.add_argument("--plan", action="store_true")
    args = parser.parse_args()
    if not args.plan and args.out is None:
        parser.error("expected --out DIR, or --plan")
    steps = all_steps(args.out or Path("DIR"), args.device, args.engines)
    unknown = set(args.steps or ()) - {step.name for step in steps}
    if unknown:
        parser.error(f"no step {', '.join(sorted(unknown))}; expected some of {', '.join(step.name for step in steps)}")
    chosen = [step for step in steps if not args.steps or step.name in args.steps]
    if args.plan:
        return _print_plans([step for step in chosen if not step.beside])
    return run_steps(chosen, args.out, ("--device", args.device))


def all_steps(out: Path, device: str, engines: Path | None = None) -> list[Step]:
    """In the order in which they are worth most; seconds are twice what an H200 took, where it was measured."""
    demo, large = str(out.resolve() / "demo"), str(out.resolve() / "large")
    ort, size = "benchmarks/gpu_onnxruntime.py", "0.5b" if device == "cuda" else "tiny"
    of_size = ("--size", size, "--bundle", f"{large}/fp16")
    tiny = device == "cpu"
    steps = [
        # on half of the cores, for minutes: the reference of 32 frames in torch is most of it
        Step("bundle", (ort, "--make", size, large, "--threads", str(max(1, (os.cpu_count() or 2) // 2))), 600, beside=True),
        Step("facts", ("benchmarks/gpu_facts.py",), 30),
        Step("kernel", ("benchmarks/gpu_plugin.py", *(("--rounds", "2") if tiny else ())), 120),
        Step("torch", ("benchmarks/gpu_speed.py", *(("--size", "tiny", "--frames", "4", "--rounds", "1") if tiny else ())), 300),
        Step("checks", ("benchmarks/gpu_memory_checks.py", "--jobs", str(min(14, os.cpu_count() or 2))), 120),
        Step("onnxruntime", (ort, "--demo", demo, "--parts", "parity", "placement", "options", "state", *_rounds(tiny)), 180),
        Step(
            "0.5b", (ort, *of_size, "--parts", "race", "prefill", "bench", "placement-large", *_rounds(tiny)), 240, needs="bundle"
        ),
    ]
    return [*steps, Step("tensorrt-rtx", ("benchmarks/gpu_tensorrt_rtx.py", str(engines.resolve())), 90)] if engines else steps


def _rounds(tiny: bool) -> tuple[str, ...]:
    return ("--rounds", "1", "--cache-gb", "0.01") if tiny else ()


def _print_plans(steps: list[Step]) -> int:
    status = 0
    for step in steps:
        print(f"\n## {step.name}: at most {step.seconds:g} s\n", flush=True)
        status |= subprocess.run([sys.executable, *step.command, "--plan"], cwd=ROOT).returncode
    return status


def run_steps(steps: list[Step], out: Path, options: tuple[str, ...]) -> int:
    """Run the steps in order; 1 where one of them did not end well."""
    out.mkdir(parents=True, exist_ok=True)
    outcomes: dict[str, Outcome] = {}
    with tempfile.TemporaryDirectory() as kept, (out / "log.txt").open("a", encoding="utf-8") as log:

        def start(step: Step) -> _Running:
            print(f"{step.name}: {' '.join(step.command)}", file=sys.stderr, flush=True)
            return _start(step, options, Path(kept), log)

        beside = {step.name: (step, start(step)) for step in steps if step.beside}

        def collect(name: str) -> None:
            step, running = beside.pop(name)
            outcomes[name] = _finish(step, running)
            _write(outcomes, steps, out)

        try:
            for step in steps:
                if step.needs in beside:
                    collect(step.needs)
                if not step.beside:
                    outcomes[step.name] = _finish(step, start(step))
                    _write(outcomes, steps, out)
            for name in list(beside):
                collect(name)
        finally:
            for _, running in beside.values():
                _end(running.process)
    return int(any(outcome.status != "done" for outcome in outcomes.values()))


def _start(step: Step, options: tuple[str, ...], folder: Path, log: Any) -> _Running:
    out, data = folder / f"{step.name}.md", folder / f"{step.name}.json"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, [os.environ.get("PYTHONPATH", ""), str(ROOT)]))}
    with out.open("wb") as stdout:
        process = subprocess.Popen(
            [sys.executable, "-u", *step.command, *options, "--json", str(data)],
            cwd=ROOT,
            stdout=stdout,
            stderr=log,
            env=environment,
            start_new_session=True,  # so that a step ends with all processes that it started
        )
    return _Running(process, time.monotonic(), out, data)


def _finish(step: Step, running: _Running) -> Outcome:
    """Wait for the step, no longer than it may take."""
    try:
        code = running.process.wait(max(0.0, running.started + step.seconds - time.monotonic()))
        status = f"failed with exit status {code}" if code else "done"
    except subprocess.TimeoutExpired:
        _end(running.process)
        status = f"out of time after {step.seconds:g} s"
    seconds = time.monotonic() - running.started
    try:
        data = json.loads(running.json.read_text(encoding="utf-8"))
    except (OSError, ValueError):  # it ended before it wrote any
        data = {}
    print(f"{step.name}: {status}, {seconds:.0f} s", file=sys.stderr, flush=True)
    return Outcome(status, seconds, running.out.read_text(encoding="utf-8", errors="replace"), data)


def _end(process: subprocess.Popen) -> None:
    for number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, number)
            process.wait(5)
            return
        except ProcessLookupError:
            return
        except subprocess.TimeoutExpired:
            continue


def _write(outcomes: dict[str, Outcome], steps: list[Step], out: Path) -> None:
    """Both files whole or not at all, in the order of the steps."""
    names = [step.name for step in steps if step.name in outcomes]
    commands = {step.name: " ".join(step.command) for step in steps}
    text = "\n\n".join(
        f"## {name}\n\n`python {commands[name]}`: {outcomes[name].status}, {outcomes[name].seconds:.0f} s\n\n{outcomes[name].text.strip()}"
        for name in names
    )
    data = {
        name: {"status": outcomes[name].status, "seconds": outcomes[name].seconds, "data": outcomes[name].data} for name in names
    }
    for file, content in ((out / "results.md", text + "\n"), (out / "results.json", json.dumps(data, indent=1) + "\n")):
        part = file.with_suffix(".part")
        part.write_text(content, encoding="utf-8")
        part.replace(file)


if __name__ == "__main__":
    sys.exit(main())
