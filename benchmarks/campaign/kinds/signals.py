"""`kill -9` and Ctrl-C in the middle of export, build, batch, tokens and serve.

A case is JSON: the job, how the moment is chosen (after a share of its time, at a share of its changes to files, or after a share of
the time of a process of its own), and whether the same command must then come to its end. Afterwards the older bundle opens with
every hash right, nothing partial looks complete, and rows are there once. Ctrl-C ends within a minute with one line, exit code 130
and no temporary file left.
"""

from __future__ import annotations

import json
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.campaign.child import in_child
from benchmarks.campaign.jobs import Job, jobs, leftovers
from benchmarks.campaign.kinds.http import demo_bundle
from benchmarks.campaign.kinds.served import stopped_server
from benchmarks.campaign.run import Run, say
from benchmarks.campaign.sandbox import Case
from benchmarks.campaign.stopped import Command, imported
from benchmarks.campaign.verdicts import Ended, Fault, judge

_MODES = ("time", "time", "time", "change", "change", "change", "process")
_PROCESS_START = 1.3  # a process of its own takes longer, for its imports: times as long


class Signals:
    """Both kinds; number: the signal; unit: what is counted."""

    name = ""
    share = 3.0
    number = signal.SIGKILL
    unit = "kills"

    def __init__(self) -> None:
        self.jobs: dict[str, Job] = {}
        self.seconds: dict[str, float] = {}
        self.changes: dict[str, int] = {}

    def lacking(self) -> str | None:
        return None

    def prepare(self, run: Run) -> None:
        demo_bundle(run)
        prepare_jobs(run, self)
        from benchmarks.campaign.kinds import served

        self.served = served.Served(run)

    def make(self, run: Run, index: int) -> Case:
        rng = run.rng(self.name, index)
        plan = {
            "job": rng.choice([*self.jobs, "batch", "batch", "tokens", "serve"]),
            "mode": rng.choice(_MODES),
            "shares": [rng.random() for _ in range(3)],
            "again": rng.random() < 0.15,
        }
        return Case(json.dumps(plan).encode(), ".json")

    def slice(self, run: Run, until: Callable[[int], bool]) -> None:
        counts = run.counts(self.name)
        while not until(counts["next"]):
            index = counts["next"]
            case = self.make(run, index)
            fault, hits = self._try(run, json.loads(case.data))
            counts["next"] = index + 1
            counts[self.unit] += hits
            counts[f"{json.loads(case.data)['job']}"] += hits
            if fault:
                run.found(self.name, index, fault, case)

    def replay(self, run: Run, case: Case) -> Fault | None:
        return self._try(run, json.loads(case.data))[0]

    def _try(self, run: Run, plan: dict[str, Any]) -> tuple[Fault | None, int]:
        """(what is wrong, how many signals came in time)."""
        if plan["job"] == "serve":
            fault = stopped_server(run, self.served, self.number, plan["shares"][0])
            return fault, 1
        job, folder = self.jobs[plan["job"]], fresh(run.work(self.name) / "job")
        job.begin(run.corpus, folder)
        hits = 0
        for share in plan["shares"][: job.chained]:
            ended, hit = self._stop(Command(job.module, job.words(run.corpus, folder), folder), job, plan["mode"], share)
            hits += hit
            fault = self._judge(ended, hit, folder) or in_child(job.fault, run.corpus, folder, folder=folder)
            if fault:
                return fault, hits
            if not hit:
                break
        if plan["again"] or job.chained > 1:
            return finished(run, job, folder), hits
        return None, hits

    def _stop(self, command: Command, job: Job, mode: str, share: float) -> tuple[Ended, bool]:
        if mode == "change":
            return command.stopped_at(self.number, 1 + int(share * self.changes[job.name]))
        seconds = self.seconds[job.name] * share
        if mode == "process":
            return command.process_stopped_after(self.number, _PROCESS_START * seconds + 2 * share)
        ended, hit = command.stopped_after(self.number, seconds)
        if not hit and not ended.code:  # the machine is faster now than when it was measured, or slower: keep up with it
            self.seconds[job.name] += 0.2 * (ended.seconds - self.seconds[job.name])
        return ended, hit

    def _judge(self, ended: Ended, hit: bool, folder: Path) -> Fault | None:
        if not hit:
            return judge(ended) or (
                Fault("exit code", f"{ended.code} of a good command", ended.stderr[-2000:]) if ended.code else None
            )
        return None if ended.code == -signal.SIGKILL else Fault("exit code", f"{ended.code} after kill -9", ended.stderr[-2000:])


class Kills(Signals):
    name = "kills"


class Interrupts(Signals):
    name = "interrupts"
    share = 2.0
    number = signal.SIGINT
    unit = "interrupts"

    def _judge(self, ended: Ended, hit: bool, folder: Path) -> Fault | None:
        if not hit:
            return super()._judge(ended, hit, folder)
        fault = judge(ended)
        if fault and "KeyboardInterrupt" in ended.stderr and fault.place.endswith("unknown"):
            return None  # no line of this project had run: the interpreter itself was still starting
        if fault:
            return fault
        if ended.code not in (0, 130):
            return Fault("exit code", f"{ended.code} after Ctrl-C", ended.stderr[-2000:])
        errors = [line for line in ended.stderr.splitlines() if line.startswith("error: ")]
        if ended.code == 130 and len(errors) != 1:
            return Fault("message", f"{len(errors)} error lines after Ctrl-C", ended.stderr[-2000:])
        left = leftovers(folder) + [path.name for path in (folder / "tmp").iterdir()]
        return Fault("lost", "temporary files stay after Ctrl-C", str(left)) if left else None


def prepare_jobs(run: Run, kind: Any) -> None:
    """Each job undisturbed, once: how long it takes, how often it changes a file, what it imports."""
    from runtime.engine import trt

    for job in jobs():
        if job.name == "build" and not trt.installed("tensorrt-rtx"):
            say("build is left out: tensorrt-rtx is not installed")
            continue
        folder = fresh(run.work(kind.name) / "job")
        job.begin(run.corpus, folder)
        ended, changes, modules = Command(job.module, job.words(run.corpus, folder), folder).measure()
        fault = None if ended.code == 0 else Fault("exit code", str(ended.code), ended.stderr[-3000:])
        fault = fault or in_child(job.complete, run.corpus, folder, folder=folder)
        if fault:
            raise RuntimeError(f"{job.name} fails undisturbed: {fault}")
        imported(modules)
        kind.jobs[job.name], kind.changes[job.name] = job, changes
        again = fresh(run.work(kind.name) / "job")  # its time with everything imported
        job.begin(run.corpus, again)
        kind.seconds[job.name] = Command(job.module, job.words(run.corpus, again), again).run().seconds


def finished(run: Run, job: Job, folder: Path) -> Fault | None:
    """The same command, let come to its end."""
    ended = Command(job.module, job.words(run.corpus, folder), folder).run()
    if ended.code == 2 and "pass --force" in ended.stderr:  # the stopped one had got there
        return None
    fault = judge(ended) or (
        Fault("exit code", f"{ended.code} of the same command again", ended.stderr[-2000:]) if ended.code else None
    )
    fault = (
        fault or in_child(job.complete, run.corpus, folder, folder=folder) or in_child(job.fault, run.corpus, folder, folder=folder)
    )
    left = leftovers(folder)
    return fault or (Fault("lost", "temporary files stay after the same command again", str(left)) if left else None)


def fresh(folder: Path) -> Path:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder
