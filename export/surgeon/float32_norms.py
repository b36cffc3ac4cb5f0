"""Norms and softmax of compression, and spelled-out norms anywhere, in float32 inside a float16 graph.

3,584 squared float16 activations overflow (65504 / 3584 is an RMS of 4.3), and a softmax over norms of that size keeps two
digits. So in the `compress` scope every reduction, softmax and power runs in float32, elsewhere every ReduceMean,
ReduceSum, ReduceL2 and Pow: Casts are put around the *island* they form with the operators between and before them (the
square that feeds a sum, the epsilon and root that follow), because a sum that is cast back before its root would overflow
all the same. An island ends where its value meets an activation from outside; only there it is float16 again.

LayerNormalization and RMSNormalization take their statistics in float32 by their own `stash_type`, which is set if it is
not; the attention softmax of encoder and LLM stays as it was traced, in float32 (export/decoder.py, export/families/siglip.py).
"""

from __future__ import annotations

import numpy as np
import onnx
import onnx_graphsurgeon as gs

from export.surgeon.graph import free_name, insert_after, insert_before, is_output, small_value, unique
from runtime.core.errors import ExportError

NORMS = {"ReduceL1", "ReduceL2", "ReduceMean", "ReduceSum", "ReduceSumSquare", "Pow"}
REDUCTIONS = NORMS | {"ReduceLogSum", "ReduceLogSumExp", "ReduceProd", "Softmax", "LogSoftmax", "Exp"}
_STASHED = {"LayerNormalization", "RMSNormalization"}
_POINTWISE = {"Abs", "Add", "Clip", "Div", "Log", "Max", "Min", "Mul", "Neg", "Pow", "Reciprocal", "Sqrt", "Sub", "Exp", "Sigmoid"}
_MOVES = {"Reshape", "Squeeze", "Unsqueeze", "Transpose", "Slice", "Expand", "Flatten", "Identity"}
_HALF, _FLOAT = np.dtype(np.float16), np.dtype(np.float32)


def run(graph: gs.Graph) -> int:
    """Move to float32; counts nodes that compute in another type than before, the Casts not among them."""
    stashes = 0
    for node in graph.nodes:
        if node.op in _STASHED and node.attrs.get("stash_type", 1) != 1:
            node.attrs["stash_type"] = 1
            stashes += 1
    return stashes + _to_float32(graph, _island(graph))


def check(graph: gs.Graph) -> str:
    """Nothing in `compress` reduces in float16; ExportError where it does, or where a type is not known."""
    found = 0
    for node in graph.nodes:
        if not _must_be_float32(node):
            continue
        dtype = node.inputs[0].dtype
        if dtype is None:
            raise ExportError(
                f"{graph.name}: the type of {node.inputs[0].name} is not known, so {node.name} may reduce in float16; run shape inference before the passes"
            )
        if dtype == _HALF:
            raise ExportError(f"{graph.name}: {node.name} reduces in float16; expected float32")
        found += dtype == _FLOAT
    return f"{found} norms and softmaxes in float32"


def _must_be_float32(node: gs.Node) -> bool:
    return node.op in (REDUCTIONS if node.name.startswith("compress/") else NORMS)


def _is_half(tensor: gs.Tensor) -> bool:
    return tensor.dtype is not None and not isinstance(tensor.dtype, int) and tensor.dtype == _HALF


def _island(graph: gs.Graph) -> dict[int, gs.Node]:
    """The reductions in float16 with what must go with them, by identity."""
    island = {id(node): node for node in graph.nodes if _must_be_float32(node) and _is_half(node.inputs[0])}
    queue = list(island.values())
    while queue:
        node = queue.pop()
        grown = [before for tensor in node.inputs for before in tensor.inputs if _feeds_a_square(before, node)]
        grown += [after for tensor in node.outputs for after in tensor.outputs if _continues(after, island)]
        for other in grown:
            if id(other) not in island:
                island[id(other)] = other
                queue.append(other)
    return island


def _feeds_a_square(node: gs.Node, reduction: gs.Node) -> bool:
    """x * x, |x| or exp(x) before a sum of it: the product itself would overflow."""
    if reduction.op not in REDUCTIONS or not _is_half(node.outputs[0]):
        return False
    return node.op in ("Exp", "Pow") or (node.op == "Mul" and node.inputs[0] is node.inputs[1])


def _continues(node: gs.Node, island: dict[int, gs.Node]) -> bool:
    """Whether a reader of the island's value stays in it: it computes from that value and constants alone."""
    if node.op not in _POINTWISE | _MOVES or not node.outputs or not _is_half(node.outputs[0]):
        return False
    data = node.inputs[:1] if node.op in _MOVES else [tensor for tensor in node.inputs if not tensor.is_empty()]
    inside = [any(id(producer) in island for producer in tensor.inputs) for tensor in data]
    return any(inside) and all(known or small_value(tensor) is not None for known, tensor in zip(inside, data, strict=True))


def _to_float32(graph: gs.Graph, island: dict[int, gs.Node]) -> int:
    up: dict[int, gs.Tensor] = {}
    nodes = [node for node in graph.nodes if id(node) in island]
    for node in nodes:
        for index, tensor in enumerate(node.inputs):
            if _is_half(tensor) and not any(id(producer) in island for producer in tensor.inputs):
                node.inputs[index] = _widened(graph, node, tensor, up)
    for node in nodes:
        for tensor in list(node.outputs):
            if not _is_half(tensor):
                continue
            outside = [reader for reader in unique(tensor.outputs) if id(reader) not in island]
            if is_output(graph, tensor):
                wide = gs.Variable(free_name(graph, node.name), _FLOAT, tensor.shape)
                node.outputs[next(i for i, other in enumerate(node.outputs) if other is tensor)] = wide
                for reader in (reader for reader in unique(tensor.outputs) if id(reader) in island):
                    _swap(reader, tensor, wide)
                insert_after(graph, wide, _cast(graph, wide, tensor))
            else:
                tensor.dtype = _FLOAT
                if outside:
                    half = gs.Variable("", _HALF, tensor.shape)
                    cast = _cast(graph, tensor, half)
                    for reader in outside:
                        _swap(reader, tensor, half)
                    insert_after(graph, tensor, cast)
    return len(nodes)


def _widened(graph: gs.Graph, node: gs.Node, tensor: gs.Tensor, done: dict[int, gs.Tensor]) -> gs.Tensor:
    if id(tensor) not in done:
        value = small_value(tensor)
        if value is not None:
            done[id(tensor)] = gs.Constant(free_name(graph, f"{tensor.name}/float32"), value.astype(np.float32))
        else:
            wide = gs.Variable("", _FLOAT, tensor.shape)
            insert_before(graph, node, _cast(graph, tensor, wide))
            done[id(tensor)] = wide
    return done[id(tensor)]


def _cast(graph: gs.Graph, source: gs.Tensor, target: gs.Tensor) -> gs.Node:
    """A Cast called after the scope of the node whose value it takes, with an output of its own name unless that is a graph's."""
    scope = source.inputs[0].name.rpartition("/")[0] if source.inputs else ""
    name = free_name(graph, f"{scope}/Cast" if scope else f"{source.name}/Cast")
    if not is_output(graph, target):
        target.name = name
    to = onnx.TensorProto.FLOAT if target.dtype == _FLOAT else onnx.TensorProto.FLOAT16
    return gs.Node("Cast", name, {"to": int(to)}, [source], [target])


def _swap(reader: gs.Node, old: gs.Tensor, new: gs.Tensor) -> None:
    for index, tensor in enumerate(reader.inputs):
        if tensor is old:
            reader.inputs[index] = new
