"""Damaged Parquet parts of an unfinished batch job, which the same command finds when it resumes."""

from __future__ import annotations

from pathlib import Path

from benchmarks.campaign import mutate_bytes
from benchmarks.campaign.kinds.inputs import InputKind, replace
from benchmarks.campaign.kinds.manifest import clip_of, small_bundle
from benchmarks.campaign.run import Run, warm
from benchmarks.campaign.sandbox import Case

PART = "part-000000.parquet"


class BatchParts(InputKind):
    name = "batch-parts"
    share = 0.5
    seconds = 60.0

    def __init__(self) -> None:
        self.bundle = self.clip = Path()
        self.part = b""

    def prepare(self, run: Run) -> None:
        from benchmarks.campaign.child import in_child

        self.bundle, self.clip = small_bundle(run), clip_of(run)
        made = run.folder / "corpus" / "parts"
        if not (made / PART).exists():
            in_child(_batch, self.bundle, self.clip, made, folder=run.work("corpus"))
        self.part = (made / PART).read_bytes()
        warm("pyarrow.parquet", "runtime.cluster.batch")

    def make(self, run: Run, index: int) -> Case:
        return Case(mutate_bytes.mutated(run.rng(self.name, index), self.part), ".parquet")

    def call(self, case: Case, folder: Path) -> int:
        out = folder / "out"
        out.mkdir(exist_ok=True)
        replace(out / PART, case.data)
        try:
            return _batch(self.bundle, self.clip, out)
        finally:
            for path in out.glob("*.parquet"):
                path.unlink()


def _batch(bundle: Path, clip: Path, out: Path) -> int:
    from runtime.__main__ import main

    return main(["batch", str(bundle), str(clip), "--out", str(out), "--runner", "local", "--workers", "1"])
