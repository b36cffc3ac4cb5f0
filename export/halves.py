"""The two halves of a bundle, each from torch module to a checked ONNX file in the bundle's directory.

trace -> surgeon passes -> operator table and real parser -> (vision) stages against torch. The decoder is compared later,
when the tokenizer and the manifest stand beside it.

The vision half has two graphs over one set of weights. `vision.onnx` takes all frames as a batch, which a GPU wants.
`vision.loop.onnx` runs the frame-wise part frame by frame in an ONNX Loop: on a CPU that keeps a frame's activations in the
cache (a quarter faster at SigLIP-so400m size) and memory does not grow with T.
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
from export.surgeon import run_passes
from export.surgeon.outputs import drop_outputs
from export.tensorrt_support import parse_with_rtx, require
from export.trace import Vision, trace_decoder, trace_vision
from export.verify import StageResult, verify_batch, verify_llm, verify_looped, verify_vision
from runtime.bundle import DECODER, DECODER_BATCH, VISION, VISION_LOOP, Bundle
from runtime.engine.onnx import OnnxEngine
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
        looped = _passes(half, drop_outputs(with_stages, ()), directory, VISION_LOOP, ["frame_loop"])
        onnx.save(drop_outputs(looped, traced.stages.values()), str(directory / f"{VISION_LOOP}.onnx"))
        # last, because inside the function that a plugin may replace nothing can be looked at any more
        final = drop_outputs(with_stages, traced.stages.values())
        final = _passes(half, final, directory, VISION, ["fuse_gridpool"], compression=vision.compress.spec)
        onnx.save(final, str(path))
    _check_tensorrt(half, path, VISION, options)

    outputs: dict[str, np.ndarray] = {}
    with step("running torch for reference"):
        outputs.update(torch_reference.stages(vision, source, pixels))
    with step("comparing the vision half with torch"):
        batched = OnnxEngine.load(with_stages.SerializeToString(), data=directory)
        half.verified, tokens = verify_vision(batched, vision, outputs, pixels, options.precision)
        batched.close()
        looped = OnnxEngine.load(directory / f"{VISION_LOOP}.onnx")
        half.verified.append(verify_looped(looped, vision, tokens, pixels, options.precision))
        looped.close()
    every = torch_reference.save_vision(directory / "reference", pixels, outputs)
    tensors = {**traced.stages, "visual_tokens": "visual_tokens"}
    half.stages = [{"name": name, "graph": VISION, "tensor": tensors[name], "every": every[name]} for name in outputs]
    half.visual_tokens = outputs["visual_tokens"]
    return half


def export_llm(directory: Path, source: LLMHalf, checkpoint: Checkpoint, options: ExportOptions, max_context: int) -> Half:
    """Write llm/: decoder.onnx, decoder.batch.onnx, embed_tokens.npy, tokenizer.json, chat_template.jinja."""
    half = Half()
    path = directory / f"{DECODER}.onnx"
    decoder = Decoder(source.causal_lm, max_context, options.attention)
    half.facts = decoder.facts() | {"attention": options.attention}
    spelled = copy.deepcopy(decoder).half() if options.precision == "fp16" else decoder
    with step("tracing the LLM half"):
        traced = trace_decoder(spelled, path, options.attention)
    del spelled
    with step("surgeon passes on the LLM half"):
        single = _passes(half, traced.model, path.parent, DECODER, None, precision=options.precision)
        onnx.save(single, str(path))
        onnx.save(_passes(half, single, path.parent, DECODER_BATCH, ["batch"]), str(directory / f"{DECODER_BATCH}.onnx"))
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
    with step("comparing a batch of conversations with each alone"):
        half.verified.append(verify_batch(bundle))
    torch_reference.save_llm(bundle.path / "reference", expected)


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
