"""`kill -9` and Ctrl-C in the middle of export, build, batch, tokens and serve.

A case is JSON: the job, how the moment is chosen (after a share of its time, at a share of its changes to files, or after a share of
the time of a separate process), and whether the same command must then complete. Afterwards the older bundle opens with
every hash right, nothing partial looks complete, and rows are there once. Ctrl-C ends within a minute with one line, exit code 130
and no temporary file left.
"""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

from benchmarks.campaign.child import in_child
from benchmarks.campaign.jobs import Job, leftovers
from benchmarks.campaign.kinds.commands import Commands, finished, fresh
from benchmarks.campaign.kinds.served import stopped_server
from benchmarks.campaign.run import Run
from benchmarks.campaign.sandbox import Case
from benchmarks.campaign.stopped import Command
from benchmarks.campaign.verdicts import Ended, Fault, judge

_MODES = ("time", "time", "time", "change", "change", "change", "process")
_PROCESS_START = 1.3  # times as long: a separate process also imports


class Signals(Commands):
    """Both kinds; number: the signal."""

    share = 3.0
    number = signal.SIGKILL
    unit = "kills"

    def prepare(self, run: Run) -> None:
        super().prepare(run)
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

    def stopped(self, run: Run, plan: dict[str, Any]) -> tuple[Fault | None, int]:
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
