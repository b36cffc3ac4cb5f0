"""What all kinds share whose inputs are files that one call in a forked worker reads."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

from benchmarks.campaign.run import Run
from benchmarks.campaign.sandbox import Case, run_many, run_one
from benchmarks.campaign.verdicts import Fault

MB = 1 << 20


class InputKind:
    """Subclasses give `prepare`, `make` and `call`; seconds of processor time and bytes are what one call may take."""

    name = ""
    share = 1.0
    seconds = 20.0
    memory = 512 * MB

    def lacking(self) -> str | None:
        return None

    def prepare(self, run: Run) -> None:
        raise NotImplementedError

    def make(self, run: Run, index: int) -> Case:
        raise NotImplementedError

    def call(self, case: Case, folder: Path) -> int:
        raise NotImplementedError

    def slice(self, run: Run, until: Callable[[int], bool]) -> None:
        counts, folder = run.counts(self.name), run.work(self.name)
        for outcome in run_many(self, lambda index: self.make(run, index), counts["next"], until, folder):
            counts["next"] = outcome.index + 1
            counts["inputs"] += 1
            counts[f"exit {outcome.code}"] += 1
            if outcome.fault:
                run.report(self, outcome.index, outcome.fault)

    def replay(self, run: Run, case: Case) -> Fault | None:
        return run_one(self, case, run.work(f"{self.name}-replay")).fault


def bundle_copy(source: Path, folder: Path) -> Path:
    """A bundle below `folder` whose files are links to `source`'s; replace a file, never write into one."""
    target = folder / "bundle"
    if not target.exists():
        shutil.copytree(source, target, copy_function=_link)
    return target


def replace(path: Path, data: bytes) -> None:
    """Write a file anew, so that what was linked to it stays as it is."""
    path.unlink(missing_ok=True)
    path.write_bytes(data)


def _link(source: str, target: str) -> None:
    Path(target).hardlink_to(source)
