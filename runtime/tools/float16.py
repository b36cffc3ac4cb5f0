"""A float16 graph with the arithmetic of a device that computes in float16, on a CPU.

ONNX Runtime's CPU provider computes float16 graphs in float32 and rounds only where a value enters or leaves: it can't show
what float16 does to a model. Here every node that computes reads its float16 inputs as float32, computes in float32, and its
output is rounded to float16 by a Cast, which ONNX Runtime honours. That is what a GPU does that runs one kernel a
node with float32 accumulators; fused kernels round less. Nodes that only move values are left alone, and an Attention in
float16 is replaced by the function that defines it, because its scores are then float16 too.

Weights stay float16 in memory, and are widened one at a time while the graph runs.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import onnx
import onnx.inliner
import onnx.shape_inference
from onnx import TensorProto, helper

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
    if any(node.op_type == "Attention" and types.get(node.input[0]) == _FLOAT16 for node in _nodes(model.graph)):
        model = onnx.inliner.inline_selected_functions(model, [("", "Attention")], inline_schema_functions=True)
        types = _types(model)
    result = onnx.ModelProto()
    result.CopyFrom(model)
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
    (loop,) = loops
    inferred = onnx.shape_inference.infer_shapes(model)
    (features,) = (value for value in inferred.graph.value_info if value.name == loop.output[0])
    frame, clip = onnx.ModelProto(), onnx.ModelProto()
    frame.CopyFrom(model)
    count = next(tensor for tensor in frame.graph.initializer if tensor.name == loop.input[0])
    count.CopyFrom(helper.make_tensor(count.name, TensorProto.INT64, [], [1]))
    _replace_nodes(frame.graph, _needed(model.graph, list(loop.output)))
    del frame.graph.output[:]
    frame.graph.output.append(helper.make_tensor_value_info(features.name, features.type.tensor_type.elem_type, None))
    clip.CopyFrom(model)
    _replace_nodes(clip.graph, _needed(model.graph, [output.name for output in model.graph.output], loop))
    del clip.graph.input[:]
    clip.graph.input.append(features)
    return frame, clip


def _round(graph: onnx.GraphProto, types: dict[str, int]) -> None:
    widened: dict[str, str] = {}
    nodes: list[onnx.NodeProto] = []
    for node in graph.node:
        if node.op_type in _MOVES:
            nodes.append(node)
            continue
        for index, name in enumerate(node.input):
            if types.get(name) == _FLOAT16:
                if name not in widened:
                    widened[name] = f"{name}/float32"
                    nodes.append(_cast(name, widened[name], TensorProto.FLOAT))
                node.input[index] = widened[name]
        nodes.append(node)
        for index, name in enumerate(node.output):
            if types.get(name) == _FLOAT16:
                node.output[index] = f"{name}/exact"
                nodes.append(_cast(node.output[index], name, _FLOAT16))
    _replace_nodes(graph, nodes)


def _cast(source: str, target: str, to: int) -> onnx.NodeProto:
    return helper.make_node("Cast", [source], [target], f"{target}/Cast", to=to)


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
        for body in _bodies(node):
            yield from _graphs(body)


def _bodies(node: onnx.NodeProto) -> Iterator[onnx.GraphProto]:
    return (attribute.g for attribute in node.attribute if attribute.type == onnx.AttributeProto.GRAPH)


def _nodes(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    return (node for part in _graphs(graph) for node in part.node)


def _replace_nodes(graph: onnx.GraphProto, nodes: Iterable[onnx.NodeProto]) -> None:
    copies = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]  # `del` empties what it deletes
    del graph.node[:]
    graph.node.extend(copies)


def _needed(graph: onnx.GraphProto, outputs: list[str], without: onnx.NodeProto | None = None) -> list[onnx.NodeProto]:
    """The nodes that `outputs` need, in the graph's order; `without` and what only it needs are left out."""
    needed, kept = set(outputs), []
    for node in reversed(graph.node):
        if node is not without and needed & set(node.output):
            kept.append(node)
            needed |= set(node.input) | {name for body in _bodies(node) for inner in _nodes(body) for name in inner.input}
    return kept[::-1]
