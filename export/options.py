"""The options of an export, which the command line is made of, and what is wrong with them whatever the checkpoint is.

All of this happens before torch is imported.
"""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from pathlib import Path

from export.quantize import llm_precision
from runtime.core.errors import ExportError, missing_package
from runtime.core.options import check_limits, option

_PACKAGES = ("torch", "transformers", "onnx", "onnxscript", "onnx_graphsurgeon", "safetensors", "onnxruntime")  # loaded later
MOST_FRAMES = 1024


@dataclass(frozen=True)
class ExportOptions:
    """What to export and how. Values out of range are refused by `check_options`.

    place      after-projector is the paper's, before-projector makes the projector cheaper
    precision  fp32 and fp16 are weights and activations, int8 is Q/DQ; the LLM's int8 and int4 are weights in Q/DQ
    input      pixels: the runtime resizes and normalises; frames: the graph does
    """

    model: str = option("llava-ov", "model family")
    checkpoint: str | None = option(None, "default: the small checkpoint that ships with the package", metavar="DIR|HUB_ID")
    out: str | None = option(None, "the bundle's directory (default: bundles/<model>)", metavar="DIR")
    frames: int | None = option(None, "frames of a clip (default: the checkpoint's)", at_least=1, at_most=MOST_FRAMES)
    compress: str | None = option(None, "token compression (default: the family's)", metavar="PRESET|SPEC")
    place: str = option("after-projector", "where tokens are compressed", choices=("after-projector", "before-projector"))
    precision: str = option("fp32", "of the vision encoder and the LLM", choices=("fp32", "fp16", "int8"))
    llm_precision: str | None = option(None, "the LLM's (default: that of --precision)", metavar="fp32|fp16|int8|int4[:BLOCK]")
    calibrate: str | None = option(None, "videos that quantisation is measured on (default: generated clips)", metavar="DIR")
    error_budget: float | None = option(
        None,
        "relative error of features and logits that quantisation may make, such as 0.05 (default: each component's)",
        metavar="SHARE",
        above=0,
        at_most=100,
    )
    attention: str = option("portable", "how attention is written for export", choices=("portable", "standard", "flash"))
    tensorrt: str | None = option(
        None, "make a node that this TensorRT release's parser does not support an error, e.g. 10.3", metavar="VERSION"
    )
    max_context: int | None = option(None, "KV positions (default: the clip and about a thousand more)", at_least=1)
    only: str | None = option(None, "export one component", choices=("vision", "llm"))
    input: str = option(
        "pixels", "uint8 frames of a fixed size, which the graph resizes and normalises", metavar="pixels|frames[:HxW]"
    )
    split: bool = option(False, "encoder of one frame and compressor of the clip as two graphs (live video)")
    force: bool = option(False, "replace an existing bundle")

    @property
    def of_llm(self) -> str:
        """`llm_precision`, or what follows from `precision`."""
        return self.precision if self.llm_precision is None else self.llm_precision

    @property
    def quantizes(self) -> bool:
        """Whether anything that is exported is quantised, and so measured on clips."""
        vision, llm = self.precision == "int8", self.of_llm.startswith("int")
        return (vision and self.only != "llm") or (llm and self.only != "vision")


def check_options(options: ExportOptions) -> None:
    """Refuse what is wrong whatever the checkpoint is."""
    for package in _PACKAGES:
        if importlib.util.find_spec(package) is None:
            raise missing_package(package, "an export", "export,runtime")
    check_limits(options, ExportError)
    llm_precision(options.of_llm)
    if options.calibrate is not None and not (options.calibrate and Path(options.calibrate).is_dir()):
        raise ExportError(f"--calibrate {options.calibrate} is not a directory; give one with a few typical clips")
    _refuse_without_effect(options)
    if options.frames is not None:
        check_several_frames(options, options.frames)
    if options.attention == "flash":
        _refuse_flash(options)
    if options.tensorrt is not None:
        _check_tensorrt(options, options.tensorrt)


def _refuse_without_effect(options: ExportOptions) -> None:
    """Refuse options that this export has no use for, but the precision of a component that --only leaves out: the same options
    then serve both components."""
    for name, chosen in (("split", options.split), ("input", options.input != "pixels")):
        if chosen and options.only == "llm":
            raise ExportError(f"--{name} is for the vision encoder, which --only llm leaves out; drop one of them")
    for name, value in (("calibrate", options.calibrate), ("error-budget", options.error_budget)):
        if value is not None and not options.quantizes:
            ways = {"vision": "--precision int8", "llm": "--llm-precision int8 or int4"}
            remedy = f"pass {ways.get(options.only or '', ', or '.join(ways.values()))}, or leave it out"
            raise ExportError(f"--{name} is for quantisation, and nothing is quantised here; {remedy}")


def _refuse_flash(options: ExportOptions) -> None:
    """Refuse --attention flash where a kernel in float16 could not take the graphs."""
    vision, llm = options.precision if options.only != "llm" else "fp16", options.of_llm if options.only != "vision" else "fp16"
    if {vision, llm} != {"fp16"}:
        raise ExportError(
            f"--attention flash is for float16, and the vision encoder would be {vision}, the LLM {llm}; pass --precision fp16"
        )
    if options.tensorrt is not None:
        raise ExportError("--attention flash is for ONNX Runtime's CUDA provider alone; for TensorRT pass portable or standard")


def _check_tensorrt(options: ExportOptions, version: str) -> None:
    """Refuse options whose graphs need a newer ONNX opset than that TensorRT's parser supports."""
    from export.decoder import OPSET
    from export.quantize.qdq import OPSET_OF_INT4
    from export.tensorrt import PARSERS, release_of

    newest = PARSERS[release_of(version)].max_opset
    needed = {}  # {option: (opset, what to use instead)}
    if OPSET[options.attention] > newest:
        needed[f"--attention {options.attention}"] = OPSET[options.attention], "--attention portable"
    if options.only != "vision" and options.of_llm.startswith("int4") and newest < OPSET_OF_INT4:
        needed[f"--llm-precision {options.of_llm}"] = OPSET_OF_INT4, "--llm-precision int8"
    if not needed:
        return
    highest = max(opset for opset, _ in needed.values())
    first = next((release for release, parser in PARSERS.items() if parser.max_opset >= highest), None)
    needs = " and ".join(f"{option} needs ONNX opset {opset}" for option, (opset, _) in needed.items())
    instead = " and ".join(instead for _, instead in needed.values())
    newer = f", or for TensorRT {first} or newer" if first else ""
    raise ExportError(f"{needs}, TensorRT {version} supports up to {newest}; export with {instead}{newer}")


def check_several_frames(options: ExportOptions, frames: int) -> None:
    """ExportError where a clip of one frame would have to be split into frames."""
    splitting = {"--split": options.split, "--precision int8": options.precision == "int8" and options.only != "llm"}
    for name, chosen in splitting.items():
        if chosen and frames < 2:
            raise ExportError(f"{name} splits a clip into frames, and a clip has 1 frame here; pass --frames 2 or more")
