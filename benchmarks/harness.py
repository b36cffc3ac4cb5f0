"""What every benchmark shares: contestants in separate processes, medians of interleaved rounds, and the tables in results/.

A contestant is a command that prints one JSON object as its last line of stdout. Each run of it is a new process, so its
peak RSS and its cold start are its own; rounds go through all contestants in turn, forwards and backwards, so that a busy minute
or a warm chip hits all of them; every process gets the same number of threads. The scripts that start contestants must stay light
(no torch): Linux starts a child's peak RSS at its parent's.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import date
from importlib import metadata
from pathlib import Path
from statistics import median
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
TEXT_POSITIONS = 32  # chat template and question
STARTED = "BENCHMARK_STARTED"  # environment: when the parent started this contestant, seconds since the epoch


@dataclass(frozen=True)
class Run:
    """One run of a command: its last line of stdout as JSON ({} where it is none), wall seconds and peak RSS in bytes."""

    output: Any
    seconds: float
    peak_rss: int


@dataclass
class Contestant:
    """name: as the table says it; command: arguments after the interpreter, or after `program`; runs: one a round."""

    name: str
    command: list[str]
    runs: list[Run] = field(default_factory=list)
    program: str = ""

    def median(self, *path: str | int) -> float:
        """Median over the rounds of a number in the output; ("peak_rss",) and ("wall",) are those of the process."""
        return median(self.values(*path))

    def values(self, *path: str | int) -> list[float]:
        """The number of each round."""
        return [_value(run, path) for run in self.runs]


def compete(contestants: Sequence[Contestant], rounds: int, threads: int) -> None:
    """Run every contestant once a round, in turn; every second round in reverse."""
    for number in range(rounds):
        for contestant in contestants if number % 2 == 0 else reversed(contestants):
            log(f"round {number + 1} of {rounds}: {contestant.name}")
            if contestant.program:
                contestant.runs.append(run_command([contestant.program, *contestant.command], threads))
            else:
                contestant.runs.append(run_python(contestant.command, threads))


def run_python(arguments: Sequence[str], threads: int) -> Run:
    """Run `python ARGUMENTS` from the repository root; SystemExit with its stderr where it fails."""
    return run_command([sys.executable, *arguments], threads)


def run_command(command: Sequence[str], threads: int) -> Run:
    """The same for any program."""
    environment = os.environ | {name: str(threads) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")}
    environment |= {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as log:
        started, clock = time.time(), time.perf_counter()
        process = subprocess.Popen(command, cwd=ROOT, stdout=out, stderr=log, env=environment | {STARTED: repr(started)})
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - clock
        process.returncode = os.waitstatus_to_exitcode(status)
        out.seek(0), log.seek(0)
        text = out.read()
        if process.returncode:
            raise SystemExit(f"{shlex.join(command)} failed with {process.returncode}:\n{log.read()[-4000:]}")
    return Run(_json_of(text), seconds, usage.ru_maxrss * 1024)


def since_start() -> float:
    """In a contestant: seconds since the harness started its process."""
    return time.time() - float(os.environ[STARTED])


def log(message: str) -> None:
    print(message, file=sys.stderr, flush=True)


def table(columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """A markdown table; numbers are aligned right."""
    rows = [[_cell(value) for value in row] for row in rows]
    lines = ["| " + " | ".join(columns) + " |", "|---" + "|--:" * (len(columns) - 1) + "|"]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)])


def ratio_row(what: str, value: float, target: float | None, larger: bool = True) -> list[str]:
    """A row of the table of targets: the value, the target, and whether it is met."""
    if target is None:
        return [what, f"{value:.2f}", "", ""]
    met = value >= target if larger else value <= target
    return [what, f"{value:.2f}", f"{'≥' if larger else '≤'} {target:g}", "yes" if met else "no"]


def write_section(name: str, text: str) -> None:
    """Print a section and write it between its markers on the page in results/ that has them, under command, machine and versions.

    SystemExit where no page has `<!-- begin NAME -->` and `<!-- end NAME -->`.
    """
    body = f"{stamp()}\n\n{text.strip()}"
    print(body)
    begin, end = f"<!-- begin {name} -->", f"<!-- end {name} -->"
    for page in sorted(RESULTS.glob("*.md")):
        before, found, rest = page.read_text(encoding="utf-8").partition(begin)
        if found and end in rest:
            page.write_text(f"{before}{begin}\n{body}\n{end}{rest.partition(end)[2]}", encoding="utf-8")
            return
    raise SystemExit(f"no page in {RESULTS} has the markers of section {name!r}: add {begin} and {end} where its table belongs")


def stamp() -> str:
    """The command as a code block and one line on machine, date, commit and versions."""
    command = shlex.join(["python", str(Path(sys.argv[0]).resolve().relative_to(ROOT)), *sys.argv[1:]])
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in ("torch", "transformers", "onnxruntime"))
    return (
        f"```\n{command}\n```\n{hardware()} · {date.today()} · commit {_commit()} · Python {platform.python_version()}, {versions}"
    )


def hardware() -> str:
    """CPU model, logical cores and memory of this machine."""
    cpu = platform.processor() or platform.machine()
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                cpu = line.split(":", 1)[1].strip()
                break
    except OSError:
        pass
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return f"{cpu}, {os.cpu_count()} logical cores, {memory:.0f} GiB"


def arguments(description: str, **defaults: Any) -> argparse.ArgumentParser:
    """A parser with the options that all benchmarks have: --size, --threads, and --rounds where it has a default."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--size", choices=["tiny", "0.5b"], default=defaults.get("size", "0.5b"))
    parser.add_argument("--threads", type=int, default=2)
    if "rounds" in defaults:
        parser.add_argument("--rounds", type=int, default=defaults["rounds"])
    return parser


def _value(run: Run, path: tuple[str | int, ...]) -> float:
    if path in (("peak_rss",), ("wall",)):
        return run.peak_rss if path == ("peak_rss",) else run.seconds
    value = run.output
    for key in path:
        value = value[key]
    return value


def _json_of(text: str) -> Any:
    """The JSON in the text, or in its last line; {} where neither is JSON."""
    for candidate in (text, *text.strip().splitlines()[-1:]):
        try:
            return json.loads(candidate)
        except json.JSONDecodeError:
            continue
    return {}


def _cell(value: Any) -> str:
    if not isinstance(value, float):
        return str(value)
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"


def _commit() -> str:
    """Short commit id, marked where tracked sources differ from it (pages in results/ and plots are written by the runs)."""
    git = ["git", "-C", str(ROOT)]
    found = subprocess.run([*git, "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    if found.returncode:
        return "unknown"
    sources = ["export", "runtime", "plugins", "benchmarks/*.py"]
    changed = subprocess.run([*git, "status", "--porcelain", "--", *sources], capture_output=True, text=True, check=False).stdout
    return found.stdout.strip() + (" with uncommitted changes" if changed.strip() else "")
