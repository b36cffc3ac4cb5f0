"""What a kind gets to work with: the seed, the corpus, the counts, and one way to report a fault."""

from __future__ import annotations

import fcntl
import importlib
import random
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from benchmarks.campaign import findings
from benchmarks.campaign.corpus import Corpus
from benchmarks.campaign.minimise import minimised
from benchmarks.campaign.sandbox import Case
from benchmarks.campaign.state import State
from benchmarks.campaign.verdicts import Fault

MINIMISING = 20.0  # seconds for one finding


class Run:
    """One campaign at work below `folder`; minimising: seconds that a finding's input is made smaller for."""

    def __init__(self, folder: Path, seed: int, corpus: Corpus | None = None, minimising: float = MINIMISING):
        self.folder, self.seed, self.minimising = folder, seed, minimising
        folder.mkdir(parents=True, exist_ok=True)
        self._lock = (folder / ".lock").open("w")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise SystemExit(f"another campaign works in {folder}; wait for it or pass another --out") from None
        self.state, self.corpus = State(folder, seed), corpus or Corpus(folder / "corpus")

    def rng(self, kind: str, index: int) -> random.Random:
        return random.Random(f"{self.seed}/{kind}/{index}")

    def counts(self, kind: str) -> Counter:
        return self.state.of(kind)

    def work(self, kind: str) -> Path:
        """A directory for the files of the input at hand."""
        folder = self.folder / "work" / kind
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def report(self, kind: Kind, index: int, fault: Fault) -> None:
        """Store a fault of one of `kind`'s inputs, with the smallest input that shows it again."""
        case = kind.make(self, index)

        def fails(data: bytes) -> bool:
            again = kind.replay(self, Case(data, case.suffix))
            return again is not None and again.signature == fault.signature

        def smaller() -> bytes:
            return minimised(case.data, fails, self.minimising) if fails(case.data) else case.data

        self.found(kind.name, index, fault, case, smaller)

    def found(self, kind: str, index: int, fault: Fault, case: Case, smaller: Callable[[], bytes] | None = None) -> None:
        """Store a fault; `smaller` makes its input small and is called for the first of its signature only."""
        data = case.data
        if smaller and not findings.known(self.state, kind, fault):
            data = smaller()
        folder = findings.store(self.state, kind, index, fault, data, case.suffix)
        if folder:
            log(f"{kind}:{index}: {fault.signature} -> {folder}")
        self.counts(kind)["findings"] += 1
        self.state.save()


class Kind(Protocol):
    """One kind of input. name: also the key of its counts; share: of the campaign's time, relative to the others'."""

    name: str
    share: float

    def lacking(self) -> str | None:
        """Why it can't run here; None where it can."""

    def prepare(self, run: Run) -> None:
        """Make what it mutates and import what its children need; called once a process."""

    def slice(self, run: Run, until: Callable[[int], bool]) -> None:
        """Work from the first index that was not tried as long as `until(index)` is false; count in `run.counts(name)`."""

    def replay(self, run: Run, case: Case) -> Fault | None:
        """The fault of one input."""

    def make(self, run: Run, index: int) -> Case:
        """The input of an index."""


def warm(*modules: str) -> None:
    """Import what children will need, so that each finds it."""
    for name in modules:
        importlib.import_module(name)


def log(message: str) -> None:
    print(message, file=sys.stderr, flush=True)
