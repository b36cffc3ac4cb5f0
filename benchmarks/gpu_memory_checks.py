"""The CUDA code that needs no TensorRT, on a GPU and under compute-sanitizer: buffers, page-locked memory, graphs, the kernel.

    python benchmarks/gpu_memory_checks.py --plan                       what runs, and how long it should take
    python benchmarks/gpu_memory_checks.py --json checks.json           all of it; --only memcheck or --only kernel for a part
    python benchmarks/gpu_memory_checks.py --device cpu                 the C++ programs on stand-ins for CUDA, no GPU needed

Builds the C++ programs with the CUDA toolkit, runs them and the Python tests that need a GPU, then both under the tools of
compute-sanitizer. Each tool must also find a fault that was planted for it: one that finds nothing there shows nothing elsewhere.
Checks run side by side, because none of them measures time, and none stops another. Exit status 1 where one did not pass.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from dataclasses import asdict, dataclass, field
from pathlib import Path

import gpu_programs
import processes
from gpu_check_list import Check, cases_file, planned
from json_file import write_json
from kernel_cases import case_set, write_cases
from sanitizer_report import MISSING, PASSED, WRONG, Verdict, judged

ROOT = Path(__file__).resolve().parent.parent
SANITIZER = ("--error-exitcode", "9", "--print-limit", "20", "--target-processes", "application-only", "--launch-timeout", "60")
PORTS = 49152, 10  # the first that compute-sanitizer tries, and how many: each check has its own
# the programs ask for what CUDA must refuse, and torch does too: what they make of a refused call they check themselves
MEMCHECK = ("--report-api-errors", "no")


@dataclass
class Outcome:
    """A row of the results. log: the end of the output, where it did not pass."""

    name: str
    tool: str
    verdict: str
    words: str
    seconds: float
    command: str = ""
    log: str = field(default="", repr=False)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--plan", action="store_true", help="print what would run and how long it should take")
    parser.add_argument("--only", default="", metavar="WORD", help="only checks with this in their name or tool")
    parser.add_argument("--jobs", type=int, default=min(6, os.cpu_count() or 1), help="checks at a time")
    parser.add_argument("--json", type=Path, help="write the results here, anew after each check")
    parser.add_argument("--work", type=Path, help="folder for what is built and written (a temporary one)")
    args = parser.parse_args()

    def chosen(work: Path) -> list[Check]:
        return [check for check in planned(args.device, work) if args.only in check.title]

    if args.plan:
        return _print_plan(chosen(args.work or Path("WORK")), args.jobs)
    with processes.none_left(), tempfile.TemporaryDirectory(prefix="gpu-checks-") as folder:
        work = (args.work or Path(folder)).resolve()
        outcomes = run_all(chosen(work), args.device, work, args.jobs, args.json)
    passed = sum(outcome.verdict == PASSED for outcome in outcomes)
    print(f"\n{passed} of {len(outcomes)} checks passed", flush=True)
    return int(not outcomes or passed < len(outcomes))


def run_all(checks: list[Check], device: str, work: Path, jobs: int, report: Path | None) -> list[Outcome]:
    """Each check's outcome, in the order in which they ended; printed and written as they come."""
    print("| check | under | verdict | s | what was seen |\n|---|---|---|---:|---|", flush=True)
    outcomes: list[Outcome] = []
    with ThreadPoolExecutor(2) as builders, ThreadPoolExecutor(jobs) as runners:
        builds = _builds(builders, checks, device, work)
        futures = [runners.submit(_run, number, check, device, work, builds) for number, check in enumerate(checks)]
        try:
            for future in as_completed(futures):
                outcomes.append(future.result())
                _print_row(outcomes[-1])
                write_json(report, {"device": device, "checks": [asdict(one) for one in outcomes]})
        except BaseException:  # asked to end: the pools wait for what they began, which is ended here
            for future in futures:
                future.cancel()
            processes.end_all()
            raise
    return outcomes


def _print_row(outcome: Outcome) -> None:
    words = outcome.words.replace("|", "\\|")
    row = [outcome.name, outcome.tool or "nothing", f"**{outcome.verdict}**" if outcome.verdict != PASSED else PASSED]
    print(f"| {' | '.join([*row, f'{outcome.seconds:.1f}', words])} |", flush=True)


def sanitizer() -> str:
    """The path of compute-sanitizer, "" where it is not installed."""
    return shutil.which("compute-sanitizer") or shutil.which("compute-sanitizer", path="/usr/local/cuda/bin") or ""


def _builds(pool: ThreadPoolExecutor, checks: list[Check], device: str, work: Path) -> dict[str, Future[Path]]:
    """Starts to build what the checks need: {program: where it will be}."""
    builds: dict[str, Future[Path]] = {}
    programs = {check.program for check in checks}
    if "cuda" in programs:
        builds["cuda"] = pool.submit(_built, "C++ CUDA calls", gpu_programs.build_cuda_program, device, work / "cuda")
    if programs & {"kernel", "planted"}:
        builds["kernel"] = pool.submit(_built, "C++ kernel library", gpu_programs.build_kernel_programs, device, work / "kernel")
    for name in sorted({check.cases for check in checks} - {""}):
        work.mkdir(parents=True, exist_ok=True)
        write_cases(case_set(name), cases_file(work, name))
    return builds


def _built(name: str, build: Callable[[str, Path], Path], device: str, folder: Path) -> Path:
    started = time.perf_counter()
    program = build(device, folder)
    print(f"built for {name}: {time.perf_counter() - started:.1f} s", file=sys.stderr, flush=True)
    return program


def _run(number: int, check: Check, device: str, work: Path, builds: dict[str, Future[Path]]) -> Outcome:
    started = time.perf_counter()
    try:
        if check.program and not gpu_programs.missing(device):
            builds["kernel" if check.program == "planted" else check.program].result()
            started = time.perf_counter()
        verdict, text, command = _executed(number, check, device, work, builds)
    except Exception as error:  # whatever it is, the other checks go on
        verdict, text, command = Verdict(WRONG, f"{type(error).__name__}: {error}".replace("\n", " ")[:500]), str(error), []
    log = "" if verdict.verdict == PASSED else text[-6000:]
    return Outcome(check.name, check.tool, verdict.verdict, verdict.words, time.perf_counter() - started, " ".join(command), log)


def _executed(
    number: int, check: Check, device: str, work: Path, builds: dict[str, Future[Path]]
) -> tuple[Verdict, str, list[str]]:
    lacking = gpu_programs.missing(device) if check.program else ""
    if lacking:
        return Verdict(MISSING, f"the program can't be built here: no {lacking}"), "", []
    if check.tool and not sanitizer():
        return Verdict(MISSING, "no compute-sanitizer on this machine"), "", []
    command, folder = list(check.command), work
    if check.program:
        program = builds["kernel" if check.program == "planted" else check.program].result()
        folder = program.parent
        command.insert(0, str(program.with_name("planted-faults") if check.program == "planted" else program))
    if check.tool:
        port = ("--port", str(PORTS[0] + number * PORTS[1]))
        memcheck = MEMCHECK if check.tool == "memcheck" else ()
        command = [sanitizer(), "--tool", check.tool, *SANITIZER, *port, *memcheck, *check.options, *command]
    print(f"running: {check.title}", file=sys.stderr, flush=True)
    environment = gpu_programs.environment(device, folder) if check.program else dict(os.environ)
    # a new session: otherwise compute-sanitizer's target outlives it and keeps the GPU
    text, status = processes.run(command, check.limit, cwd=ROOT, env=environment)
    if status is None:
        return Verdict(WRONG, f"not done after {check.limit} s"), text, command
    verdict = judged(text, status, check.tool, check.proof, check.planted, check.kernels)
    if check.faults and verdict.verdict == PASSED:
        faults, largest = check.faults()
        if faults:
            return Verdict(WRONG, f"{len(faults)} cases are wrong: {faults[0]}"), "\n".join(faults), command
        verdict = Verdict(PASSED, f"{verdict.words}; worst error {largest:.2g} of the tolerance")
    return verdict, text, command


def _print_plan(checks: list[Check], jobs: int) -> int:
    print("| check | under | s expected | at most |\n|---|---|---:|---:|")
    for check in checks:
        print(f"| {check.name} | {check.tool or 'nothing'} | {check.seconds} | {check.limit} |")
    longest, total = max((check.seconds for check in checks), default=0), sum(check.seconds for check in checks)
    print(f"\n{len(checks)} checks, {jobs} at a time, after builds of 30 s: about {30 + max(longest, total // jobs)} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
