"""Any other file of a bundle, damaged and listed as it is: embeddings, recorded references, engine records."""

from __future__ import annotations

import json
import random
from pathlib import Path

from benchmarks.campaign import mutate_bytes, mutate_json
from benchmarks.campaign.kinds.inputs import InputKind, bundle_copy, replace
from benchmarks.campaign.kinds.manifest import clip_of, small_bundle
from benchmarks.campaign.kinds.tokenizer import rehash
from benchmarks.campaign.run import Run
from benchmarks.campaign.sandbox import Case

_COMMANDS = {  # the command that reads a file, by the suffix that its case has
    ".embeddings.npy": ("llm/embed_tokens.npy", "run"),
    ".logits.npy": ("reference/llm_logits.npy", "parity"),
    ".visual.npy": ("reference/llm_visual_tokens.npy", "parity"),
    ".llm.json": ("reference/llm.json", "parity"),
    ".inputs.json": ("reference/inputs.json", "parity"),
    ".stages.json": ("reference/stages.json", "parity"),
    ".torch.json": ("reference/torch.json", "parity"),
    ".build.json": ("engines/tensorrt-rtx-any-fp32/build.json", "build"),
}


class BundleFiles(InputKind):
    name = "bundle-files"
    seconds = 60.0

    def __init__(self) -> None:
        self.bundle = self.clip = Path()
        self.suffixes: list[str] = []

    def prepare(self, run: Run) -> None:
        from benchmarks.campaign.child import in_child
        from runtime.engine import trt_api as trt

        self.bundle, self.clip = small_bundle(run), clip_of(run)
        self.suffixes = list(_COMMANDS)
        if not trt.installed("tensorrt-rtx"):
            self.suffixes.remove(".build.json")
        elif not (self.bundle / "engines").exists():
            in_child(_build, self.bundle, folder=run.work("corpus"))

    def make(self, run: Run, index: int) -> Case:
        rng = run.rng(self.name, index)
        suffix = rng.choice(self.suffixes)
        return Case(_damaged(rng, (self.bundle / _COMMANDS[suffix][0]).read_bytes(), suffix), suffix)

    def call(self, case: Case, folder: Path) -> int:
        from runtime.__main__ import main

        bundle, (name, command) = bundle_copy(self.bundle, folder), _COMMANDS[case.suffix]
        replace(bundle / name, case.data)
        if command != "build":
            rehash(bundle, name)
        try:
            if command == "build":
                return main(["build", str(bundle)])
            if command == "parity":
                return main(["parity", str(bundle), "--threads", "1", "--backend", "onnx"])
            return main(["run", str(bundle), str(self.clip), "what ?", "--max-new-tokens", "2", "--threads", "1"])
        finally:
            replace(bundle / name, (self.bundle / name).read_bytes())
            if command != "build":
                rehash(bundle, name)


def _damaged(rng: random.Random, data: bytes, suffix: str) -> bytes:
    if suffix.endswith(".json"):
        return mutate_json.mutated(rng, json.loads(data), ("fp32", "float32", "vision", "llm/decoder", "any"))
    return mutate_bytes.mutated(rng, data[:256] if rng.random() < 0.8 else data) + (data[256:] if rng.random() < 0.8 else b"")


def _build(bundle: Path) -> None:
    from runtime.bundle import Bundle
    from runtime.engine.trt_build import BuildOptions, build

    build(Bundle.open(bundle), BuildOptions())
