"""The two halves of a bundle, each from torch module to a checked ONNX file in the bundle's directory.

trace -> surgeon passes -> operator table and real parser -> (vision) stages against torch. The decoder is compared later,
when the tokenizer and the manifest stand beside it.
"""

from __future__ import annotations

import copy
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from export import reference as torch_reference
from export.checkpoint import Checkpoint
from export.decoder import OPSET, Decoder
from export.families import Model
from export.surgeon import run_passes
from export.tensorrt_support import parse_with_rtx, require
from export.trace import Traced, Vision, trace_decoder, trace_vision
from export.verify import StageResult, verify_llm, verify_vision
from runtime.bundle import DECODER, VISION, Bundle
from runtime.engine.onnx import OnnxEngine
from runtime.errors import ExportError
from runtime.progress import step
from runtime.prompt import Prompt

if TYPE_CHECKING:
    from export.pipeline import ExportOptions

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


def export_vision(directory: Path, vision: Vision, model: Model, frames: int, options: ExportOptions) -> Half:
    """Write vision.onnx and reference/; ExportError where ONNX Runtime does not compute what torch computes."""
    half = Half()
    path = directory / f"{VISION}.onnx"
    pixels = torch_reference.pixel_values(model, frames)
    spelled = copy.deepcopy(vision).half() if options.precision == "fp16" else vision
    with step("tracing the vision half"):
        traced = trace_vision(spelled, _tensor(pixels, options.precision), path, OPSET[options.attention])
    del spelled
    finished = _rewrite(half, traced, path, VISION, options)

    outputs: dict[str, np.ndarray] = {}
    with step("running torch for reference"):
        outputs.update(torch_reference.stages(vision, model, pixels))
    with step("comparing the vision half with torch"):
        with_stages = OnnxEngine.load(traced.model.SerializeToString(), data=path.parent)
        half.verified = verify_vision(with_stages, vision, outputs, pixels, options.precision)
        with_stages.close()
    every = torch_reference.save_vision(directory / "reference", pixels, outputs)
    tensors = {**finished, "visual_tokens": "visual_tokens"}
    half.stages = [{"name": name, "graph": VISION, "tensor": tensors[name], "every": every[name]} for name in outputs]
    half.visual_tokens = outputs["visual_tokens"]
    return half


def export_llm(directory: Path, model: Model, checkpoint: Checkpoint, options: ExportOptions, max_context: int) -> Half:
    """Write llm/: decoder.onnx, embed_tokens.npy, tokenizer.json, chat_template.jinja."""
    half = Half()
    path = directory / f"{DECODER}.onnx"
    decoder = Decoder(model.llm, max_context, options.attention)
    half.facts = decoder.facts() | {"attention": options.attention}
    spelled = copy.deepcopy(decoder).half() if options.precision == "fp16" else decoder
    with step("tracing the LLM half"):
        traced = trace_decoder(spelled, path, options.attention)
    del spelled
    _rewrite(half, traced, path, DECODER, options)
    table = model.llm.get_input_embeddings().weight.detach().numpy()
    np.save(directory / "llm" / "embed_tokens.npy", table.astype(np.float16) if options.precision == "fp16" else table)
    shutil.copyfile(checkpoint.path / "tokenizer.json", directory / "llm" / "tokenizer.json")
    (directory / "llm" / "chat_template.jinja").write_text(model.prompt["chat_template"], encoding="utf-8")
    return half


def check_llm(half: Half, bundle: Bundle, model: Model, visual_tokens: np.ndarray | None) -> None:
    """Compare the decoder with transformers on a prompt around the clip's tokens; add the reference to the bundle."""
    if visual_tokens is None:  # --only llm: any rows of the embeddings' scale will do
        scale = float(model.llm.get_input_embeddings().weight.std())
        visual_tokens = np.random.default_rng(0).normal(0, scale, (64, model.hidden_size)).astype(np.float32)
    visual_tokens = visual_tokens[: torch_reference.LLM_VISUAL_TOKENS]
    ids = Prompt(bundle).ids(_QUESTION)
    with step("comparing the LLM half with torch"):
        expected = torch_reference.llm(model, ids, visual_tokens)
        half.verified = verify_llm(bundle, expected, visual_tokens, bundle.manifest.precision)
    torch_reference.save_llm(bundle.path / "reference", expected, visual_tokens)


def _rewrite(half: Half, traced: Traced, path: Path, graph: str, options: ExportOptions) -> dict[str, str]:
    """Run the passes on `traced` (in place), check the result for TensorRT, save it without its stage outputs."""
    import onnx

    with step(f"surgeon passes on {graph}"):
        traced.model, reports = run_passes(traced.model, graph=graph, precision=options.precision)
        half.report = [report.as_dict() for report in reports]
        stages = set(traced.stages.values())
        final = onnx.ModelProto()
        final.CopyFrom(traced.model)
        kept = [output for output in final.graph.output if output.name not in stages]
        del final.graph.output[:]
        final.graph.output.extend(kept)
        onnx.save(final, str(path))
    if options.tensorrt:
        require(final, options.tensorrt)
        half.tensorrt[f"{graph}: operators of TensorRT {options.tensorrt}"] = "all nodes supported"
    errors = parse_with_rtx(path)
    if errors:
        raise ExportError(f"TensorRT-RTX's parser refuses {graph}.onnx: {errors[0]}")
    half.tensorrt[f"{graph}: parser of TensorRT-RTX"] = "not installed here" if errors is None else "parsed"
    return traced.stages


def _tensor(pixels: np.ndarray, precision: str) -> Any:
    import torch

    tensor = torch.from_numpy(pixels)
    return tensor.half() if precision == "fp16" else tensor
