"""Many inputs a second: a forked worker takes one after the other until one of them ends it.

The worker says which input it begins and what came of it; the parent watches processor time and the clock. A worker that an
input kills or stops is replaced, and the next input runs in a new one.
"""

from __future__ import annotations

import io
import json
import os
import resource
import select
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Protocol

from benchmarks.campaign.child import Child, cpu_seconds, memory_of, reset_peak
from benchmarks.campaign.verdicts import Ended, Fault, judge

WORKER_INPUTS = 400  # then a new worker, so that what an input left behind does not accumulate
ADDRESS_SPACE = 6 << 30  # bytes over the parent's, which keeps the machine usable


@dataclass(frozen=True)
class Case:
    """One input: its bytes and the suffix of the file that they are written to."""

    data: bytes
    suffix: str = ""


class Called(Protocol):
    """What a sandbox runs: `call` returns an exit code; seconds of processor time and bytes that one call may take."""

    seconds: float
    memory: int

    def call(self, case: Case, folder: Path) -> int: ...


@dataclass(frozen=True)
class Outcome:
    index: int
    fault: Fault | None
    code: int


def run_many(
    called: Called, make: Callable[[int], Case], start: int, until: Callable[[int], bool], folder: Path
) -> Iterator[Outcome]:
    """Outcomes of `make(start)`, `make(start + 1)`, … as long as `until(index)` is false."""
    index = start
    while not until(index):
        for outcome in _one_worker(called, make, index, until, folder):
            index = outcome.index + 1
            yield outcome


def run_one(called: Called, case: Case, folder: Path) -> Outcome:
    """The outcome of one input in a new worker."""
    return next(_one_worker(called, lambda _: case, 0, lambda index: index > 0, folder))


def _one_worker(
    called: Called, make: Callable[[int], Case], start: int, until: Callable[[int], bool], folder: Path
) -> Iterator[Outcome]:
    reading, writing = os.pipe()

    def work() -> int:
        os.close(reading)
        space = memory_of(os.getpid(), "VmSize") + ADDRESS_SPACE
        resource.setrlimit(resource.RLIMIT_AS, (space, space))
        for index in range(start, start + WORKER_INPUTS):
            if until(index):
                break
            _tell(writing, {"begin": index})
            ended = _call(called, make(index), folder)
            fault = judge(ended, called.memory)
            _tell(writing, {"end": index, "code": ended.code, "fault": asdict(fault) if fault else None})
        return 0

    child = Child(work, folder, "worker")
    os.close(writing)
    current: int | None = None
    began_cpu, began = 0.0, time.monotonic()
    with os.fdopen(reading, "rb", buffering=0) as pipe:
        pending = b""
        while True:
            if select.select([pipe], [], [], 0.2)[0]:
                chunk = pipe.read(65536)
                if not chunk:
                    break
                *lines, pending = (pending + chunk).split(b"\n")
                for line in lines:
                    message = json.loads(line)
                    if "begin" in message:
                        current, began, began_cpu = message["begin"], time.monotonic(), cpu_seconds(child.pid)
                    else:
                        current = None
                        fault = message["fault"]
                        yield Outcome(message["end"], Fault(**fault) if fault else None, message["code"])
            elif current is not None and (
                cpu_seconds(child.pid) - began_cpu > called.seconds or time.monotonic() - began > 6 * called.seconds
            ):
                ended = child.wait(0)
                yield Outcome(current, judge(ended), ended.code)
                return
    ended = child.wait(10)
    if current is not None:
        yield Outcome(current, judge(ended) or Fault("crash", "unknown", ended.stderr[-4000:]), ended.code)


def _call(called: Called, case: Case, folder: Path) -> Ended:
    """One input in this process, its output caught."""
    here, began = os.getpid(), time.monotonic()
    reset_peak(here)
    base = memory_of(here)
    out, err = sys.stdout, sys.stderr
    at = os.fstat(2).st_size
    sys.stdout = io.StringIO()
    try:
        code = called.call(case, folder)
    except BaseException:
        traceback.print_exc()
        code = 70
    finally:
        sys.stderr.flush()
        text, sys.stdout, sys.stderr = sys.stdout.getvalue(), out, err
    growth = memory_of(here, "VmHWM") - base
    with open(folder / "worker.stderr", "rb") as file:
        file.seek(at)
        stderr = file.read().decode(errors="replace")
    return Ended(code, text, stderr, time.monotonic() - began, max(0, growth))


def _tell(pipe: int, message: dict) -> None:
    os.write(pipe, json.dumps(message).encode() + b"\n")
