"""What is wrong with the options of an export whatever the checkpoint is: refused before torch is imported."""

from __future__ import annotations

import importlib.util
import math
from pathlib import Path

from export.options import ExportOptions
from export.quantize import llm_precision
from runtime.core.errors import ExportError, missing_package
from runtime.core.options import check_limits

_PACKAGES = ("torch", "transformers", "onnx", "onnxscript", "onnx_graphsurgeon", "safetensors", "onnxruntime")  # loaded later


def check_options(options: ExportOptions) -> None:
    """Refuse what is wrong whatever the checkpoint is."""
    for package in _PACKAGES:
        if importlib.util.find_spec(package) is None:
            raise missing_package(package, "an export", "export,runtime")
    check_limits(options, ExportError)
    llm_precision(options.of_llm)
    if options.error_budget is not None and not 0 < options.error_budget < math.inf:
        raise ExportError(f"--error-budget is {options.error_budget:g}, expected a share above 0 such as 0.05")
    if options.calibrate is not None and not (options.calibrate and Path(options.calibrate).is_dir()):
        raise ExportError(f"--calibrate {options.calibrate} is not a directory; give one with a few typical clips")
    if options.frames is not None:
        check_frames(options.frames, "--frames")
    _refuse_without_effect(options)
    if options.frames is not None:
        check_several_frames(options, options.frames)
    if options.max_context is not None and options.max_context < 1:
        raise ExportError(f"--max-context is {options.max_context}, expected at least 1 and room for the clip's tokens")
    if options.tensorrt is not None:
        _check_tensorrt(options, options.tensorrt)


def _refuse_without_effect(options: ExportOptions) -> None:
    """Refuse options that this export has no use for. Precisions of the component that --only leaves out are accepted, so that the same
    options serve both components."""
    for name, chosen in (("split", options.split), ("input", options.input != "pixels")):
        if chosen and options.only == "llm":
            raise ExportError(f"--{name} is for the vision encoder, which --only llm leaves out; drop one of them")
    for name, value in (("calibrate", options.calibrate), ("error-budget", options.error_budget)):
        if value is not None and not options.quantizes:
            ways = {"vision": "--precision int8", "llm": "--llm-precision int8 or int4"}
            remedy = f"pass {ways.get(options.only or '', ', or '.join(ways.values()))}, or leave it out"
            raise ExportError(f"--{name} is for quantisation, and nothing is quantised here; {remedy}")


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


def check_frames(frames: int, name: str) -> None:
    """ExportError where T is out of range; name: where the number comes from."""
    if not 1 <= frames <= 1024:
        pass_it = "" if name == "--frames" else "; pass --frames"
        raise ExportError(f"{name} is {frames}, expected 1 to 1024{pass_it}")
