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

import onnx
from onnx import helper

from runtime.core.errors import ExportError

FEATURES = "features"


def split(looped: onnx.ModelProto, grid: Sequence[int]) -> tuple[onnx.ModelProto, onnx.ModelProto]:
    """(encoder, compressor) of a vision graph whose frame-wise part is a Loop. grid: (H, W).

    ExportError where the graph can't be cut at one tensor a frame.
    """
    loops = [node for node in looped.graph.node if node.op_type == "Loop"]
    if len(loops) != 1 or len(loops[0].output) != 1 or len(loops[0].input) != 2:
        found = f"{len(loops)} loops" if len(loops) != 1 else f"{len(loops[0].output)} tensors a frame"
        raise ExportError(
            f"the vision graph can't be split into encoder and compressor: {found}, expected one; export without --split"
        )
    (loop,) = loops
    (picture,) = looped.graph.input
    body = next(attribute.g for attribute in loop.attribute if attribute.name == "body")
    frames = picture.type.tensor_type.shape.dim[0].dim_value
    squeeze = next(node for node in body.node if body.output[1].name in node.output)
    dtype = body.output[1].type.tensor_type.elem_type
    *rows, channels = (dim.dim_value for dim in body.output[1].type.tensor_type.shape.dim)  # [H * W, C] or [H, W, C]
    patches = prod(rows)
    if squeeze.op_type != "Squeeze" or patches != grid[0] * grid[1]:
        raise ExportError(
            f"a frame leaves the encoder as {patches} patches by {squeeze.op_type}, expected {grid[0]}x{grid[1]}; export without --split"
        )

    first = next(node for node in body.node if node.op_type == "Unsqueeze" and node.input[0] in _picked(body, picture.name))
    nodes = [node for node in body.node if node not in (first, squeeze) and not _is_bookkeeping(node, body, picture.name)]
    pixels = _one_frame(picture)
    for node in nodes:
        _rename_inputs(node, first.output[0], pixels.name)
    shape = helper.make_tensor(f"{FEATURES}/shape", onnx.TensorProto.INT64, [4], [1, *grid, channels])
    nodes.append(helper.make_node("Reshape", [squeeze.input[0], shape.name], [FEATURES], "vision/features/Reshape"))
    features = helper.make_tensor_value_info(FEATURES, dtype, [1, *grid, channels])
    encoder = _model(looped, "vision.encoder", nodes, [pixels], [features], [shape], body.value_info)

    shape = helper.make_tensor(f"{FEATURES}/shape", onnx.TensorProto.INT64, [len(rows) + 2], [frames, *rows, channels])
    after = [node for node in looped.graph.node if node is not loop]
    after.insert(0, helper.make_node("Reshape", [FEATURES, shape.name], [loop.output[0]], "vision/features/Reshape"))
    features = helper.make_tensor_value_info(FEATURES, dtype, [frames, *grid, channels])
    compressor = _model(looped, "vision.compressor", after, [features], list(looped.graph.output), [shape], looped.graph.value_info)
    return encoder, compressor


def _picked(body: onnx.GraphProto, source: str) -> set[str]:
    return {name for node in body.node if node.op_type == "Gather" and node.input[0] == source for name in node.output}


def _is_bookkeeping(node: onnx.NodeProto, body: onnx.GraphProto, source: str) -> bool:
    """The loop condition, and the selection of the frame from the clip."""
    return body.output[0].name in node.output or bool(_picked(body, source) & set(node.output))


def _one_frame(picture: onnx.ValueInfoProto) -> onnx.ValueInfoProto:
    one = onnx.ValueInfoProto()
    one.CopyFrom(picture)
    one.type.tensor_type.shape.dim[0].dim_value = 1
    return one


def _rename_inputs(node: onnx.NodeProto, old: str, new: str) -> None:
    for index, name in enumerate(node.input):
        if name == old:
            node.input[index] = new


def _bodies(model: onnx.ModelProto) -> list[onnx.GraphProto]:
    return [attribute.g for node in model.graph.node for attribute in node.attribute if attribute.name == "body"]


def _model(
    source: onnx.ModelProto,
    name: str,
    nodes: Sequence[onnx.NodeProto],
    inputs: Sequence[onnx.ValueInfoProto],
    outputs: Sequence[onnx.ValueInfoProto],
    more: Sequence[onnx.TensorProto],
    known: Sequence[onnx.ValueInfoProto],
) -> onnx.ModelProto:
    """A model of `nodes` with the initializers that they read; metadata and opsets are those of `source`."""
    read = {tensor for node in nodes for tensor in node.input}
    made = {tensor for node in nodes for tensor in node.output} - {output.name for output in outputs}
    stored = [tensor for graph in (source.graph, *_bodies(source)) for tensor in graph.initializer if tensor.name in read]
    missing = read - made - {tensor.name for tensor in [*stored, *inputs, *more]} - {""}
    if missing:
        raise ExportError(f"{name} would read {sorted(missing)[0]}, which only the other graph has; export without --split")
    model = onnx.ModelProto()
    model.CopyFrom(source)
    graph = helper.make_graph(
        nodes,
        name,
        inputs,
        outputs,
        [*stored, *more],
        value_info=[value for value in known if value.name in made],
    )
    model.graph.CopyFrom(graph)
    return model
