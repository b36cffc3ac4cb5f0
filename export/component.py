"""What both exports, of the vision encoder and of the LLM, return and share, and the manifest that is made of it."""

from __future__ import annotations

import platform
from collections.abc import Iterable
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path

import numpy as np
import onnx

from export.decoder import OPSET
from export.plan import Plan
from export.quantize.qdq import OPSET_OF_INT4
from export.quantize.report import Report
from export.tensorrt import parse_with_rtx, require
from runtime import __version__
from runtime.bundle import Manifest
from runtime.bundle.graphs import file_of
from runtime.bundle.manifest import UNHASHED, Checkpoint, Compression, Limits, LLMInfo, PassReport, StageTensor
from runtime.core.errors import ExportError
from runtime.tools.compare import Row

_TOOLS = ("torch", "transformers", "onnx", "onnxscript", "onnx-graphsurgeon", "onnxruntime", "polygraphy", "tensorrt-rtx")


@dataclass(frozen=True)
class Component:
    """A component whose graphs are written and checked; the default is one that --only leaves out."""

    passes: list[PassReport] = field(default_factory=list)  # surgeon passes and quantisation, in order
    verified: list[Row] = field(default_factory=list)  # rows of the verification table
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


def make_manifest(plan: Plan, vision: Component, llm: Component, digest: str = "", files: Iterable[str] = ()) -> Manifest:
    """digest: of the checkpoint's weights; files: paths in the bundle, still to be hashed."""
    options = plan.options
    int4 = options.of_llm.startswith("int4") and options.only != "vision"
    return Manifest(
        family=options.model,
        checkpoint=Checkpoint(plan.checkpoint.id, digest),
        compression=Compression(plan.preset, plan.compress.spec, options.place),
        frames=plan.frames,
        grid=plan.vision.grid,
        tokens_per_clip=plan.tokens,
        hidden_size=plan.vision.hidden_size,
        preprocessing=plan.preprocessing,
        prompt=plan.llm.prompt if plan.llm else None,
        llm=llm.llm,
        precision=options.precision,
        opset=max(OPSET[options.attention], OPSET_OF_INT4 if int4 else 0),
        limits=Limits(plan.llm.max_context) if plan.llm else None,
        stages=tuple(vision.stages),
        report=(*vision.passes, *llm.passes),
        versions=_versions(),
        files=dict.fromkeys(files, UNHASHED),
    )


def _versions() -> dict[str, str]:
    versions = {"st-gridpool": __version__, "python": platform.python_version()}
    for tool in _TOOLS:
        try:
            versions[tool] = metadata.version(tool)
        except metadata.PackageNotFoundError:
            continue
    return versions
