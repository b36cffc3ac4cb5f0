"""What a campaign has done so far, on disk after every slice: a campaign that was killed resumes from there.

Counts by kind: "next" is the first index that was not tried, "inputs" how many were, "seconds" how long; the rest is the kind's
own, such as "kills", "requests" or how often each exit code came.
"""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

from runtime.core.files import atomic_file


class State:
    """Counts by kind and the findings' names by signature, in `DIR/state.json`."""

    def __init__(self, folder: Path, seed: int):
        self.file, self.seed = folder / "state.json", seed
        self.counts: dict[str, Counter] = {}
        self.findings: dict[str, dict] = {}
        self.skipped: dict[str, str] = {}
        if self.file.exists():
            values = json.loads(self.file.read_text())
            if values["seed"] != seed:
                raise SystemExit(f"{folder} has a campaign of seed {values['seed']}; pass that --seed or another --out")
            self.counts = {kind: Counter(counts) for kind, counts in values["counts"].items()}
            self.findings = values["findings"]

    def of(self, kind: str) -> Counter:
        return self.counts.setdefault(kind, Counter())

    def as_dict(self) -> dict:
        return {"seed": self.seed, "counts": self.counts, "findings": self.findings, "skipped": self.skipped}

    def save(self) -> None:
        with atomic_file(self.file) as temporary:
            temporary.write_text(json.dumps(self.as_dict(), indent=1) + "\n")
