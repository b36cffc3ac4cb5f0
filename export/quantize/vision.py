"""int8 weights and activations for the frame-wise part of the vision graph: encoder, and projector where it stands before compression.

Ranges and errors are measured frame by frame on the encoder alone (export/surgeon/split.py cuts it off), since the graph over a clip
needs T times the memory; names are the same in both, so what is found there applies to the graph over all frames. The products
of attention scores stay in float: they are a tenth of the work, and softmax needs them exact.

T frames, h, w pixels, H, W patch rows and columns, C features of a patch.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx

from export.quantize.clips import Clips
from export.quantize.equalize import find_equalization
from export.quantize.layers import find_layers, layer_errors, meet_budget, save, with_outputs, with_weights
from export.quantize.qdq import int8_rounded, w8a8
from export.quantize.ranges import activation_rounded, thresholds
from export.quantize.report import LayerReport, Report
from export.surgeon import run_passes
from export.surgeon.graph import drop_outputs
from export.surgeon.split import split
from runtime.bundle import VISION_LOOP
from runtime.core.errors import ExportError
from runtime.engine.onnx import OnnxEngine
from runtime.tools.compare import relative_error

BUDGET = 0.05  # relative error of the features
CALIBRATION_FRAMES = 24
EQUALIZING_FRAMES = 6  # of those: a channel is loud in all of them
HELD_OUT_FRAMES = 8


def quantize_vision(
    model: onnx.ModelProto, directory: Path, stages: Sequence[str], grid: Sequence[int], clips: Clips, budget: float | None
) -> tuple[onnx.ModelProto, Report]:
    """(the graph over all frames with Q/DQ and its weights in memory, the report).

    model: with its weights in `directory` or inside; stages: those of its outputs that were compared with torch; grid: (H, W);
    budget: BUDGET where None. ExportError where the clips are too few.
    """
    budget = BUDGET if budget is None else budget
    looped, _ = run_passes(drop_outputs(model, stages), ["frame_loop"], graph=VISION_LOOP, required=["frame_loop"])
    encoder, _ = split(looped, grid)
    layers = find_layers(encoder)
    frames = clips.frames(CALIBRATION_FRAMES + HELD_OUT_FRAMES)
    seen, held_out = frames[:-HELD_OUT_FRAMES], frames[-HELD_OUT_FRAMES:]
    if len(seen) < 2:
        raise ExportError(f"{clips.source} give {len(frames)} frames, expected at least {HELD_OUT_FRAMES + 2}; add clips")

    wanted = [layer.input for layer in layers]
    engine = OnnxEngine.load(with_outputs(encoder, wanted).SerializeToString(), data=directory)
    equal = find_equalization(encoder, directory, layers, _runs(engine, seen[:: -(-len(seen) // EQUALIZING_FRAMES)]))
    limits = thresholds({name: out[name] / equal.of(name) for name in wanted} for out in _runs(engine, seen))
    exact: list[np.ndarray] = []
    inputs: dict[str, np.ndarray] = {}
    for out in _runs(engine, held_out):
        exact.append(out["features"])
        inputs = inputs or {name: out[name] for name in wanted}
    engine.close()

    errors = layer_errors(
        encoder,
        directory,
        layers,
        inputs,
        lambda layer, x: activation_rounded(x / equal.of(layer.input), limits[layer.input]),
        lambda layer, weight: int8_rounded(weight * equal.of(layer.input)[:, None]),
    )
    del engine, inputs

    def quantized(graph: onnx.ModelProto, chosen: Mapping[str, str]) -> onnx.ModelProto:
        nodes = {node for node, precision in chosen.items() if precision == "int8"}
        return w8a8(equal.fold(with_weights(graph, directory)), limits, nodes)

    def measure(chosen: Mapping[str, str]) -> float:
        features = list(_features(quantized(encoder, chosen), held_out))
        return relative_error(np.concatenate(features), np.concatenate(exact))

    chosen, error = meet_budget({layer.node: "int8" for layer in layers}, ("int8", "fp32"), errors, measure, budget)
    rows = [LayerReport(layer.node, chosen[layer.node], errors[layer.node], layer.input in equal.inputs) for layer in layers]
    return quantized(model, chosen), Report("int8", error, budget, clips.source, rows)


def _features(encoder: onnx.ModelProto, frames: np.ndarray) -> Iterator[np.ndarray]:
    """The features of each frame; the encoder, whose weights are in memory, must not be used afterwards."""
    with tempfile.TemporaryDirectory() as scratch:
        save(encoder, Path(scratch) / "encoder.onnx")
        engine = OnnxEngine.load(Path(scratch) / "encoder.onnx")
        yield from (out["features"] for out in _runs(engine, frames))
        engine.close()


def _runs(engine: OnnxEngine, frames: np.ndarray) -> Iterator[dict[str, np.ndarray]]:
    (spec,) = engine.inputs
    for frame in frames:
        yield engine.run({spec.name: frame[None]})
