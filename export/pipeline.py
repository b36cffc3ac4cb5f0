"""The whole way from a checkpoint to a bundle, on one screen.

read the checkpoint -> export and check each half -> write the manifest, all in a temporary directory that takes the
bundle's name only at the end: an interrupted export leaves an older bundle as it was.
"""

from __future__ import annotations

import importlib.util
import platform
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import Any

from export.checkpoint import open_checkpoint
from export.families import family
from export.quantize import llm_precision
from runtime import __version__
from runtime.bundle import MANIFEST, Bundle, Manifest, foreign_files, write_manifest
from runtime.errors import ExportError, missing_package, nearest
from runtime.files import atomic_directory, require_writable
from runtime.progress import say, step
from runtime.prompt import Prompt

_ANSWER_POSITIONS = 1024  # room for question and answer in the default context
_TOOLS = ("torch", "transformers", "onnx", "onnxscript", "onnx-graphsurgeon", "onnxruntime", "polygraphy", "tensorrt-rtx")
_PACKAGES = ("torch", "transformers", "onnx", "onnxscript", "onnx_graphsurgeon", "safetensors", "onnxruntime")  # loaded later
_CHOICES = {
    "place": ("after-projector", "before-projector"),
    "precision": ("fp32", "fp16", "int8"),
    "attention": ("portable", "standard"),
    "only": (None, "vision", "llm"),
}


@dataclass(frozen=True)
class ExportOptions:
    """What to export and how; the CLI's options are these fields.

    model        family name
    checkpoint   directory or hub id; None for the checkpoint that ships with the package
    out          the bundle's directory; None for bundles/<model>
    frames       T; None for the checkpoint's or the family's own
    compress     preset or spec; None for the family's default
    place        where compression stands: after-projector (the paper) or before-projector (a cheaper projector)
    precision    fp32 | fp16 weights and activations, or int8 in Q/DQ; of both halves, where llm_precision says nothing else
    llm_precision  fp32 | fp16 | int8 | int4 | int4:BLOCK; int8 and int4 are weights in Q/DQ
    calibrate    a directory of videos that quantisation is measured on; None for the demo's generator
    error_budget  relative error that quantisation may make, of the features and of the logits; None for each half's own
    attention    portable | standard spelling of the decoder
    tensorrt     a TensorRT release whose ONNX parser must take every node, e.g. "10.3"; None for no such check
    max_context  KV positions; None for the clip and about a thousand more
    only         vision | llm to export one half
    input        pixels: the runtime resizes and normalises | frames | frames:HxW: the graph does, of uint8 frames of that size
    split        the vision half as encoder of a frame and compressor of T, instead of the loop: live video, memory on a GPU
    force        replace an existing bundle
    """

    model: str = "llava-ov"
    checkpoint: str | None = None
    out: str | None = None
    frames: int | None = None
    compress: str | None = None
    place: str = "after-projector"
    precision: str = "fp32"
    llm_precision: str | None = None
    calibrate: str | None = None
    error_budget: float | None = None
    attention: str = "portable"
    tensorrt: str | None = None
    max_context: int | None = None
    only: str | None = None
    input: str = "pixels"
    split: bool = False
    force: bool = False

    @property
    def of_llm(self) -> str:
        """`llm_precision`, or what follows from `precision`."""
        return self.precision if self.llm_precision is None else self.llm_precision


@dataclass(frozen=True)
class ExportResult:
    """The written bundle, the verification table, and what the TensorRT checks said."""

    bundle: Bundle
    verified: list[dict[str, Any]]
    tensorrt: dict[str, str]

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
        }


def export_bundle(options: ExportOptions) -> ExportResult:
    """Write a bundle. UserError for anything that the user can mend; an older bundle then stays as it was."""
    out = _goal(options)
    _check(options)
    kind = family(options.model)
    from export.compress import expand, make

    preset = kind.COMPRESS if options.compress is None else options.compress
    expand(preset)  # a misspelt preset is refused before a checkpoint is read
    checkpoint = open_checkpoint(options.checkpoint)
    if checkpoint.demo:
        say(f"exporting the small checkpoint that ships with this package; for a real one: --checkpoint {kind.HUB_ID}")
    from export.decoder import OPSET
    from export.frames import FrameInput, source_size
    from export.halves import CHAT_TEMPLATE, Half, check_llm, export_llm, export_vision, quantize_llm_half
    from export.quantize import report as quantization
    from export.quantize.qdq import OPSET_OF_INT4
    from export.trace import Vision

    if options.only != "vision":
        kind.check_llm(checkpoint)
    with step("reading the vision half"):
        digest = checkpoint.sha256()
        source = kind.load_vision(checkpoint)
    frames = _frames(source.frames if options.frames is None else options.frames)
    size = source_size(options.input, source.preprocessing["size"])
    if options.split and frames < 2:
        raise ExportError("--split takes the frames of a clip apart, and a clip has 1 frame here; pass --frames 2 or more")
    compress = make(preset, frames=frames, height=source.grid[0], width=source.grid[1])
    tokens = compress.num_tokens + len(source.newline)
    max_context = _max_context(options.max_context, tokens, kind.max_positions(checkpoint)) if options.only != "vision" else 0

    with atomic_directory(out) as directory:
        vision, llm = Half(), Half()
        if options.only != "llm":
            taken = FrameInput(source.preprocessing, size) if size else None
            module = Vision(source, compress, options.place, taken).eval()
            vision = export_vision(directory, module, source, frames, options)
            del module
        manifest = Manifest(
            family=options.model,
            checkpoint={"id": checkpoint.id, "sha256": digest},
            compression={"preset": preset, "spec": compress.spec, "place": options.place},
            frames=frames,
            grid=list(source.grid),
            tokens_per_clip=tokens,
            hidden_size=source.hidden_size,
            preprocessing=source.preprocessing | ({"frames": list(size)} if size else {}),
            prompt={},
            llm={},
            precision=options.precision,
            opset=max(OPSET[options.attention], OPSET_OF_INT4 if options.of_llm.startswith("int4") else 0),
            limits={},
            stages=vision.stages,
            report=vision.report,
            versions=_versions(),
        )
        del source  # one half at a time: the LLM is read when the encoder is gone
        if options.only != "vision":
            with step("reading the LLM half"):
                language = kind.load_llm(checkpoint)
            llm = export_llm(directory, language, checkpoint, options, max_context)
            manifest = replace(
                manifest,
                prompt=language.prompt | {"chat_template": CHAT_TEMPLATE},
                llm=llm.facts,
                limits={"max_context": max_context},
                report=vision.report + llm.report,
            )
            unhashed: dict[str, dict[str, Any]] = {
                path.relative_to(directory).as_posix(): {} for path in directory.rglob("*") if path.is_file()
            }
            unfinished = Bundle(directory, replace(manifest, files=unhashed))
            expected = check_llm(llm, unfinished, language, vision.visual_tokens)
            if options.of_llm.startswith("int"):
                quantize_llm_half(llm, unfinished, language, expected, options)
            around = Prompt(unfinished).around_question()
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
    return ExportResult(Bundle(out, manifest), verified, vision.tensorrt | llm.tensorrt)


def _check(options: ExportOptions) -> None:
    """Refuse what is wrong whatever the checkpoint is, before torch is imported."""
    for package in _PACKAGES:
        if importlib.util.find_spec(package) is None:
            raise missing_package(package, "an export", "export,runtime")
    for name, known in _CHOICES.items():
        if getattr(options, name) not in known:
            raise ExportError(f'--{name} is "{getattr(options, name)}"{nearest(str(getattr(options, name)), filter(None, known))}')
    llm_precision(options.of_llm)
    if options.error_budget is not None and not options.error_budget > 0:
        raise ExportError(f"--error-budget is {options.error_budget:g}, expected a share above 0 such as 0.05")
    if options.calibrate is not None and not Path(options.calibrate).is_dir():
        raise ExportError(f"--calibrate {options.calibrate} is no directory; give one with a few typical clips")
    if options.frames is not None:
        _frames(options.frames)
    for name, chosen in (("split", options.split), ("input", options.input != "pixels")):
        if chosen and options.only == "llm":
            raise ExportError(f"--{name} is about the vision half, which --only llm leaves out; drop one of them")
    if options.max_context is not None and options.max_context < 1:
        raise ExportError(f"--max-context is {options.max_context}, expected at least 1 and room for the clip's tokens")
    if options.tensorrt is not None:
        from export.tensorrt_support import release_of

        release_of(options.tensorrt)


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


def _frames(frames: int) -> int:
    if not 1 <= frames <= 1024:
        raise ExportError(f"--frames is {frames}, expected 1 to 1024")
    return frames


def _max_context(chosen: int | None, tokens: int, limit: int) -> int:
    if chosen is None:
        chosen = min(limit, -(-(tokens + _ANSWER_POSITIONS) // 256) * 256)
        if chosen <= tokens:
            raise ExportError(
                f"the clip has {tokens} visual tokens, the LLM was made for {limit} positions; take fewer --frames or a stronger --compress"
            )
    if chosen <= tokens:
        raise ExportError(f"--max-context is {chosen}, the clip alone has {tokens} visual tokens; expected more than that")
    if chosen > limit:
        raise ExportError(f"--max-context is {chosen}, the LLM was made for {limit} positions at most")
    return chosen


def _versions() -> dict[str, str]:
    versions = {"st-gridpool": __version__, "python": platform.python_version()}
    for tool in _TOOLS:
        try:
            versions[tool] = metadata.version(tool)
        except metadata.PackageNotFoundError:
            continue
    return versions
