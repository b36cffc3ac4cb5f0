"""A float16 graph with the arithmetic of a device that computes in float16, on a CPU.

ONNX Runtime's CPU provider computes float16 graphs in float32 and rounds only where a value enters or leaves: it can't show
what float16 does to a model. Here every node that computes reads its float16 inputs as float32, computes in float32, and its
output is rounded to float16 by a Cast, which ONNX Runtime honours. That is what a GPU does that runs one kernel a
node with float32 accumulators; fused kernels round less. Nodes that only move values are left alone. An Attention counts as one
kernel with float32 scores and softmax, as ONNX Runtime's on CUDA are (flash, memory-efficient and unfused); the operator's
definition and the CPU provider have them in float16.

Weights stay float16 in memory, and are widened one at a time while the graph runs.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator

import onnx
import onnx.inliner
import onnx.shape_inference
import onnx.utils
from onnx import TensorProto, helper

from runtime.tools.liveness import bodies

_FLOAT16 = TensorProto.FLOAT16
# fmt: off
_MOVES = {
    "Cast", "Concat", "Constant", "ConstantOfShape", "Expand", "Flatten", "Gather", "GatherElements", "GatherND", "Identity", "If", "Loop",
    "Pad", "Reshape", "ScatterElements", "ScatterND", "Shape", "Size", "Slice", "Split", "Squeeze", "TensorScatter", "Tile", "Transpose",
    "Unsqueeze", "Where",
}
# fmt: on


def rounded(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy of the graph in which every float16 result is rounded. Weights may be external."""
    if model.functions:
        model = onnx.inliner.inline_local_functions(model)
    types = _types(model)
    result = copy.deepcopy(model)
    for graph in _graphs(result.graph):
        _round(graph, types)
    return result


def frame_and_clip(model: onnx.ModelProto) -> tuple[onnx.ModelProto, onnx.ModelProto] | None:
    """The frame-wise part of a graph with one Loop over frames, made to stop after the first, and what follows it.

    The second graph's input is what leaves the Loop. None for a graph that has no such Loop.
    """
    loops = [node for node in model.graph.node if node.op_type == "Loop"]
    if len(loops) != 1 or len(loops[0].output) != 1:
        return None
    (features,) = loops[0].output
    inferred = onnx.shape_inference.infer_shapes(model)
    clip = onnx.utils.Extractor(inferred).extract_model([features], [output.name for output in model.graph.output])
    frame = copy.deepcopy(model)
    del frame.graph.node[list(model.graph.node).index(loops[0]) + 1 :]
    count = next(tensor for tensor in frame.graph.initializer if tensor.name == loops[0].input[0])
    count.CopyFrom(helper.make_tensor(count.name, TensorProto.INT64, [], [1]))
    del frame.graph.output[:]
    frame.graph.output.append(helper.make_tensor_value_info(features, clip.graph.input[0].type.tensor_type.elem_type, None))
    return frame, clip


def _round(graph: onnx.GraphProto, types: dict[str, int]) -> None:
    widened: dict[str, str] = {}
    made = onnx.GraphProto().node  # which copies what is appended

    def cast(source: str, target: str, to: int) -> None:
        made.append(helper.make_node("Cast", [source], [target], f"{target}/Cast", to=to))

    for node in graph.node:
        if node.op_type in _MOVES:
            made.append(node)
            continue
        for index, name in enumerate(node.input):
            if types.get(name) == _FLOAT16:
                if name not in widened:
                    widened[name] = f"{name}/float32"
                    cast(name, widened[name], TensorProto.FLOAT)
                node.input[index] = widened[name]
        rounds = [(index, name) for index, name in enumerate(node.output) if types.get(name) == _FLOAT16]
        for index, name in rounds:
            node.output[index] = f"{name}/exact"
        made.append(node)
        for _, name in rounds:
            cast(f"{name}/exact", name, _FLOAT16)
    del graph.node[:]
    graph.node.extend(made)


def _types(model: onnx.ModelProto) -> dict[str, int]:
    """Element types of all tensors."""
    inferred = onnx.shape_inference.infer_shapes(model)
    types: dict[str, int] = {}
    for graph in _graphs(inferred.graph):
        types |= {tensor.name: tensor.data_type for tensor in graph.initializer}
        types |= {value.name: value.type.tensor_type.elem_type for value in (*graph.input, *graph.value_info, *graph.output)}
    return types


def _graphs(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    """A graph and the bodies of its control flow."""
    yield graph
    for node in graph.node:
        for body in bodies(node):
            yield from _graphs(body)
