"""A small bundle's manifest, and bundles that are no more than one: for what asks a bundle without reading its files."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from runtime.bundle import Bundle, Manifest
from runtime.bundle.manifest import UNHASHED, Checkpoint, Compression, Limits, LLMInfo, Preprocessing, PromptInfo

MANIFEST = Manifest(
    family="llava-ov",
    checkpoint=Checkpoint("tiny", "0" * 64),
    compression=Compression("uniform", "avgpool:window=2", "after-projector"),
    frames=2,
    grid=(2, 2),
    tokens_per_clip=4,
    hidden_size=16,
    preprocessing=Preprocessing((8, 8), "bicubic", 1 / 255, 0.5, 0.5),
    prompt=PromptInfo("chat_template.jinja", "<video>", 1, (0,)),
    llm=LLMInfo(layers=1, kv_heads=2, head_dim=8, vocab_size=32),
    precision="fp32",
    opset=20,
    limits=Limits(max_context=32),
    stages=(),
    report=(),
    versions={},
)
WITHOUT_LLM: dict[str, Any] = {"llm": None, "prompt": None, "limits": None}


def bundle_of(*files: str, path: str | Path = "b", split: bool = False, max_context: int = 32, **values: Any) -> Bundle:
    """split: encoder and compressor are listed too; values: fields of the manifest."""
    files += ("vision.encoder.onnx", "vision.compressor.onnx") if split else ()
    listed = {"files": dict.fromkeys(files, UNHASHED), "limits": Limits(max_context)}
    return Bundle(Path(path), replace(MANIFEST, **listed | values))
