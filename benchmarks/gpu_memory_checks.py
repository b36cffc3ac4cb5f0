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
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from dataclasses import asdict, dataclass, field
from pathlib import Path

import gpu_programs
from sanitizer_report import MISSING, PASSED, TOOLS, WRONG, Verdict, judged

ROOT = Path(__file__).resolve().parent.parent
CUDA_TESTS = "tests/runtime/engine/test_cuda_on_gpu.py"
KERNEL_TESTS = "tests/plugins/test_kernel_on_gpu.py"
# the programs ask for what CUDA must refuse, and torch does too: a refused call is no fault, what they make of it they check themselves
SANITIZER = ("--error-exitcode", "9", "--print-limit", "20", "--target-processes", "application-only", "--report-api-errors", "no")
# leaks are looked for when the context ends, which a test run leaves to the driver
PYTEST_THEN_RESET = (
    "import sys, pytest; status = pytest.main(sys.argv[1:]); from runtime.engine import cuda; "
    "cuda._runtime().cudaDeviceReset(); sys.exit(int(status))"
)
PASSED_TESTS, FACTS, CASES = r"^=*\s*(\d+) passed.*", r"^(\d+) facts, 0 wrong", r"^(\d+) cases, \d+ replays each, 0 of them differ"


@dataclass(frozen=True)
class Check:
    """One command. tool: of compute-sanitizer, "" without; seconds: expected on an H100; proof, planted: see sanitizer_report.judged.

    program: the build whose program stands first in the command, "" for Python; faults: what else is wrong after a good run.
    """

    name: str
    tool: str
    command: tuple[str, ...]
    seconds: int
    proof: str = ""
    planted: bool = False
    program: str = ""
    options: tuple[str, ...] = ()
    faults: Callable[[], tuple[list[str], float]] | None = None

    @property
    def title(self) -> str:
        return f"{self.name} ({self.tool})" if self.tool else self.name


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
    work = (args.work or Path(tempfile.mkdtemp(prefix="gpu-checks-"))).resolve()
    checks = [check for check in planned(args.device, work) if args.only in check.title]
    if args.plan:
        return _print_plan(checks, args.jobs)
    outcomes = run_all(checks, args.device, work, args.jobs, args.json)
    passed = sum(outcome.verdict == PASSED for outcome in outcomes)
    print(f"\n{passed} of {len(outcomes)} checks passed", flush=True)
    return int(not outcomes or passed < len(outcomes))


def planned(device: str, work: Path) -> list[Check]:
    """The checks, those that tell most first. Nothing is built or written yet."""
    if device == "cpu":
        return [
            Check("C++ CUDA calls on a stand-in", "", (), 1, FACTS, program="cuda"),
            _kernel_check("C++ kernel library on a stand-in", "", work, 10, golden=False),
        ]
    pytest = (sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", "gpu")
    split = ("-n", "6") if importlib.util.find_spec("xdist") else ()
    checks = [
        Check("GPU tests of pytest", "", (*pytest, *split, KERNEL_TESTS, CUDA_TESTS), 60, PASSED_TESTS),
        Check("C++ CUDA calls", "", (), 2, FACTS, program="cuda"),
        _kernel_check("C++ kernel library", "", work, 4, replays=20),
        Check("C++ CUDA calls", "memcheck", (), 5, FACTS, program="cuda", options=("--leak-check", "full")),
        Check("C++ CUDA calls", "initcheck", (), 5, FACTS, program="cuda"),
        *(_kernel_check("C++ kernel library", tool, work, 20) for tool in TOOLS),
        Check("planted leak", "memcheck", ("--leak",), 5, planted=True, program="cuda", options=("--leak-check", "full")),
        *(Check("planted fault", tool, (tool,), 4, planted=True, program="planted") for tool in TOOLS),
    ]
    leaky = (sys.executable, "-c", PYTEST_THEN_RESET, "-q", "-p", "no:cacheprovider", "-m", "gpu", CUDA_TESTS)
    some = (*pytest, KERNEL_TESTS, "-k", "authors or captured or overflow")
    small = (sys.executable, "benchmarks/gpu_plugin.py", "--small")
    checks += [
        Check("Python CUDA calls", "memcheck", leaky, 10, PASSED_TESTS, options=("--leak-check", "full")),
        Check("Python kernel", "memcheck", some, 40, PASSED_TESTS),
        Check("gpu_plugin.py --small", "memcheck", small, 60),
        Check("gpu_plugin.py --small", "racecheck", small, 60),
    ]
    return checks


def run_all(checks: list[Check], device: str, work: Path, jobs: int, report: Path | None) -> list[Outcome]:
    """Each check's outcome, in the order in which they ended; printed and written as they come."""
    print("| check | under | verdict | s | what was seen |\n|---|---|---|---:|---|", flush=True)
    outcomes: list[Outcome] = []
    with ThreadPoolExecutor(2) as builders, ThreadPoolExecutor(jobs) as runners:
        builds = _builds(builders, checks, device, work)
        for future in as_completed([runners.submit(_run, check, device, work, builds) for check in checks]):
            outcome = future.result()
            outcomes.append(outcome)
            words = outcome.words.replace("|", "\\|")
            row = [outcome.name, outcome.tool or "nothing", f"**{outcome.verdict}**" if outcome.verdict != PASSED else PASSED]
            print(f"| {' | '.join([*row, f'{outcome.seconds:.1f}', words])} |", flush=True)
            if report:
                report.write_text(json.dumps({"device": device, "checks": [asdict(one) for one in outcomes]}, indent=1) + "\n")
    return outcomes


def sanitizer() -> str:
    """The path of compute-sanitizer, "" where it is not installed."""
    return shutil.which("compute-sanitizer") or shutil.which("compute-sanitizer", path="/usr/local/cuda/bin") or ""


def _kernel_check(name: str, tool: str, work: Path, seconds: int, golden: bool = True, replays: int = 2) -> Check:
    """The library's cases in a file, the program's tokens in another, and both compared afterwards."""
    from kernel_cases import kernel_cases, wrong_cases

    tokens = work / f"tokens-{tool or 'plain'}"
    # initcheck looks for reads of what nobody wrote, which poison would hide from it
    command = (str(work / "cases"), str(tokens), "--replays", str(replays), *(["--no-poison"] if tool == "initcheck" else []))
    cases = kernel_cases(golden)
    return Check(name, tool, command, seconds, CASES, program="kernel", faults=lambda: wrong_cases(cases, tokens))


def _builds(pool: ThreadPoolExecutor, checks: list[Check], device: str, work: Path) -> dict[str, Future[Path]]:
    """What the checks need, under way: {program: where it will be}."""
    builds: dict[str, Future[Path]] = {}
    programs = {check.program for check in checks}
    if "cuda" in programs:
        builds["cuda"] = pool.submit(_built, "C++ CUDA calls", gpu_programs.build_cuda_program, device, work / "cuda")
    if programs & {"kernel", "planted"}:
        builds["kernel"] = pool.submit(_built, "C++ kernel library", gpu_programs.build_kernel_programs, device, work / "kernel")
    if "kernel" in programs:
        from kernel_cases import kernel_cases, write_cases

        work.mkdir(parents=True, exist_ok=True)
        write_cases(kernel_cases(golden=device == "cuda"), work / "cases")
    return builds


def _built(name: str, build: Callable[[str, Path], Path], device: str, folder: Path) -> Path:
    started = time.perf_counter()
    program = build(device, folder)
    print(f"built for {name}: {time.perf_counter() - started:.1f} s", file=sys.stderr, flush=True)
    return program


def _run(check: Check, device: str, work: Path, builds: dict[str, Future[Path]]) -> Outcome:
    started = time.perf_counter()
    try:
        verdict, text, command = _executed(check, device, work, builds)
    except Exception as error:  # whatever it is, the other checks go on
        verdict, text, command = Verdict(WRONG, f"{type(error).__name__}: {error}".replace("\n", " ")[:500]), str(error), []
    log = "" if verdict.verdict == PASSED else text[-6000:]
    return Outcome(check.name, check.tool, verdict.verdict, verdict.words, time.perf_counter() - started, " ".join(command), log)


def _executed(check: Check, device: str, work: Path, builds: dict[str, Future[Path]]) -> tuple[Verdict, str, list[str]]:
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
        command = [sanitizer(), "--tool", check.tool, *SANITIZER, *check.options, *command]
    print(f"running: {check.title}", file=sys.stderr, flush=True)
    environment = gpu_programs.environment(device, folder) if check.program else dict(os.environ)
    try:
        done = subprocess.run(
            command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=_limit(check)
        )
    except subprocess.TimeoutExpired as error:
        text = (error.output or b"").decode(errors="replace")
        return Verdict(WRONG, f"not done after {error.timeout:.0f} s"), text, command
    text = done.stdout.decode(errors="replace")
    verdict = judged(text, done.returncode, check.tool, check.proof, check.planted)
    if check.faults and verdict.verdict == PASSED:
        faults, largest = check.faults()
        if faults:
            return Verdict(WRONG, f"{len(faults)} cases are wrong: {faults[0]}"), "\n".join(faults), command
        verdict = Verdict(PASSED, f"{verdict.words}; worst error {largest:.2g} of the tolerance")
    return verdict, text, command


def _limit(check: Check) -> int:
    return 40 + 3 * check.seconds


def _print_plan(checks: list[Check], jobs: int) -> int:
    print("| check | under | s expected | at most |\n|---|---|---:|---:|")
    for check in checks:
        print(f"| {check.name} | {check.tool or 'nothing'} | {check.seconds} | {_limit(check)} |")
    longest, total = max((check.seconds for check in checks), default=0), sum(check.seconds for check in checks)
    print(f"\n{len(checks)} checks, {jobs} at a time, after builds of 30 s: about {30 + max(longest, total // jobs)} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
