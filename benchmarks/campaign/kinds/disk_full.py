"""A disk that fills up in the middle of export, build, batch and tokens; and a full one behind stdout.

As root the disk is a tmpfs of a few MB, mounted for the case; otherwise RLIMIT_FSIZE takes its place. A case is JSON: the job and how
much of what it needs there is room for. It must end with exit code 2 and one line, or with 0 where there was room after all; what was
there before stays, nothing is left over, and once there is room the same command succeeds.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.campaign.child import Child, in_child
from benchmarks.campaign.jobs import OUT, leftovers
from benchmarks.campaign.kinds.commands import Commands, finished, fresh
from benchmarks.campaign.run import Run
from benchmarks.campaign.sandbox import Case
from benchmarks.campaign.stopped import LIMIT, Command
from benchmarks.campaign.verdicts import ROOT, Ended, Fault, judge

_PRINTING = (
    ("export", "--list"),
    ("export", "--list", "--json"),
    ("runtime", "doctor", "--json"),
    ("runtime", "inspect", "BUNDLE"),
)


class DiskFull(Commands):
    name = "disk-full"
    unit = "full disks"

    def __init__(self) -> None:
        super().__init__()
        self.room: dict[str, tuple[int, int]] = {}

    def prepare(self, run: Run) -> None:
        super().prepare(run)
        for name, job in self.jobs.items():  # what is there before, and what is written beside it
            folder = fresh(run.work(self.name) / "job")
            job.begin(run.corpus, folder)
            before = _size(folder)
            Command(job.module, job.words(run.corpus, folder), folder).run()
            self.room[name] = before, _size(folder / OUT)

    def make(self, run: Run, index: int) -> Case:
        rng = run.rng(self.name, index)
        plan = {
            "job": rng.choice([*self.jobs, "batch", "tokens", "print"]),
            "share": rng.random(),
            "print": rng.randrange(len(_PRINTING)),
        }
        return Case(json.dumps(plan).encode(), ".json")

    def stopped(self, run: Run, plan: dict[str, Any]) -> tuple[Fault | None, bool]:
        """(what is wrong, whether the disk was full)."""
        if plan["job"] == "print":
            return _print_to_a_full_disk(run, _PRINTING[plan["print"]]), True
        job, folder = self.jobs[plan["job"]], fresh(run.work(self.name) / "job")
        (folder / "disk").mkdir()
        before, written = self.room[job.name]
        with _disk(folder / "disk", before + int(plan["share"] * written) + 65536) as (limit, grow):
            place = folder / "disk"
            job.begin(run.corpus, place)
            command = Command(job.module, job.words(run.corpus, place), place)
            log = folder / "log"
            log.mkdir()

            def work() -> int:
                limit()
                return command.main(None)

            ended = Child(work, log).wait(LIMIT)
            fault = judge(ended) or _code(ended) or in_child(job.fault, run.corpus, place, folder=log)
            left = leftovers(place)
            fault = fault or (Fault("lost", "temporary files stay on a full disk", str(left)) if left else None)
            if not fault and ended.code == 2:
                grow()
                fault = finished(run, job, place)
            return fault, ended.code == 2


class _disk:
    """A disk of `size` bytes mounted at `place`: (what a child calls to be limited, what gives it room)."""

    def __init__(self, place: Path, size: int):
        self.place, self.size = place, size

    def __enter__(self) -> tuple[Callable[[], None], Callable[[], None]]:
        options = f"size={self.size // 4096 * 4096}"
        done = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(self.place)], capture_output=True, check=False)
        self.mounted = done.returncode == 0
        if self.mounted:
            return lambda: None, lambda: _mount(self.place, "remount,size=256m")
        largest = max(4096, self.size // 3)  # no mounts for this user: no file may become larger instead
        return lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (largest, largest)), lambda: None

    def __exit__(self, *_: object) -> None:
        if self.mounted:
            subprocess.run(["umount", "-l", str(self.place)], check=True)


def _mount(place: Path, options: str) -> None:
    subprocess.run(["mount", "-o", options, str(place)], check=True)


def _code(ended: Ended) -> Fault | None:
    # a batch job whose rows have errors ends with 1
    return None if ended.code in (0, 1, 2) else Fault("exit code", f"{ended.code} on a full disk", ended.stderr[-2000:])


def _print_to_a_full_disk(run: Run, words: tuple[str, ...]) -> Fault | None:
    """A command whose result can't be printed must not say that all is well."""
    module, *rest = (str(run.corpus.small) if word == "BUNDLE" else word for word in words)
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-m", module, *rest],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
            check=False,
        )
    fault = judge(Ended(done.returncode, "", done.stderr, 0.0))
    return fault or (
        None if done.returncode == 2 else Fault("exit code", f"{done.returncode} where nothing was printed", done.stderr)
    )


def _size(folder: Path) -> int:
    """Bytes of the files below `folder`, rounded up to pages."""
    return sum(-(-path.stat().st_size // 4096) * 4096 + 4096 for path in folder.rglob("*") if path.is_file())
