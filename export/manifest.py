"""The manifest of an export: made of the plan and of what the components came to."""

from __future__ import annotations

import platform
from collections.abc import Iterable
from importlib import metadata

from export.component import Component
from export.decoder import OPSET
from export.plan import Plan
from export.quantize.qdq import OPSET_OF_INT4
from runtime import __version__
from runtime.bundle import Manifest
from runtime.bundle.manifest import UNHASHED, Checkpoint, Compression, Limits

_TOOLS = ("torch", "transformers", "onnx", "onnxscript", "onnx-graphsurgeon", "onnxruntime", "polygraphy", "tensorrt-rtx")


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
