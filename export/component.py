"""What both exports, of the vision encoder and of the LLM, return and share."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import onnx

from export.quantize.report import Report
from export.tensorrt import parse_with_rtx, require
from export.verify import StageResult
from runtime.bundle.graphs import file_of
from runtime.bundle.manifest import LLMInfo, PassReport, StageTensor
from runtime.core.errors import ExportError


@dataclass(frozen=True)
class Component:
    """A component whose graphs are written and checked; the default is one that --only leaves out."""

    passes: list[PassReport] = field(default_factory=list)  # surgeon passes and quantisation, in order
    verified: list[StageResult] = field(default_factory=list)  # rows of the verification table
    tensorrt: dict[str, str] = field(default_factory=dict)  # {check: its result}
    quantized: dict[str, Report] = field(default_factory=dict)  # {graph: what quantisation did}
    stages: list[StageTensor] = field(default_factory=list)  # the manifest's, of the vision encoder
    visual_tokens: np.ndarray | None = None  # [N, D] float32, torch's of the reference clip, of the vision encoder
    llm: LLMInfo | None = None  # the manifest's, of the LLM


def base_dtype(precision: str) -> str:
    """The precision of the graph that is traced: int8 and int4 are quantised from fp32."""
    return "fp16" if precision == "fp16" else "fp32"


def check_tensorrt(directory: Path, graph: str, release: str | None) -> dict[str, str]:
    """{check: result} of a written graph; ExportError where TensorRT `release`, or an installed TensorRT-RTX, does not parse it."""
    path, results = directory / file_of(graph), {}
    if release:
        require(onnx.load(str(path), load_external_data=False), release)
        results[f"{graph}: operators of TensorRT {release}"] = "all nodes supported"
    errors = parse_with_rtx(path)
    if errors:
        raise ExportError(f"TensorRT-RTX's parser refuses {graph}.onnx: {errors[0]}")
    return results | {f"{graph}: parser of TensorRT-RTX": "not installed here" if errors is None else "parsed"}
