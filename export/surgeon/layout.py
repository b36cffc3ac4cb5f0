"""Fewer moves of the same data: chains of Transpose and Reshape become one node, or none.

    Transpose(Transpose(x))                              -> Transpose(x), or x where the two undo each other
    Reshape(Reshape(x))                                  -> Reshape(x)
    Reshape(batch merged) -> Transpose(0, 2, 1) -> Reshape(batch split)  -> Transpose of the last two axes

The last is how torch's exporter spells the transposed keys of scaled_dot_product_attention; with the head transpose before
it, it becomes a single Transpose(0, 2, 3, 1) per layer. Nothing here changes a value, only where it lies.
"""

from __future__ import annotations

import numpy as np
import onnx_graphsurgeon as gs

from export.surgeon.fold import drop_no_ops, merge_equal_nodes
from export.surgeon.graph import free_name, is_output, reroute, small_value, static_shape


def run(graph: gs.Graph) -> int:
    """Rewrite until nothing matches; counts rewrites."""
    rewrites = 0
    while True:
        found = sum(_compose(graph, node) for node in graph.nodes)
        found += drop_no_ops(graph) + merge_equal_nodes(graph)
        if not found:
            return rewrites
        rewrites += found
        graph.cleanup()


def _compose(graph: gs.Graph, node: gs.Node) -> bool:
    if not node.outputs or not node.inputs or not node.inputs[0].inputs:
        return False
    before = node.i()
    if node.op == "Transpose" and before.op == "Transpose":
        return _compose_transposes(graph, node, before)
    if node.op == "Reshape" and before.op == "Reshape":
        return _compose_reshapes(node, before)
    if node.op == "Reshape" and before.op == "Transpose":
        return _unmerge_batch(graph, node, before)
    return False


def _compose_transposes(graph: gs.Graph, node: gs.Node, before: gs.Node) -> bool:
    outer, inner = node.attrs.get("perm"), before.attrs.get("perm")
    if outer is None or inner is None:
        return False
    perm = [inner[axis] for axis in outer]
    if perm == list(range(len(perm))) and not is_output(graph, node.outputs[0]):
        reroute(node.outputs[0], before.inputs[0])
        node.outputs.clear()
    else:
        node.attrs["perm"] = perm
        node.inputs[0] = before.inputs[0]
    return True


def _compose_reshapes(node: gs.Node, before: gs.Node) -> bool:
    shape = small_value(node.inputs[1])
    if shape is None or (np.any(shape == 0) and not node.attrs.get("allowzero")):
        return False  # a 0 copies a dimension of the tensor between the two
    node.inputs[0] = before.inputs[0]
    return True


def _unmerge_batch(graph: gs.Graph, node: gs.Node, transpose: gs.Node) -> bool:
    if list(transpose.attrs.get("perm", [])) != [0, 2, 1] or not transpose.inputs[0].inputs:
        return False
    merge = transpose.i()
    source, split = (static_shape(merge.inputs[0]), static_shape(node.outputs[0])) if merge.op == "Reshape" else (None, None)
    merged = static_shape(merge.outputs[0])
    if source is None or split is None or merged is None or len(source) < 3:
        return False
    if merged[1:] != source[-2:] or split != (*source[:-2], source[-1], source[-2]):
        return False
    axes = list(range(len(source)))
    node.op, node.attrs = "Transpose", {"perm": [*axes[:-2], axes[-1], axes[-2]]}
    node.inputs = [merge.inputs[0]]
    node.name = free_name(graph, node.name.rsplit("/", 1)[0] + "/Transpose")
    if not is_output(graph, node.outputs[0]):
        node.outputs[0].name = node.name
    return True
