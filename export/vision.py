"""The vision encoder, from the checkpoint to graphs that compute what torch computes.

    read -> trace -> surgeon passes -> compare with torch, stage by stage -> (int8: quantise, compare again) -> write the graphs
    -> operator table and real parser of TensorRT -> compare the graph that runs frame by frame -> (fp16: compare in float16)

There are two graphs over one set of weights. `vision.onnx` takes all frames as a batch, which suits a GPU. `vision.loop.onnx`
runs the frame-wise part frame by frame in an ONNX Loop: on a CPU that keeps the activations of a frame in the cache (a quarter
faster at the size of SigLIP-so400m), and memory does not grow with T. With --split `vision.encoder.onnx` and
`vision.compressor.onnx` take the Loop's place, and `vision.onnx` is what parity and plot look into.
"""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import onnx
import onnx.shape_inference
import torch

from export import reference
from export.component import Component, base_dtype, check_tensorrt
from export.decoder import OPSET
from export.plan import Plan
from export.quantize.clips import Clips
from export.quantize.layers import save, with_weights
from export.quantize.report import Report
from export.quantize.vision import quantize_vision
from export.stages import Vision, tensor_of
from export.surgeon import run_passes
from export.surgeon.graph import drop_outputs
from export.surgeon.split import split
from export.trace import trace_vision
from export.verify import verify_float16, verify_frame_by_frame, verify_vision
from runtime.bundle import VISION, VISION_COMPRESSOR, VISION_ENCODER, VISION_LOOP
from runtime.bundle.graphs import file_of
from runtime.bundle.manifest import PassReport, StageTensor
from runtime.core.progress import step
from runtime.engine.onnx import OnnxEngine
from runtime.tools.compare import Row
from runtime.tools.float16_rows import compare_vision_float16
from runtime.tools.stages import VISUAL_TOKENS
from runtime.vision.engine import VisionEngine

_FLASH = (
    "ONNX Runtime's CPU provider, which is compared here, has the scores of flash attention in float16: pass --attention portable; "
)


def export_vision(directory: Path, plan: Plan) -> Component:
    """Write the graphs of the vision encoder and reference/; ExportError where they do not compute what torch computes."""
    options = plan.options
    dtype = base_dtype(options.precision)
    with step("reading the vision encoder"):
        source = plan.family.load_vision(plan.checkpoint, options.attention)
    vision = Vision(source, plan.compress, options.place, plan.input).eval()
    inputs, pixels = reference.make_clip(source, plan.frames, plan.input)
    with step("tracing the vision encoder"):
        module = copy.deepcopy(vision).half() if dtype == "fp16" else vision
        model = trace_vision(module, _tensor(inputs, dtype), directory / file_of(VISION), OPSET[options.attention])
        del module
    with step("surgeon passes on the vision encoder"):
        model, passes = run_passes(model, graph=VISION, directory=directory, precision=dtype)
    with step("running torch for reference"):
        outputs = dict(reference.stages(vision, source, pixels))
        expected = reference.VisionReference(inputs, outputs, reference.vision_rounding(source, pixels))
    verified, tokens = _compare(model, directory, vision, expected, dtype)
    quantized = {}
    if options.precision == "int8":
        model, reports, quantized[VISION] = _quantize(model, directory, vision, plan)
        passes += reports
        verified, tokens = _compare(model, directory, vision, expected, "int8")

    write = _write_split if options.split else _write_loop
    stage_outputs = [tensor_of(stage) for stage in vision.stage_names()]
    graphs, reports = write(drop_outputs(model, ()), directory, plan, stage_outputs)
    passes += reports
    # last, because nothing inside a function that a plugin may replace can be an output of the graph
    final, reports = _fuse(drop_outputs(model, stage_outputs), directory, VISION, plan)
    onnx.save(final, str(directory / file_of(VISION)))
    passes += reports
    tensorrt: dict[str, str] = {}
    for graph in (VISION, *graphs) if options.split else (VISION,):
        tensorrt |= check_tensorrt(directory, graph, options.tensorrt)

    with step("comparing the graph that runs frame by frame"):
        engine = VisionEngine(*(OnnxEngine.load(directory / file_of(graph)) for graph in graphs))
        verified.append(verify_frame_by_frame(engine, vision, tokens, expected, options.precision))
        engine.close()
    if dtype == "fp16":
        with step("computing a frame of the vision encoder in float16"):
            features = outputs[vision.features]
            rows = compare_vision_float16(directory, inputs, features, outputs[VISUAL_TOKENS], bool(vision.selected))
            remedy = "--precision fp32 (with --llm-precision fp16, if only its vision encoder does)"
            verified += verify_float16(rows, remedy)
    every = reference.save_vision(directory / "reference", expected, vision.input_name)
    stages = [StageTensor(name, VISION, tensor_of(name), every[name], expected.rounding) for name in outputs]
    return Component(passes, verified, tensorrt, quantized, stages, outputs[VISUAL_TOKENS])


def _compare(
    model: onnx.ModelProto, directory: Path, vision: Vision, expected: reference.VisionReference, precision: str
) -> tuple[list[Row], np.ndarray]:
    """Compare a graph whose stages are outputs with torch; the rows, and the graph's visual tokens."""
    with step(f"comparing the vision encoder in {precision} with torch"):
        engine = OnnxEngine.load(model.SerializeToString(), data=directory)
        flash = any(node.op_type == "Attention" for node in model.graph.node)
        compared = verify_vision(engine, vision, expected, precision, _FLASH if flash else "")
        engine.close()
    return compared


def _quantize(
    model: onnx.ModelProto, directory: Path, vision: Vision, plan: Plan
) -> tuple[onnx.ModelProto, list[PassReport], Report]:
    """The structure of the graph in int8, still with its stages as outputs; its weights replace those in `directory`."""
    stages = [output.name for output in model.graph.output][1:]
    path = directory / file_of(VISION)
    with step("quantising the vision encoder"):
        joined, reports = run_passes(with_weights(model, directory), ["join_matmuls"], graph=VISION, directory=directory)
        clips = Clips(plan.preprocessing, plan.options.calibrate)
        model, report = quantize_vision(save(joined, path), directory, stages, vision.grid, clips, plan.options.error_budget)
        model = onnx.shape_inference.infer_shapes(save(model, path))
    return model, [*reports, PassReport(VISION, "quantize int8", report.lowered, report.note())], report


def _write_loop(model: onnx.ModelProto, directory: Path, plan: Plan, stages: list[str]) -> tuple[list[str], list[PassReport]]:
    """Write the graph that runs frame by frame in a Loop; its name in a list."""
    looped, reports = run_passes(model, ["frame_loop"], graph=VISION_LOOP, directory=directory)
    onnx.save(drop_outputs(looped, stages), str(directory / file_of(VISION_LOOP)))
    return [VISION_LOOP], reports


def _write_split(model: onnx.ModelProto, directory: Path, plan: Plan, stages: list[str]) -> tuple[list[str], list[PassReport]]:
    """Write the graphs of one frame and of the features of T frames; their names."""
    looped, _ = run_passes(model, ["frame_loop"], graph=VISION_LOOP, directory=directory, required=["frame_loop"])
    encoder, compressor = split(drop_outputs(looped, stages), plan.vision.grid)
    note = f"{len(compressor.graph.node)} nodes left for the compressor"
    report = PassReport(VISION_ENCODER, "split", len(encoder.graph.node), note)
    onnx.save(encoder, str(directory / file_of(VISION_ENCODER)))
    compressor, reports = _fuse(compressor, directory, VISION_COMPRESSOR, plan)
    onnx.save(compressor, str(directory / file_of(VISION_COMPRESSOR)))
    return [VISION_ENCODER, VISION_COMPRESSOR], [report, *reports]


def _fuse(model: onnx.ModelProto, directory: Path, graph: str, plan: Plan) -> tuple[onnx.ModelProto, list[PassReport]]:
    """Put compression that the plugin knows into a function of its name; `model` must not be used afterwards."""
    return run_passes(model, ["fuse_gridpool"], graph=graph, directory=directory, compression=plan.compress.spec)


def _tensor(inputs: np.ndarray, dtype: str) -> torch.Tensor:
    tensor = torch.from_numpy(inputs)
    return tensor.half() if dtype == "fp16" and tensor.is_floating_point() else tensor
