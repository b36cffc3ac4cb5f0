"""Everything that needs a GPU, in one command on a bare machine; results are written as they come.

    python benchmarks/gpu.py --out DIR                        every step, each within its own time limit
    python benchmarks/gpu.py --out DIR --steps kernel torch   some of them; the results of others in DIR are kept
    python benchmarks/gpu.py --plan                           what each step does, its bytes, its expected times; needs no GPU
    python benchmarks/gpu.py --out DIR --device cpu           every step at a tiny size, to show that it runs

Out: DIR/results.md (the tables of all steps), DIR/results.json ({step: {"status", "seconds", "command", "text", "data"}}) and
DIR/log.txt. Both results are written again after each step, so that whatever ends the run loses nothing that was measured; Ctrl-C
and SIGTERM end the running step with all that it started. A step that fails or runs out of time stops no other one; the exit
status is 1 if there was such a step. Bundles are made under DIR too.

A step is a script with the options --device, --plan and --json: its tables go to stdout, its progress to stderr. Needed are torch
with CUDA, transformers, cuda-bindings and NVRTC; the steps onnxruntime and 0.5b need onnxruntime-gpu, onnx-graphsurgeon and
polygraphy, the step checks nvcc, CMake and compute-sanitizer, and the step tensorrt-rtx that package and --engines.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks import processes
from benchmarks.json_file import write_json, write_text

ROOT = Path(__file__).resolve().parent.parent
GRACE = 5.0  # seconds for a step that must end to end what it started, and to write what it has


@dataclass(frozen=True)
class Step:
    """command: after the interpreter; seconds: its time limit; beside: left to run beside the steps after it, until one that
    `needs` it begins."""

    name: str
    command: tuple[str, ...]
    seconds: float
    beside: bool = False
    needs: str = ""


@dataclass
class Outcome:
    """status: "done", "failed" with the exit status, "out of time" or "interrupted"; text: what it printed; data: its JSON."""

    status: str
    seconds: float
    command: str
    text: str
    data: Any = field(default_factory=dict)


@dataclass
class _Running:
    step: Step
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
    with processes.none_left(GRACE):
        return run_steps(chosen, args.out, ("--device", args.device))


def all_steps(out: Path, device: str, engines: Path | None = None) -> list[Step]:
    """The most valuable first. The export, minutes on half of the cores, begins after the steps that time
    launches of torch, which it would slow down.

    seconds: twice what an H200 took or more; the limits of a step's parts fit into it.
    """
    demo, large = str(out.resolve() / "demo"), str(out.resolve() / "large")
    ort, size = "benchmarks/gpu_onnxruntime.py", "0.5b" if device == "cuda" else "tiny"
    of_size = ("--size", size, "--bundle", f"{large}/fp16")
    tiny = device == "cpu"
    half = str(max(1, (os.cpu_count() or 2) // 2))
    steps = [
        Step("facts", ("benchmarks/gpu_facts.py",), 30),
        Step("kernel", ("benchmarks/gpu_plugin.py", *(("--rounds", "2") if tiny else ())), 150),
        Step(
            "torch",
            ("benchmarks/gpu_speed.py", *(("--size", "tiny", "tiny-qwen3-vl", "--frames", "4", "--rounds", "2") if tiny else ())),
            300,
        ),
        Step("bundle", (ort, "--make", size, large, "--threads", half), 600, beside=True),
        Step("checks", ("benchmarks/gpu_memory_checks.py", "--jobs", str(min(14, os.cpu_count() or 2))), 300),
        Step("onnxruntime", (ort, "--demo", demo, "--parts", "parity", "placement", "options", "state", *_rounds(tiny)), 450),
        Step(
            "0.5b", (ort, *of_size, "--parts", "race", "prefill", "bench", "placement-large", *_rounds(tiny)), 300, needs="bundle"
        ),
    ]
    return [*steps, Step("tensorrt-rtx", ("benchmarks/gpu_tensorrt_rtx.py", str(engines.resolve())), 240)] if engines else steps


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
    outcomes = _earlier(out)
    order = [*outcomes, *(step.name for step in steps)]
    running: dict[str, _Running] = {}

    def collect(name: str, interrupted: bool = False) -> None:
        outcomes[name] = _finish(running[name], interrupted)
        del running[name]
        _write({name: outcomes[name] for name in order if name in outcomes}, out)

    with tempfile.TemporaryDirectory() as kept, (out / "log.txt").open("a", encoding="utf-8") as log:
        try:
            for step in steps:
                if step.needs in running:
                    collect(step.needs)
                running[step.name] = _start(step, options, Path(kept), log)
                if not step.beside:
                    collect(step.name)
            for name in list(running):
                collect(name)
        finally:
            for name in list(running):
                collect(name, interrupted=True)
    return int(any(outcomes[step.name].status != "done" for step in steps))


def _earlier(out: Path) -> dict[str, Outcome]:
    """What an earlier run left in the same directory; SystemExit where that can't be read, rather than write over it."""
    file = out / "results.json"
    if not file.exists():
        return {}
    try:
        return {name: Outcome(**one) for name, one in json.loads(file.read_text(encoding="utf-8")).items()}
    except (ValueError, TypeError, AttributeError) as error:
        raise SystemExit(f"error: {file} is not what this script writes ({error}); move it, or name another --out") from None


def _start(step: Step, options: tuple[str, ...], folder: Path, log: Any) -> _Running:
    print(f"{step.name}: {' '.join(step.command)}", file=sys.stderr, flush=True)
    out, data = folder / f"{step.name}.md", folder / f"{step.name}.json"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, [os.environ.get("PYTHONPATH", ""), str(ROOT)]))}
    command = [sys.executable, "-u", *step.command, *options, "--json", str(data)]
    with out.open("wb") as stdout:
        process = processes.start(command, cwd=ROOT, stdout=stdout, stderr=log, env=environment)
    return _Running(step, process, time.monotonic(), out, data)


def _finish(running: _Running, interrupted: bool) -> Outcome:
    """Wait for the step, no longer than it may take, or end it now."""
    step, code = running.step, None
    if interrupted:
        processes.end(running.process, GRACE)
        status = "interrupted"
    else:
        code = processes.wait(running.process, max(0.0, running.started + step.seconds - time.monotonic()), GRACE)
        status = f"out of time after {step.seconds:g} s" if code is None else f"failed with exit status {code}" if code else "done"
    seconds = time.monotonic() - running.started
    print(f"{step.name}: {status}, {seconds:.0f} s", file=sys.stderr, flush=True)
    text = running.out.read_text(encoding="utf-8", errors="replace")
    return Outcome(status, seconds, " ".join(step.command), text, _data(running.json))


def _data(file: Path) -> Any:
    """A step's JSON; where it was killed, with what its parts had written beside it."""
    try:
        data = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):  # it ended before it wrote any
        data = {}
    for part in sorted(file.with_name(f"{file.name}.parts").glob("*.json")):
        data.setdefault(part.stem, json.loads(part.read_text(encoding="utf-8")))
    return data


def _write(outcomes: dict[str, Outcome], out: Path) -> None:
    sections = [
        f"## {name}\n\n`python {one.command}`: {one.status}, {one.seconds:.0f} s\n\n{one.text.strip()}"
        for name, one in outcomes.items()
    ]
    write_text(out / "results.md", "\n\n".join(sections) + "\n")
    write_json(out / "results.json", {name: asdict(one) for name, one in outcomes.items()})


if __name__ == "__main__":
    sys.exit(main())
