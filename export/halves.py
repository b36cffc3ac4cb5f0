"""The two halves of a bundle, each from torch module to a checked ONNX file in the bundle's directory.

trace -> surgeon passes -> operator table and real parser -> (vision) stages against torch. The decoder is compared later,
when the tokenizer and the manifest stand beside it.

The vision half has two graphs over one set of weights. `vision.onnx` takes all frames as a batch, which a GPU wants.
`vision.loop.onnx` runs the frame-wise part frame by frame in an ONNX Loop: on a CPU that keeps a frame's activations in the
cache (a quarter faster at SigLIP-so400m size) and memory does not grow with T. With --split `vision.encoder.onnx` and
`vision.compressor.onnx` take the Loop's place, and `vision.onnx` is what parity and plot look into.
"""

from __future__ import annotations

import copy
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import torch

from export import reference as torch_reference
from export.checkpoint import Checkpoint
from export.decoder import OPSET, Decoder
from export.families import LLMHalf, VisionHalf
from export.surgeon import PassReport, run_passes
from export.surgeon.outputs import drop_outputs
from export.surgeon.split import split
from export.tensorrt_support import parse_with_rtx, require
from export.trace import Vision, trace_decoder, trace_vision
from export.verify import StageResult, verify_frame_by_frame, verify_llm, verify_vision
from runtime.bundle import DECODER, VISION, VISION_COMPRESSOR, VISION_ENCODER, VISION_LOOP, Bundle
from runtime.engine.onnx import OnnxEngine
from runtime.engine.split import SplitVision
from runtime.errors import ExportError
from runtime.progress import step
from runtime.prompt import Prompt

if TYPE_CHECKING:
    from export.pipeline import ExportOptions

CHAT_TEMPLATE = "chat_template.jinja"
_QUESTION = "What happens in the video?"


@dataclass
class Half:
    """stages, report: as in the manifest; tensorrt: {check: what it said}; verified: the table; facts: the manifest's `llm`."""

    stages: list[dict[str, Any]] = field(default_factory=list)
    report: list[dict[str, Any]] = field(default_factory=list)
    tensorrt: dict[str, str] = field(default_factory=dict)
    verified: list[StageResult] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)
    visual_tokens: np.ndarray | None = None  # [N, D], torch's


def export_vision(directory: Path, vision: Vision, source: VisionHalf, frames: int, options: ExportOptions) -> Half:
    """Write vision.onnx, vision.loop.onnx and reference/; ExportError where they do not compute what torch computes."""
    half = Half()
    path = directory / f"{VISION}.onnx"
    pixels = torch_reference.pixel_values(source, frames)
    spelled = copy.deepcopy(vision).half() if options.precision == "fp16" else vision
    with step("tracing the vision half"):
        traced = trace_vision(spelled, _tensor(pixels, options.precision), path, OPSET[options.attention])
    del spelled
    with step("surgeon passes on the vision half"):
        with_stages = _passes(half, traced.model, directory, VISION, None, precision=options.precision)
        by_frame = _write_frame_by_frame(half, drop_outputs(with_stages, ()), directory, vision, traced.stages, options)
        # last, because inside the function that a plugin may replace nothing can be looked at any more
        final = drop_outputs(with_stages, traced.stages.values())
        final = _passes(half, final, directory, VISION, ["fuse_gridpool"], compression=vision.compress.spec)
        onnx.save(final, str(path))
    for graph in (VISION, VISION_ENCODER, VISION_COMPRESSOR) if options.split else (VISION,):
        _check_tensorrt(half, directory / f"{graph}.onnx", graph, options)

    outputs: dict[str, np.ndarray] = {}
    with step("running torch for reference"):
        outputs.update(torch_reference.stages(vision, source, pixels))
    with step("comparing the vision half with torch"):
        batched = OnnxEngine.load(with_stages.SerializeToString(), data=directory)
        half.verified, tokens = verify_vision(batched, vision, outputs, pixels, options.precision)
        batched.close()
        engines: list[Any] = [OnnxEngine.load(directory / f"{graph}.onnx") for graph in by_frame]
        one = SplitVision(*engines) if options.split else engines[0]
        half.verified.append(verify_frame_by_frame(one, vision, tokens, pixels, options.precision))
        one.close()
    every = torch_reference.save_vision(directory / "reference", pixels, outputs)
    tensors = {**traced.stages, "visual_tokens": "visual_tokens"}
    half.stages = [{"name": name, "graph": VISION, "tensor": tensors[name], "every": every[name]} for name in outputs]
    half.visual_tokens = outputs["visual_tokens"]
    return half


def export_llm(directory: Path, source: LLMHalf, checkpoint: Checkpoint, options: ExportOptions, max_context: int) -> Half:
    """Write llm/: decoder.onnx, embed_tokens.npy, tokenizer.json, chat_template.jinja."""
    half = Half()
    path = directory / f"{DECODER}.onnx"
    decoder = Decoder(source.causal_lm, max_context, options.attention)
    half.facts = decoder.facts() | {"attention": options.attention}
    spelled = copy.deepcopy(decoder).half() if options.precision == "fp16" else decoder
    with step("tracing the LLM half"):
        traced = trace_decoder(spelled, path, options.attention)
    del spelled
    with step("surgeon passes on the LLM half"):
        onnx.save(_passes(half, traced.model, path.parent, DECODER, None, precision=options.precision), str(path))
    _check_tensorrt(half, path, DECODER, options)
    table = source.causal_lm.get_input_embeddings().weight.detach().numpy()
    np.save(directory / "llm" / "embed_tokens.npy", table.astype(np.float16) if options.precision == "fp16" else table)
    shutil.copyfile(checkpoint.path / "tokenizer.json", directory / "llm" / "tokenizer.json")
    (directory / "llm" / CHAT_TEMPLATE).write_text(source.prompt["chat_template"], encoding="utf-8")
    return half


def check_llm(half: Half, bundle: Bundle, source: LLMHalf, visual_tokens: np.ndarray | None) -> None:
    """Compare the decoder with transformers on a prompt around the clip's tokens; add the reference to the bundle."""
    if visual_tokens is None:  # --only llm: any rows of the embeddings' scale will do
        table = source.causal_lm.get_input_embeddings().weight
        visual_tokens = np.random.default_rng(0).normal(0, float(table.std()), (64, table.shape[1])).astype(np.float32)
    visual_tokens = visual_tokens[: torch_reference.LLM_VISUAL_TOKENS]
    ids = Prompt(bundle).ids(_QUESTION)
    with step("comparing the LLM half with torch"):
        expected = torch_reference.llm(source, ids, visual_tokens)
        half.verified = verify_llm(bundle, expected)
    torch_reference.save_llm(bundle.path / "reference", expected)


def _write_frame_by_frame(
    half: Half, model: onnx.ModelProto, directory: Path, vision: Vision, stages: dict[str, str], options: ExportOptions
) -> list[str]:
    """Write what runs frame by frame, the Loop or encoder and compressor; the graphs' names."""
    if not options.split:
        looped = _passes(half, model, directory, VISION_LOOP, ["frame_loop"])
        onnx.save(drop_outputs(looped, stages.values()), str(directory / f"{VISION_LOOP}.onnx"))
        return [VISION_LOOP]
    looped, _ = run_passes(model, ["frame_loop"], graph=VISION_LOOP, directory=directory, required=["frame_loop"])
    encoder, compressor = split(drop_outputs(looped, stages.values()), vision.grid)
    note = f"{len(compressor.graph.node)} nodes left for the compressor"
    half.report.append(PassReport(VISION_ENCODER, "split", len(encoder.graph.node), note).as_dict())
    onnx.save(encoder, str(directory / f"{VISION_ENCODER}.onnx"))
    compressor = _passes(half, compressor, directory, VISION_COMPRESSOR, ["fuse_gridpool"], compression=vision.compress.spec)
    onnx.save(compressor, str(directory / f"{VISION_COMPRESSOR}.onnx"))
    return [VISION_ENCODER, VISION_COMPRESSOR]


def _passes(
    half: Half, model: onnx.ModelProto, directory: Path, graph: str, names: list[str] | None, **facts: str
) -> onnx.ModelProto:
    """Run surgeon passes (all that need no asking, where None); `model` must not be used afterwards."""
    model, reports = run_passes(model, names, graph=graph, directory=directory, **facts)
    half.report += [report.as_dict() for report in reports]
    return model


def _check_tensorrt(half: Half, path: Path, graph: str, options: ExportOptions) -> None:
    if options.tensorrt:
        require(onnx.load(str(path), load_external_data=False), options.tensorrt)
        half.tensorrt[f"{graph}: operators of TensorRT {options.tensorrt}"] = "all nodes supported"
    errors = parse_with_rtx(path)
    if errors:
        raise ExportError(f"TensorRT-RTX's parser refuses {graph}.onnx: {errors[0]}")
    half.tensorrt[f"{graph}: parser of TensorRT-RTX"] = "not installed here" if errors is None else "parsed"


def _tensor(pixels: np.ndarray, precision: str) -> torch.Tensor:
    tensor = torch.from_numpy(pixels)
    return tensor.half() if precision == "fp16" else tensor
