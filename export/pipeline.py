"""The whole way from a checkpoint to a bundle, on one screen.

check options and checkpoint -> read, export and check each half -> write the manifest, all in a temporary directory that takes the
bundle's name only at the end: an interrupted export leaves an older bundle as it was.
"""

from __future__ import annotations

import platform
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import Any

from export.checkpoint import open_checkpoint
from export.families import family
from export.options import ExportOptions
from export.preflight import check_options, make_plan
from runtime import __version__
from runtime.bundle import MANIFEST, Bundle, Manifest, foreign_files, write_manifest
from runtime.core.errors import ExportError
from runtime.core.files import atomic_directory, require_writable
from runtime.core.progress import log, step
from runtime.prompt import Prompt

_TOOLS = ("torch", "transformers", "onnx", "onnxscript", "onnx-graphsurgeon", "onnxruntime", "polygraphy", "tensorrt-rtx")


@dataclass(frozen=True)
class ExportResult:
    """The written bundle, the verification table, what the TensorRT checks said, and settings that the runtime does not apply."""

    bundle: Bundle
    verified: list[dict[str, Any]]
    tensorrt: dict[str, str]
    not_applied: list[str]

    def as_dict(self) -> dict[str, Any]:
        manifest = self.bundle.manifest
        return {
            "bundle": str(self.bundle.path),
            "checkpoint": manifest.checkpoint,
            "compression": manifest.compression,
            "frames": manifest.frames,
            "patch_tokens": manifest.patch_tokens,
            "tokens_per_clip": manifest.tokens_per_clip,
            "precision": manifest.precision,
            "llm_precision": manifest.llm_precision,
            "max_context": manifest.limits.get("max_context"),
            "bytes": sum(entry["size"] for entry in manifest.files.values()),
            "passes": manifest.report,
            "tensorrt": self.tensorrt,
            "verified": self.verified,
            "not_applied": self.not_applied,
        }


def export_bundle(options: ExportOptions) -> ExportResult:
    """Write a bundle. UserError for anything that the user can mend; an older bundle then stays as it was."""
    out = _goal(options)
    check_options(options)
    kind = family(options.model)
    from export.compress import expand

    expand(kind.COMPRESS if options.compress is None else options.compress)  # a misspelt preset needs no checkpoint
    checkpoint = open_checkpoint(options.checkpoint)
    if checkpoint.demo:
        log(f"exporting the small checkpoint that ships with this package; for a real one: --checkpoint {kind.HUB_ID}")
    from export.decoder import OPSET
    from export.halves import CHAT_TEMPLATE, Half, check_llm, export_llm, export_vision, quantize_llm_half
    from export.quantize import report as quantization
    from export.quantize.qdq import OPSET_OF_INT4
    from export.trace import Vision
    from export.weights import weights_sha256

    with step("checking options and checkpoint"):
        plan = make_plan(options, kind, checkpoint)
    with step("hashing the weights"):
        digest = weights_sha256(checkpoint)
        if options.only is None:  # of the LLM alone: they are found when it is loaded, and nothing is lost by then
            kind.check_llm_weights(checkpoint, values=True)

    with atomic_directory(out) as directory:
        vision, llm = Half(), Half()
        if options.only != "llm":
            with step("reading the vision half"):
                source = kind.load_vision(checkpoint)
            module = Vision(source, plan.compress, options.place, plan.input).eval()
            vision = export_vision(directory, module, source, plan.frames, options)
            del module, source  # one half at a time: the LLM is read when the encoder is gone
        manifest = Manifest(
            family=options.model,
            checkpoint={"id": checkpoint.id, "sha256": digest},
            compression={"preset": plan.preset, "spec": plan.compress.spec, "place": options.place},
            frames=plan.frames,
            grid=list(plan.vision.grid),
            tokens_per_clip=plan.tokens,
            hidden_size=plan.vision.hidden_size,
            preprocessing=plan.vision.preprocessing | ({"frames": list(plan.input.source)} if plan.input else {}),
            prompt={},
            llm={},
            precision=options.precision,
            opset=max(
                OPSET[options.attention], OPSET_OF_INT4 if options.of_llm.startswith("int4") and options.only != "vision" else 0
            ),
            limits={},
            stages=vision.stages,
            report=vision.report,
            versions=_versions(),
        )
        if options.only != "vision":
            with step("reading the LLM half"):
                language = kind.load_llm(checkpoint)
            llm = export_llm(directory, language, checkpoint, options, plan.max_context)
            manifest = replace(
                manifest,
                prompt=language.prompt | {"chat_template": CHAT_TEMPLATE},
                llm=llm.facts,
                limits={"max_context": plan.max_context},
                report=vision.report + llm.report,
            )
            unhashed: dict[str, dict[str, Any]] = {
                path.relative_to(directory).as_posix(): {} for path in directory.rglob("*") if path.is_file()
            }
            unfinished = Bundle(directory, replace(manifest, files=unhashed))
            expected = check_llm(llm, unfinished, language, vision.visual_tokens)
            if options.of_llm.startswith("int"):
                quantize_llm_half(llm, unfinished, language, expected, options)
            around = Prompt(unfinished).template.prefix_and_suffix()
            manifest = replace(
                manifest,
                prompt=manifest.prompt | ({"around_question": around} if around else {}),
                llm=llm.facts,
                report=vision.report + llm.report,
            )
        if vision.quantized or llm.quantized:
            quantization.write(directory, vision.quantized | llm.quantized)
        with step("hashing the bundle"):
            manifest = write_manifest(directory, manifest)
    verified = [result.as_dict() for result in vision.verified + llm.verified]
    return ExportResult(Bundle(out, manifest), verified, vision.tensorrt | llm.tensorrt, plan.not_applied)


def _goal(options: ExportOptions) -> Path:
    out = Path(f"bundles/{options.model}" if options.out is None else options.out)
    require_writable(out)
    if out.exists() and not out.is_dir():
        raise ExportError(f"{out} is a file; choose another --out")
    if out.is_dir() and any(out.iterdir()):
        if not (out / MANIFEST).exists():
            raise ExportError(f"{out} is a directory with other things in it; choose another --out")
        if not options.force:
            raise ExportError(f"{out} holds a bundle; pass --force to replace it, or another --out")
        foreign = foreign_files(out)
        if foreign:
            more = f" and {len(foreign) - 1} more" if len(foreign) > 1 else ""
            raise ExportError(f"{out} holds {foreign[0]}{more}, no part of the bundle, which --force would delete; move it away")
    return out


def _versions() -> dict[str, str]:
    versions = {"st-gridpool": __version__, "python": platform.python_version()}
    for tool in _TOOLS:
        try:
            versions[tool] = metadata.version(tool)
        except metadata.PackageNotFoundError:
            continue
    return versions
