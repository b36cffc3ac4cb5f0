"""The decoder graph for one conversation -> the same graph for a ragged batch of B: what a server decodes with.

    inputs_embeds [1, S, D], position_ids [1, S], past [1, K, M, d], attention_mask [1, P]   ->   [B, …] each, logits [B, 1, V]

Nothing in the decoder mixes entries of the first axis, and its mask compares cache rows with each row's positions, so conversations of
different lengths fit one batch as they are. Only the shapes are written for a batch of one: a Reshape that begins with 1 becomes one
that copies the first dimension (ONNX's 0), and an Expand to 1 keeps B by broadcasting. The pass runs on request, last, on a graph
whose inputs all begin with a 1; weights are shared with it.
"""

from __future__ import annotations

import numpy as np
import onnx_graphsurgeon as gs

from export.surgeon.context import Context
from export.surgeon.graph import free_name, insert_after, small_value
from runtime.bundle import BATCH


def run(graph: gs.Graph, context: Context) -> int:
    """Make the first axis of every input and output `B`; counts the Reshapes rewritten, 0 where an input has another batch."""
    boundary = {id(tensor): tensor for tensor in (*graph.inputs, *graph.outputs)}
    shapes = {key: tensor.shape for key, tensor in boundary.items()}
    if not all(shape and shape[0] == 1 for shape in shapes.values()):
        return 0
    shaped: dict[int, gs.Tensor] = {}  # id of a shape that begins with 1: the one that begins with 0
    rewrites = sum(_copy_first(graph, node, shaped) for node in list(graph.nodes) if node.op == "Reshape")
    for tensor in graph.tensors().values():
        if isinstance(tensor, gs.Variable):
            tensor.shape = None  # what was inferred for a batch of one
    for key, tensor in boundary.items():
        tensor.shape = [BATCH, *shapes[key][1:]]
    graph.cleanup()
    return rewrites


def check(graph: gs.Graph, context: Context) -> str:
    return f"the first axis of all {len(graph.inputs)} inputs is {graph.inputs[0].shape[0]}"


def _copy_first(graph: gs.Graph, node: gs.Node, shaped: dict[int, gs.Tensor]) -> bool:
    shape = node.inputs[1]
    if id(shape) not in shaped:
        copied = _copying(graph, shape)
        if copied is None:
            return False
        shaped[id(shape)] = copied
    node.inputs[1] = shaped[id(shape)]
    node.attrs.pop("allowzero", None)
    return True


def _copying(graph: gs.Graph, shape: gs.Tensor) -> gs.Tensor | None:
    """`shape` with its leading 1 replaced by 0; None where it leads with something else."""
    values = small_value(shape)
    if values is not None:
        if len(values) < 2 or values[0] != 1:
            return None
        return gs.Constant(free_name(graph, f"{shape.name}/batch"), np.concatenate([[0], values[1:]]).astype(np.int64))
    concat = shape.inputs[0] if shape.inputs and shape.inputs[0].op == "Concat" else None
    first = small_value(concat.inputs[0]) if concat else None
    if concat is None or first is None or first.shape != (1,) or first[0] != 1:
        return None
    zero = gs.Constant(free_name(graph, f"{shape.name}/first"), np.zeros(1, np.int64))
    result = gs.Variable(free_name(graph, f"{shape.name}/batch"), np.int64)
    new = gs.Node("Concat", result.name, dict(concat.attrs), [zero, *concat.inputs[1:]], [result])
    insert_after(graph, shape, new)
    return result
