"""The way from a checkpoint to a bundle, on one screen.

check options and checkpoint -> read, export and check each component -> write the manifest, all in a temporary directory that takes
the bundle's name only at the end: an interrupted export leaves an older bundle as it was.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from export.checkpoint import open_checkpoint
from export.families import family
from export.options import ExportOptions, check_options
from export.plan import make_plan
from runtime.bundle import MANIFEST, Bundle, foreign_files, write_manifest
from runtime.bundle.manifest import written
from runtime.core.errors import ExportError
from runtime.core.files import atomic_directory, require_writable
from runtime.core.progress import log, step


@dataclass(frozen=True)
class ExportResult:
    """The written bundle, the verification table, {TensorRT check: its result}, and settings that the runtime does not apply."""

    bundle: Bundle
    verified: list[dict[str, Any]]
    tensorrt: dict[str, str]
    not_applied: list[str]

    def as_dict(self) -> dict[str, Any]:
        manifest = self.bundle.manifest
        return {
            "bundle": str(self.bundle.path),
            "checkpoint": written(manifest.checkpoint),
            "compression": written(manifest.compression),
            "frames": manifest.frames,
            "patch_tokens": manifest.patch_tokens,
            "tokens_per_clip": manifest.tokens_per_clip,
            "precision": manifest.precision,
            "llm_precision": manifest.llm_precision,
            "max_context": manifest.limits.max_context if manifest.limits else None,
            "bytes": sum(entry.size for entry in manifest.files.values()),
            "passes": written(manifest.report),
            "tensorrt": self.tensorrt,
            "verified": self.verified,
            "not_applied": self.not_applied,
        }


def export_bundle(options: ExportOptions) -> ExportResult:
    """Write a bundle. UserError for anything that the user can fix; an older bundle then stays as it was."""
    out = _output_directory(options)
    check_options(options)
    kind = family(options.model)
    from export.compress import expand

    expand(kind.COMPRESS if options.compress is None else options.compress)  # a wrong spec is refused without a checkpoint
    checkpoint = open_checkpoint(options.checkpoint)
    if checkpoint.demo:
        log(f"exporting the small checkpoint that ships with this package; for a real one: --checkpoint {kind.HUB_ID}")
    from export.component import Component, make_manifest
    from export.llm import export_llm
    from export.quantize import report
    from export.vision import export_vision
    from export.weights import weights_sha256

    with step("checking options and checkpoint"):
        plan = make_plan(options, kind, checkpoint)
    with step("hashing the weights"):
        digest = weights_sha256(checkpoint)
        if options.only is None:  # of the LLM alone: wrong values are found when it is loaded, before anything else is done
            kind.check_llm_weights(checkpoint, values=True)
    with atomic_directory(out) as directory:  # one component at a time: the LLM is read when the encoder is gone
        vision = Component() if options.only == "llm" else export_vision(directory, plan)
        llm = Component() if options.only == "vision" else export_llm(directory, plan, vision.visual_tokens)
        if vision.quantized or llm.quantized:
            report.write(directory, vision.quantized | llm.quantized)
        with step("hashing the bundle"):
            manifest = write_manifest(directory, make_manifest(plan, vision, llm, digest))
    verified = [{"stage": row.stage, "error": row.error, "ok": row.ok} for row in vision.verified + llm.verified]
    return ExportResult(Bundle(out, manifest), verified, vision.tensorrt | llm.tensorrt, plan.not_applied)


def _output_directory(options: ExportOptions) -> Path:
    out = Path(f"bundles/{options.model}" if options.out is None else options.out)
    require_writable(out)
    if out.exists() and not out.is_dir():
        raise ExportError(f"{out} is a file; choose another --out")
    if out.is_dir() and any(out.iterdir()):
        if not (out / MANIFEST).exists():
            raise ExportError(f"{out} is a directory with other files in it; choose another --out")
        if not options.force:
            raise ExportError(f"{out} contains a bundle; pass --force to replace it, or another --out")
        foreign = foreign_files(out)
        if foreign:
            more = f" and {len(foreign) - 1} more" if len(foreign) > 1 else ""
            raise ExportError(
                f"{out} contains {foreign[0]}{more}, which is not part of the bundle and --force would delete; move it away"
            )
    return out
