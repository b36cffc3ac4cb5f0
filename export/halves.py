"""The two halves of a bundle, each from torch module to a checked ONNX file in the bundle's directory.

trace -> surgeon passes -> (vision) stages against torch -> quantisation where it was asked for, and the stages again -> operator
table and real parser. The decoder is compared, and quantised, later, when the tokenizer and the manifest stand beside it.

The vision half has two graphs over one set of weights. `vision.onnx` takes all frames as a batch, which a GPU wants.
`vision.loop.onnx` runs the frame-wise part frame by frame in an ONNX Loop: on a CPU that keeps a frame's activations in the
cache (a quarter faster at SigLIP-so400m size) and memory does not grow with T. With --split `vision.encoder.onnx` and
`vision.compressor.onnx` take the Loop's place, and `vision.onnx` is what parity and plot look into.
"""

from __future__ import annotations

import copy
import shutil
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import onnx.shape_inference
import torch

from export import reference as torch_reference
from export.checkpoint import Checkpoint
from export.decoder import OPSET, Decoder
from export.families import LLMHalf, VisionHalf
from export.preflight import QUESTION
from export.quantize import llm_precision
from export.quantize.calibration import Clips, calibration_prompts
from export.quantize.layers import save as save_weights
from export.quantize.layers import with_weights
from export.quantize.llm import quantize_llm
from export.quantize.qdq import rows_to_int8
from export.quantize.report import Report
from export.quantize.vision import quantize_vision
from export.surgeon import PassReport, run_passes
from export.surgeon.outputs import drop_outputs
from export.surgeon.split import split
from export.tensorrt import parse_with_rtx, require
from export.trace import Vision, trace_decoder, trace_vision
from export.verify import StageResult, verify_batch, verify_float16, verify_frame_by_frame, verify_llm, verify_vision
from runtime.bundle import DECODER, DECODER_BATCH, VISION, VISION_COMPRESSOR, VISION_ENCODER, VISION_LOOP, Bundle
from runtime.core.errors import ExportError
from runtime.core.progress import step
from runtime.engine.onnx import OnnxEngine
from runtime.media.preprocess import Preprocessor
from runtime.prompt import Prompt
from runtime.prompt.embeddings import ROWS, SCALES
from runtime.tools.float16_rows import compare_llm_float16, compare_vision_float16
from runtime.tools.reference import LLMReference
from runtime.vision.engine import vision_engine

if TYPE_CHECKING:
    from export.options import ExportOptions

CHAT_TEMPLATE = "chat_template.jinja"
_ROWS = 64  # random visual tokens in the prompt of an LLM without a vision half


@dataclass
class Half:
    """stages, report: as in the manifest; tensorrt: {check: what it said}; verified: the table; facts: the manifest's `llm`;
    quantized: {graph: what quantisation did}."""

    stages: list[dict[str, Any]] = field(default_factory=list)
    report: list[dict[str, Any]] = field(default_factory=list)
    tensorrt: dict[str, str] = field(default_factory=dict)
    verified: list[StageResult] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)
    quantized: dict[str, Report] = field(default_factory=dict)
    visual_tokens: np.ndarray | None = None  # [N, D], torch's


def export_vision(directory: Path, vision: Vision, source: VisionHalf, frames: int, options: ExportOptions) -> Half:
    """Write the graphs of the vision half and reference/; ExportError where they do not compute what torch computes."""
    half = Half()
    path = directory / f"{VISION}.onnx"
    whole = "fp16" if options.precision == "fp16" else "fp32"  # the precision before quantisation
    if vision.input is None:
        given = pixels = torch_reference.pixel_values(source, frames)
    else:  # what Pillow makes of the frames is the truth
        given = torch_reference.frames(source, frames, vision.input.source)
        processor = Preprocessor(source.preprocessing)
        pixels = processor.normalise(np.stack([processor.resize(frame) for frame in given]))
    spelled = copy.deepcopy(vision).half() if whole == "fp16" else vision
    with step("tracing the vision half"):
        traced = trace_vision(spelled, _tensor(given, whole), path, OPSET[options.attention])
    del spelled
    with step("surgeon passes on the vision half"):
        with_stages = _passes(half, traced.model, directory, VISION, None, precision=whole)
    outputs: dict[str, np.ndarray] = {}
    with step("running torch for reference"):
        outputs.update(torch_reference.stages(vision, source, pixels))
        rounding = torch_reference.vision_rounding(source, pixels)
    tokens = _compare_stages(half, with_stages, directory, vision, outputs, given, whole, rounding)
    if options.precision == "int8":
        with_stages = _quantize_vision(half, with_stages, directory, vision, source, options)
        tokens = _compare_stages(half, with_stages, directory, vision, outputs, given, "int8", rounding)

    by_frame = _write_frame_by_frame(half, drop_outputs(with_stages, ()), directory, vision, traced.stages, options)
    # last, because inside the function that a plugin may replace nothing can be looked at any more
    final = drop_outputs(with_stages, traced.stages.values())
    onnx.save(_passes(half, final, directory, VISION, ["fuse_gridpool"], compression=vision.compress.spec), str(path))
    for graph in (VISION, VISION_ENCODER, VISION_COMPRESSOR) if options.split else (VISION,):
        _check_tensorrt(half, directory / f"{graph}.onnx", graph, options)
    with step("comparing the graph that runs frame by frame"):
        one = vision_engine(*(OnnxEngine.load(directory / f"{graph}.onnx") for graph in by_frame))
        half.verified.append(verify_frame_by_frame(one, vision, tokens, given, options.precision, rounding))
        one.close()
    if whole == "fp16":
        with step("computing a frame of the vision half in float16"):
            features = outputs["vision/projector" if vision.place == "after-projector" else "vision/encoder"]
            selected = any(stage.select for _, stage in vision.compress.stages)
            rows = compare_vision_float16(directory, given, features, outputs["visual_tokens"], selected)
            half.verified += verify_float16(rows, "--precision fp32 (with --llm-precision fp16, if only its vision half does)")
    name = "pixel_values" if vision.input is None else "frames"
    every = torch_reference.save_vision(directory / "reference", {name: given}, outputs)
    tensors = {**traced.stages, "visual_tokens": "visual_tokens"}
    half.stages = [
        {"name": name, "graph": VISION, "tensor": tensors[name], "every": every[name], "rounding": rounding} for name in outputs
    ]
    half.visual_tokens = outputs["visual_tokens"]
    return half


def _compare_stages(
    half: Half,
    model: onnx.ModelProto,
    directory: Path,
    vision: Vision,
    outputs: dict[str, np.ndarray],
    given: np.ndarray,
    precision: str,
    rounding: float,
) -> np.ndarray:
    """Compare a graph whose stages are outputs with torch; its visual tokens."""
    with step(f"comparing the vision half in {precision} with torch"):
        engine = OnnxEngine.load(model.SerializeToString(), data=directory)
        half.verified, tokens = verify_vision(engine, vision, outputs, given, precision, rounding)
        engine.close()
    return tokens


def _quantize_vision(
    half: Half, model: onnx.ModelProto, directory: Path, vision: Vision, source: VisionHalf, options: ExportOptions
) -> onnx.ModelProto:
    """The structure of the graph in int8, still with its stages as outputs; its weights replace those in `directory`."""
    stages = [output.name for output in model.graph.output][1:]
    with step("quantising the vision half"):
        path = directory / f"{VISION}.onnx"
        model = save_weights(_passes(half, with_weights(model, directory), directory, VISION, ["join_matmuls"]), path)
        taken = {} if vision.input is None else {"frames": list(vision.input.source)}
        clips = Clips(source.preprocessing | taken, Path(options.calibrate) if options.calibrate else None)
        model, report = quantize_vision(model, directory, stages, vision.grid, clips, options.error_budget)
        half.quantized[VISION] = report
        half.report.append(PassReport(VISION, "quantize int8", report.lowered, report.note()).as_dict())
        return onnx.shape_inference.infer_shapes(save_weights(model, path))


def export_llm(directory: Path, source: LLMHalf, checkpoint: Checkpoint, options: ExportOptions, max_context: int) -> Half:
    """Write llm/: the decoder for one conversation and for a batch, embed_tokens.npy, tokenizer.json, chat_template.jinja.

    In float; where the weights are to be quantised, `quantize_llm_half` comes after and writes the batch's graph.
    """
    half = Half()
    path = directory / f"{DECODER}.onnx"
    precision = llm_precision(options.of_llm)[0]
    whole = "fp16" if precision == "fp16" else "fp32"
    decoder = Decoder(source.causal_lm, max_context, options.attention)
    half.facts = decoder.facts() | {"attention": options.attention, "precision": whole}
    spelled = copy.deepcopy(decoder).half() if whole == "fp16" else decoder
    with step("tracing the LLM half"):
        traced = trace_decoder(spelled, path, options.attention)
    del spelled
    with step("surgeon passes on the LLM half"):
        single = _passes(half, traced.model, path.parent, DECODER, None, precision=whole)
        onnx.save(single, str(path))
        if precision == whole:
            _write_batch(half, single, directory)
    if precision == whole:
        _check_tensorrt(half, path, DECODER, options)
    table = source.causal_lm.get_input_embeddings().weight.detach().numpy()
    np.save(directory / ROWS, table.astype(np.float16) if whole == "fp16" else table)
    shutil.copyfile(checkpoint.path / "tokenizer.json", directory / "llm" / "tokenizer.json")
    (directory / "llm" / CHAT_TEMPLATE).write_text(source.prompt["chat_template"], encoding="utf-8")
    return half


def check_llm(half: Half, bundle: Bundle, source: LLMHalf, visual_tokens: np.ndarray | None) -> LLMReference:
    """Compare the decoder with transformers on a prompt around the clip's tokens; add the reference to the bundle."""
    ids = Prompt(bundle).ids(QUESTION)
    if visual_tokens is None:  # --only llm: any rows of the embeddings' scale will do, as many as the context has room for
        room = bundle.manifest.limits["max_context"] - len(ids.before) - len(ids.after) - torch_reference.GREEDY
        visual_tokens = _rows_like(source, min(_ROWS, max(bundle.manifest.tokens_per_clip, room)))
    visual_tokens = visual_tokens[: torch_reference.LLM_VISUAL_TOKENS]
    with step("comparing the LLM half with torch"):
        expected = torch_reference.llm(source, ids, visual_tokens)
        half.verified = verify_llm(bundle, expected)
    if (bundle.path / f"{DECODER_BATCH}.onnx").exists():
        _compare_batch(half, bundle, expected)
    if bundle.manifest.llm_precision == "fp16":
        with step("computing the LLM half in float16"):
            half.verified += verify_float16(compare_llm_float16(bundle, expected), "--llm-precision fp32")
    torch_reference.save_llm(bundle.path / "reference", expected)
    return expected


def quantize_llm_half(half: Half, bundle: Bundle, source: LLMHalf, expected: LLMReference, options: ExportOptions) -> None:
    """Put the weights of a float decoder and its embeddings into int8 or int4, measured on prompts about calibration clips.

    bundle: with the float decoder and, but for --only llm, the vision half; expected: what `check_llm` compared with.
    """
    precision, block = llm_precision(options.of_llm)
    path = bundle.path / f"{DECODER}.onnx"
    with step("quantising the LLM half"):
        clips = Clips(bundle.manifest.preprocessing, Path(options.calibrate) if options.calibrate else None)
        visual = None if options.only != "llm" else _rows_like(source, bundle.manifest.tokens_per_clip)
        prompts = list(calibration_prompts(bundle, clips, visual))
        # a decode step costs by the node, so what reads one tensor is one product
        joined = with_weights(onnx.load(str(path), load_external_data=False), path.parent)
        save_weights(_passes(half, joined, path.parent, DECODER, ["join_matmuls"]), path)
        model, report = quantize_llm(path, precision, block, prompts, clips.source, options.error_budget)
        _write_batch(half, save_weights(model, path), bundle.path)
        del model
        values, scales = rows_to_int8(source.causal_lm.get_input_embeddings().weight.detach().numpy())
        np.save(bundle.path / ROWS, values)
        np.save(bundle.path / SCALES, scales)
    half.quantized[DECODER] = report
    half.report.append(PassReport(DECODER, f"quantize {options.of_llm}", report.lowered, report.note()).as_dict())
    half.facts |= {"precision": precision} | ({"block": block} if block else {})
    _check_tensorrt(half, path, DECODER, options)
    files = bundle.manifest.files | {SCALES: {}, f"{DECODER_BATCH}.onnx": {}}
    quantized = Bundle(bundle.path, replace(bundle.manifest, llm=half.facts, files=files))
    with step(f"comparing the LLM half in {precision} with torch"):
        half.verified += verify_llm(quantized, expected)
    _compare_batch(half, quantized, expected)


def _write_batch(half: Half, decoder: onnx.ModelProto, directory: Path) -> None:
    """The decoder for a batch of conversations, over the same weights."""
    path = directory / f"{DECODER_BATCH}.onnx"
    onnx.save(_passes(half, decoder, path.parent, DECODER_BATCH, ["batch"]), str(path))


def _compare_batch(half: Half, bundle: Bundle, expected: LLMReference) -> None:
    with step("comparing a batch of conversations with each alone"):
        half.verified.append(verify_batch(bundle, expected.rounding))


def _rows_like(source: LLMHalf, count: int) -> np.ndarray:
    """Random rows [count, D] of the scale of the word embeddings."""
    table = source.causal_lm.get_input_embeddings().weight
    return np.random.default_rng(0).normal(0, float(table.std()), (count, table.shape[1])).astype(np.float32)


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
    return tensor.half() if precision == "fp16" and tensor.is_floating_point() else tensor
