"""Damaged checkpoints through the export's own command line, up to the point where a graph would be traced.

A case is a JSON object {file: its text, or {"header": …} for the header of the weights}; other files are the small checkpoint's.
"""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

from benchmarks.campaign import mutate_bytes, mutate_json
from benchmarks.campaign.kinds.inputs import InputKind, bundle_copy, replace
from benchmarks.campaign.run import Run, warm
from benchmarks.campaign.sandbox import Case

_WEIGHTS, _INDEX = "model.safetensors", "model.safetensors.index.json"
_WORDS = (
    "float16",
    "qwen2",
    "siglip_vision_model",
    "llava_onevision",
    "default",
    "full",
    "F16",
    "I8",
    "gelu_pytorch_tanh",
    "model_type",
)


class Checkpoint(InputKind):
    name = "checkpoint"

    def __init__(self) -> None:
        self.source = Path()
        self.texts: dict[str, Any] = {}

    def prepare(self, run: Run) -> None:
        from benchmarks.campaign.child import in_child

        in_child(run.corpus.make_small, folder=run.work("corpus"))
        warm(*(f"transformers.models.{name}.modeling_{name}" for name in ("llava_onevision", "qwen2", "siglip")))
        warm(*(f"export.{name}" for name in ("pipeline", "families.llava_ov", "llm", "quantize.report", "trace", "vision")))

        self.source = run.corpus.checkpoint
        self.texts = {path.name: json.loads(path.read_text()) for path in sorted(self.source.glob("*.json"))}
        self.texts[_INDEX] = {"metadata": {}, "weight_map": dict.fromkeys(_header(self.source / _WEIGHTS)[0], _WEIGHTS)}

    def make(self, run: Run, index: int) -> Case:
        rng = run.rng(self.name, index)
        name = rng.choice([_WEIGHTS, "config.json", "config.json", "chat_template.jinja", *self.texts])
        if name == _WEIGHTS:
            text = mutate_json.mutated(rng, _header(self.source / name)[0], _WORDS)
        elif name == "chat_template.jinja":
            text = mutate_bytes.mutated(rng, (self.source / name).read_bytes())
        else:
            text = mutate_json.mutated(rng, self.texts[name], _WORDS)
        return Case(json.dumps({name: text.decode("latin-1")}).encode(), rng.choice((".vision", ".llm")))

    def call(self, case: Case, folder: Path) -> int:
        from export.__main__ import main

        checkpoint, values = bundle_copy(self.source, folder), json.loads(case.data)
        for name, text in values.items():
            data = text.encode("latin-1")
            if name == _WEIGHTS:
                rest = _header(self.source / _WEIGHTS)[1]
                data = struct.pack("<Q", len(data)) + data + rest
            replace(checkpoint / name, data)
        command = [
            "--checkpoint",
            str(checkpoint),
            "--out",
            str(folder / "out"),
            "--only",
            case.suffix[1:],
            "--force",
            "--frames",
            "4",
        ]
        try:
            with _tracing_left_out():
                return main(command)
        except _Reached:
            return 0
        finally:
            for name in values:
                (checkpoint / name).unlink()
                if (self.source / name).exists():
                    replace(checkpoint / name, (self.source / name).read_bytes())


class _Reached(BaseException):
    """The export has read its checkpoint and begins to trace."""


class _tracing_left_out:
    """Within, an export ends where a graph would be traced."""

    def __enter__(self) -> None:
        import export.llm
        import export.vision

        self.kept = export.vision.trace_vision, export.llm.trace_decoder
        export.vision.trace_vision = export.llm.trace_decoder = _reached  # type: ignore[assignment]

    def __exit__(self, *_: object) -> None:
        import export.llm
        import export.vision

        export.vision.trace_vision, export.llm.trace_decoder = self.kept


def _reached(*_: object, **__: object) -> None:
    raise _Reached


def _header(path: Path) -> tuple[dict[str, Any], bytes]:
    """(the JSON header of a safetensors file, the bytes after it)."""
    data = path.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    return json.loads(data[8 : 8 + length]), data[8 + length :]
