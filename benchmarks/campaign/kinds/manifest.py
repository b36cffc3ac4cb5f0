"""Damaged manifest.json: `inspect`, and now and then the commands that run the graphs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from benchmarks.campaign import mutate_json
from benchmarks.campaign.kinds.inputs import InputKind, bundle_copy, replace
from benchmarks.campaign.run import Run, warm
from benchmarks.campaign.sandbox import Case

_WORDS = (
    "fp16",
    "int8",
    "fp32",
    "vision.onnx",
    "llm/decoder.onnx",
    "../x",
    "vision",
    "schema_version",
    "before-projector",
    "bicubic",
)


class Manifest(InputKind):
    name = "manifest"

    def __init__(self) -> None:
        self.good: dict[str, Any] = {}
        self.bundle = self.clip = Path()

    def prepare(self, run: Run) -> None:
        self.bundle, self.clip = small_bundle(run), clip_of(run)
        self.good = json.loads((self.bundle / "manifest.json").read_text())

    def make(self, run: Run, index: int) -> Case:
        return Case(mutate_json.mutated(run.rng(self.name, index), self.good, _WORDS), ".json")

    def call(self, case: Case, folder: Path) -> int:
        from runtime.__main__ import main

        bundle = bundle_copy(self.bundle, folder)
        replace(bundle / "manifest.json", case.data)
        choice = sum(case.data) % 16  # of the input alone, so that a file replays as its index does
        if choice == 0:
            return main(["run", str(bundle), str(self.clip), "what ?", "--max-new-tokens", "2", "--threads", "1"])
        if choice == 1:
            return main(["parity", str(bundle), "--backend", "onnx", "--threads", "1"])
        if choice == 2:
            return main(["inspect", str(bundle), "--predict", "orin", "--json"])
        return main(["inspect", str(bundle), "--json"])


def small_bundle(run: Run) -> Path:
    """The small bundle, made in a child because torch starts threads, and what reads bundles imported."""
    from benchmarks.campaign.child import in_child
    from runtime.cli.commands import COMMANDS

    in_child(run.corpus.make_small, folder=run.work("corpus"))
    warm("onnx", "onnxruntime", *(f"runtime.cli.{name}" for name in COMMANDS))

    return run.corpus.small


def clip_of(run: Run) -> Path:
    """A good clip."""
    from benchmarks.campaign.kinds.media import media_files

    return next(path for path in media_files(run) if path.name == "h264.mp4")
