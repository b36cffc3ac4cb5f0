"""The whole way from a checkpoint to a bundle, on one screen.

read the checkpoint -> export and check each half -> write the manifest, all in a temporary directory that takes the
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
from runtime import __version__
from runtime.bundle import MANIFEST, Bundle, Manifest, foreign_files, write_manifest
from runtime.errors import ExportError, nearest
from runtime.files import atomic_directory, require_writable
from runtime.progress import say, step
from runtime.prompt import Prompt

_ANSWER_POSITIONS = 1024  # room for question and answer in the default context
_TOOLS = ("torch", "transformers", "onnx", "onnxscript", "onnx-graphsurgeon", "onnxruntime", "polygraphy", "tensorrt-rtx")
_CHOICES = {
    "place": ("after-projector", "before-projector"),
    "precision": ("fp32", "fp16"),
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
    precision    fp32 | fp16 weights and activations, of both halves
    attention    portable | standard spelling of the decoder
    tensorrt     a TensorRT release whose ONNX parser must take every node, e.g. "10.3"; None for no such check
    max_context  KV positions; None for the clip and about a thousand more
    only         vision | llm to export one half
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
    attention: str = "portable"
    tensorrt: str | None = None
    max_context: int | None = None
    only: str | None = None
    split: bool = False
    force: bool = False


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
    from export.halves import CHAT_TEMPLATE, Half, check_llm, export_llm, export_vision
    from export.trace import Vision

    if options.only != "vision":
        kind.check_llm(checkpoint)
    with step("reading the vision half"):
        digest = checkpoint.sha256()
        source = kind.load_vision(checkpoint)
    frames = _frames(source.frames if options.frames is None else options.frames)
    if options.split and frames < 2:
        raise ExportError("--split takes the frames of a clip apart, and a clip has 1 frame here; pass --frames 2 or more")
    compress = make(preset, frames=frames, height=source.grid[0], width=source.grid[1])
    tokens = compress.num_tokens + len(source.newline)
    max_context = _max_context(options.max_context, tokens, kind.max_positions(checkpoint)) if options.only != "vision" else 0

    with atomic_directory(out) as directory:
        vision, llm = Half(), Half()
        if options.only != "llm":
            vision = export_vision(directory, Vision(source, compress, options.place).eval(), source, frames, options)
        manifest = Manifest(
            family=options.model,
            checkpoint={"id": checkpoint.id, "sha256": digest},
            compression={"preset": preset, "spec": compress.spec, "place": options.place},
            frames=frames,
            grid=list(source.grid),
            tokens_per_clip=tokens,
            hidden_size=source.hidden_size,
            preprocessing=source.preprocessing,
            prompt={},
            llm={},
            precision=options.precision,
            opset=OPSET[options.attention],
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
                path.relative_to(directory).as_posix(): {} for path in (directory / "llm").iterdir()
            }
            draft = Bundle(directory, replace(manifest, files=unhashed))
            check_llm(llm, draft, language, vision.visual_tokens)
            around = Prompt(draft).around_question()
            manifest = replace(manifest, prompt=manifest.prompt | ({"around_question": around} if around else {}))
        with step("hashing the bundle"):
            manifest = write_manifest(directory, manifest)
    verified = [result.as_dict() for result in vision.verified + llm.verified]
    return ExportResult(Bundle(out, manifest), verified, vision.tensorrt | llm.tensorrt)


def _check(options: ExportOptions) -> None:
    """Refuse what is wrong whatever the checkpoint is, before torch is imported."""
    for name, known in _CHOICES.items():
        if getattr(options, name) not in known:
            raise ExportError(f'--{name} is "{getattr(options, name)}"{nearest(str(getattr(options, name)), filter(None, known))}')
    if options.frames is not None:
        _frames(options.frames)
    if options.split and options.only == "llm":
        raise ExportError("--split is about the vision half, which --only llm leaves out; drop one of them")
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
