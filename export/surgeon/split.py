"""The vision graph as two: an encoder of one frame, and a compressor of the features of T frames.

    vision.loop        pixel_values [T, 3, h, w] -> Loop(T): encoder, projector -> compress -> visual_tokens [N, D]
    vision.encoder     pixel_values [1, 3, h, w] -> features [1, H, W, C]
    vision.compressor  features [T, H, W, C] -> visual_tokens [N, D]

The cut is where the pass `frame_loop` ends its Loop, so that one place decides what is frame-wise: after the projector,
or after the encoder where compression comes before the projector. The Loop's body becomes the encoder. One frame, not a
dynamic batch: live video brings one at a time, memory is a frame's, a static shape needs no optimisation profile and may be
captured as a CUDA graph. A GPU that one frame does not fill is served by the graph over all frames instead.

Weights stay where they are: both graphs refer to the same external data as the one that they were cut from.

T frames, h, w pixels, H, W patch rows and columns, C features of a patch, N visual tokens, D hidden.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import numpy as np
import onnx
import onnx_graphsurgeon as gs

from export.surgeon.graph import graph_from_model, model_from_graph, reroute
from runtime.core.errors import ExportError

FEATURES = "features"


def split(looped: onnx.ModelProto, grid: Sequence[int]) -> tuple[onnx.ModelProto, onnx.ModelProto]:
    """(encoder, compressor) of a vision graph whose frame-wise part is a Loop. grid: (H, W).

    ExportError where the graph can't be cut at one tensor a frame.
    """
    graph = graph_from_model(looped)
    loops = [node for node in graph.nodes if node.op == "Loop"]
    if len(loops) != 1 or len(loops[0].outputs) != 1 or len(loops[0].inputs) != 2:
        found = f"{len(loops)} loops" if len(loops) != 1 else f"{len(loops[0].outputs)} tensors a frame"
        raise ExportError(
            f"the vision graph can't be split into encoder and compressor: {found}, expected one; export without --split"
        )
    (loop,), (picture,) = loops, graph.inputs
    body, (stacked,) = loop.attrs["body"], loop.outputs
    (leave,) = body.outputs[1].inputs
    *rows, channels = body.outputs[1].shape  # [H * W, C] or [H, W, C]
    if leave.op != "Squeeze" or prod(rows) != prod(grid):
        raise ExportError(
            f"a frame leaves the encoder as {prod(rows)} patches by {leave.op}, expected {grid[0]}x{grid[1]}; export without --split"
        )

    frame = next(node.outputs[0] for node in body.nodes if node.op == "Unsqueeze" and _picks_frame(node.inputs[0], picture))
    frames, *size = picture.shape
    picture.shape = [1, *size]
    reroute(frame, picture)
    features = gs.Variable(FEATURES, stacked.dtype, [1, *grid, channels])
    nodes = [*body.nodes, _reshape(leave.inputs[0], features)]
    encoder = _model(looped, graph, "vision.encoder", nodes, picture, [features])

    features = gs.Variable(FEATURES, stacked.dtype, [frames, *grid, channels])
    stacked.inputs.clear()
    nodes = [_reshape(features, stacked), *(node for node in graph.nodes if node is not loop)]
    return encoder, _model(looped, graph, "vision.compressor", nodes, features, graph.outputs)


def _picks_frame(tensor: gs.Tensor, picture: gs.Tensor) -> bool:
    return any(node.op == "Gather" and node.inputs[0] is picture for node in tensor.inputs)


def _reshape(source: gs.Tensor, result: gs.Variable) -> gs.Node:
    shape = gs.Constant(f"{FEATURES}/shape", np.array(result.shape, np.int64))
    return gs.Node("Reshape", "vision/features/Reshape", inputs=[source, shape], outputs=[result])


def _model(
    source: onnx.ModelProto, graph: gs.Graph, name: str, nodes: list[gs.Node], read: gs.Variable, outputs: list[gs.Tensor]
) -> onnx.ModelProto:
    """A model of those of the nodes that its outputs need, which may read one input; the rest is that of `source`, which is `graph`."""
    part = gs.Graph(
        nodes, [read], outputs, name, opset=graph.opset, import_domains=graph.import_domains, ir_version=graph.ir_version
    )
    part.producer_name, part.producer_version = graph.producer_name, graph.producer_version
    part.cleanup()
    for tensor in part.tensors().values():
        if isinstance(tensor, gs.Variable) and not tensor.inputs and tensor is not read:
            raise ExportError(f"{name} would read {tensor.name}, which only the other graph has; export without --split")
    return model_from_graph(part, source)
