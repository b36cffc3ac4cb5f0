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

from export.surgeon.graph import Context, free_name, insert_after, small_value
from runtime.bundle import BATCH


def run(graph: gs.Graph, context: Context) -> int:
    """Make the first axis of every input and output `B`; counts the Reshapes rewritten, 0 where an input has another batch."""
    boundary = [(tensor, tensor.shape) for tensor in (*graph.inputs, *graph.outputs)]
    if not all(shape and shape[0] == 1 for _, shape in boundary):
        return 0
    copying: dict[str, gs.Tensor | None] = {}  # name of a shape: the same that copies the first dimension
    rewrites = 0
    for node in [node for node in graph.nodes if node.op == "Reshape"]:
        shape = node.inputs[1]
        if shape.name not in copying:
            copying[shape.name] = _copying(graph, shape)
        if copying[shape.name] is not None:
            node.inputs[1] = copying[shape.name]
            node.attrs.pop("allowzero", None)
            rewrites += 1
    for tensor in graph.tensors().values():
        if isinstance(tensor, gs.Variable):
            tensor.shape = None  # what was inferred for a batch of one
    for tensor, shape in boundary:
        tensor.shape = [BATCH, *shape[1:]]
    graph.cleanup()
    return rewrites


def check(graph: gs.Graph, context: Context) -> str:
    return f"the first axis of all {len(graph.inputs)} inputs is {graph.inputs[0].shape[0]}"


def _copying(graph: gs.Graph, shape: gs.Tensor) -> gs.Tensor | None:
    """`shape` with its leading 1 replaced by 0; None where it leads with something else."""
    values = small_value(shape)
    if values is not None:
        if len(values) < 2 or values[0] != 1:
            return None
        return gs.Constant(free_name(graph, f"{shape.name}/batch"), np.concatenate([[0], values[1:]]).astype(np.int64))
    if not shape.inputs or shape.inputs[0].op != "Concat":
        return None
    (concat,) = shape.inputs
    first = small_value(concat.inputs[0])
    if first is None or first.tolist() != [1]:
        return None
    zero = gs.Constant(free_name(graph, f"{shape.name}/first"), np.zeros(1, np.int64))
    result = gs.Variable(free_name(graph, f"{shape.name}/batch"), np.int64)
    new = gs.Node("Concat", result.name, dict(concat.attrs), [zero, *concat.inputs[1:]], [result])
    insert_after(graph, shape, new)
    return result
