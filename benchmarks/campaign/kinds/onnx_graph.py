"""Damaged ONNX files in bundles whose manifests list them as they are: `tokens`, `run`, `parity`."""

from __future__ import annotations

from pathlib import Path

from benchmarks.campaign import mutate_onnx
from benchmarks.campaign.kinds.inputs import InputKind, bundle_copy, replace
from benchmarks.campaign.kinds.manifest import clip_of, small_bundle
from benchmarks.campaign.kinds.tokenizer import rehash
from benchmarks.campaign.run import Run
from benchmarks.campaign.sandbox import Case

_FILES = {".vision": "vision.onnx", ".loop": "vision.loop.onnx", ".decoder": "llm/decoder.onnx"}


class OnnxGraph(InputKind):
    name = "onnx"
    seconds = 60.0

    def __init__(self) -> None:
        self.bundle = self.clip = Path()

    def prepare(self, run: Run) -> None:
        self.bundle, self.clip = small_bundle(run), clip_of(run)

    def make(self, run: Run, index: int) -> Case:
        rng = run.rng(self.name, index)
        suffix = rng.choice(list(_FILES))
        return Case(mutate_onnx.mutated(rng, (self.bundle / _FILES[suffix]).read_bytes()), suffix)

    def call(self, case: Case, folder: Path) -> int:
        from runtime.__main__ import main

        bundle, name = bundle_copy(self.bundle, folder), _FILES[case.suffix]
        replace(bundle / name, case.data)
        rehash(bundle, name)
        engine = ["--threads", "1", "--backend", "onnx"]
        try:
            if case.suffix == ".vision":  # the graph that parity reads; a CPU runs the loop
                return main(["parity", str(bundle), *engine])
            if case.suffix == ".loop":
                return main(["tokens", str(bundle), str(self.clip), "-o", str(folder / "tokens.npz"), *engine])
            return main(["run", str(bundle), str(self.clip), "what ?", "--max-new-tokens", "2", *engine])
        finally:
            replace(bundle / name, (self.bundle / name).read_bytes())
            rehash(bundle, name)
