"""What all kinds share that stop commands in the middle: the jobs, the loop over cases, the same command again."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

from benchmarks.campaign.child import in_child
from benchmarks.campaign.jobs import Job, jobs, leftovers
from benchmarks.campaign.kinds.http import demo_bundle
from benchmarks.campaign.run import Run, log
from benchmarks.campaign.sandbox import Case
from benchmarks.campaign.stopped import Command, imported
from benchmarks.campaign.verdicts import Fault, judge


class Commands:
    """Subclasses give `make` and `stopped`. unit: what is counted; seconds, changes: of each job, undisturbed."""

    name = ""
    share = 1.0
    unit = ""
    _known: ClassVar[dict[Path, dict[str, tuple[Job, float, int]]]] = {}  # of a run's folder, for all kinds

    def __init__(self) -> None:
        self.jobs: dict[str, Job] = {}
        self.seconds: dict[str, float] = {}
        self.changes: dict[str, int] = {}

    def lacking(self) -> str | None:
        return None

    def prepare(self, run: Run) -> None:
        demo_bundle(run)
        if run.folder not in self._known:
            self._known[run.folder] = _measured(run, self.name)
        for name, (job, seconds, changes) in self._known[run.folder].items():
            self.jobs[name], self.seconds[name], self.changes[name] = job, seconds, changes

    def make(self, run: Run, index: int) -> Case:
        raise NotImplementedError

    def stopped(self, run: Run, plan: dict[str, Any]) -> tuple[Fault | None, int]:
        """(what is wrong, how often a command was stopped)."""
        raise NotImplementedError

    def slice(self, run: Run, until: Callable[[int], bool]) -> None:
        counts = run.counts(self.name)
        while not until(counts["next"]):
            index = counts["next"]
            case = self.make(run, index)
            plan = json.loads(case.data)
            fault, stops = self.stopped(run, plan)
            counts["next"] = index + 1
            counts[self.unit] += stops
            counts[plan["job"]] += stops
            if fault:
                run.found(self.name, index, fault, case)

    def replay(self, run: Run, case: Case) -> Fault | None:
        return self.stopped(run, json.loads(case.data))[0]


def _measured(run: Run, name: str) -> dict[str, tuple[Job, float, int]]:
    """{job's name: the job, its seconds and its changes of files}, each run undisturbed; their imports stay in this process."""
    from runtime.engine import trt_api as trt

    found = {}
    for job in jobs():
        if job.name == "build" and not trt.installed("tensorrt-rtx"):
            log("build is left out: tensorrt-rtx is not installed")
            continue
        folder = fresh(run.work(name) / "job")
        job.begin(run.corpus, folder)
        ended, changes, modules = Command(job.module, job.words(run.corpus, folder), folder).measure()
        fault = None if ended.code == 0 else Fault("exit code", str(ended.code), ended.stderr[-3000:])
        fault = fault or in_child(job.complete, run.corpus, folder, folder=folder)
        if fault:
            raise RuntimeError(f"{job.name} fails undisturbed: {fault}")
        imported(modules)
        again = fresh(run.work(name) / "job")  # its time with everything imported
        job.begin(run.corpus, again)
        found[job.name] = job, Command(job.module, job.words(run.corpus, again), again).run().seconds, changes
    return found


def finished(run: Run, job: Job, folder: Path) -> Fault | None:
    """The same command, run to completion."""
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
