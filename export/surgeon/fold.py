"""Constant folding and dead ends: what the exporter's own optimizer leaves.

Constant nodes become initializers; whatever hangs on constants alone and stays small is computed now, chains of Shape over
static shapes included; nodes that change nothing (Identity, Cast to the type it has, Reshape, Expand, Transpose, Slice to
the same) are taken out; equal small constants and equal nodes are merged; what nothing reads is dropped.

Nothing larger than SMALL is folded: a transposed or converted copy of a weight beside the weight would double its memory.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable

import numpy as np
import onnx_graphsurgeon as gs

from export.surgeon.graph import SMALL, is_output, reroute, small_value, static_shape

_RANDOM = {"RandomNormal", "RandomUniform", "RandomNormalLike", "RandomUniformLike", "Multinomial", "Bernoulli", "Dropout"}


def run(graph: gs.Graph) -> int:
    """Fold until nothing changes; counts nodes and duplicate constants that are gone."""
    before = len(graph.nodes)
    merged = 0
    while True:
        start, rewired = len(graph.nodes), 0
        _fold_constants(graph)
        rewired += drop_no_ops(graph)
        rewired += merge_equal_nodes(graph)
        rewired += (doubles := _merge_equal_constants(graph))
        merged += doubles
        graph.cleanup()
        if not rewired and len(graph.nodes) == start:
            break
    return before - len(graph.nodes) + merged


def check(graph: gs.Graph) -> str:
    """What is left, most frequent first."""
    counts = Counter(node.op for node in graph.nodes).most_common()
    return f"{len(graph.nodes)} nodes left: " + ", ".join(f"{count} {op}" for op, count in counts[:6])


def drop_no_ops(graph: gs.Graph) -> int:
    """Take out nodes that pass their first input on unchanged; counts them."""
    dropped = 0
    for node in graph.nodes:
        if not (node.inputs and node.outputs and _changes_nothing(node)):
            continue
        source, result = node.inputs[0], node.outputs[0]
        if is_output(graph, result):
            # the output's name must stay: its value is made by the producer of `source`, if that is free to be renamed
            if len(source.inputs) != 1 or is_output(graph, source) or isinstance(source, gs.Constant):
                continue
            producer = source.inputs[0]
            slot = next(index for index, tensor in enumerate(producer.outputs) if tensor is source)
            node.outputs.clear()
            producer.outputs[slot] = result
            reroute(source, result)
            node.inputs.clear()
        else:
            reroute(result, source)
            node.outputs.clear()
        dropped += 1
    return dropped


def merge_equal_nodes(graph: gs.Graph) -> int:
    """Two nodes of one kind that read the same tensors make the same value: later readers take the first one's."""
    first: dict[Hashable, gs.Node] = {}
    merged = 0
    for node in graph.nodes:
        key = _key(node)
        if key is None or any(is_output(graph, tensor) for tensor in node.outputs):
            continue
        kept = first.setdefault(key, node)
        if kept is node or len(kept.outputs) != len(node.outputs) or not node.outputs:
            continue
        for old, new in zip(list(node.outputs), kept.outputs, strict=True):
            reroute(old, new)
        node.outputs.clear()
        merged += 1
    return merged


def _fold_constants(graph: gs.Graph) -> None:
    foldable = any(
        node.op in ("Constant", "Shape") or (node.inputs and all(small_value(tensor) is not None for tensor in node.inputs))
        for node in graph.nodes
    )
    if foldable:
        graph.fold_constants(size_threshold=SMALL, should_exclude_node=_must_stay, recurse_functions=False, flatten_subgraphs=False)


def _must_stay(node: gs.Node) -> bool:
    return node.op in _RANDOM or any(isinstance(tensor, gs.Constant) and small_value(tensor) is None for tensor in node.inputs)


def _changes_nothing(node: gs.Node) -> bool:
    source, result = node.inputs[0], node.outputs[0]
    shape = static_shape(source)
    if node.op == "Identity":
        return True
    if node.op == "Cast":
        return source.dtype is not None and source.dtype == result.dtype
    if node.op in ("Reshape", "Expand", "Slice"):
        whole = shape is not None and shape == static_shape(result)
        return whole and (node.op != "Slice" or not _reverses(node))
    if node.op == "Transpose":
        perm = node.attrs.get("perm")
        return perm is not None and list(perm) == list(range(len(perm)))
    return False


def _reverses(node: gs.Node) -> bool:
    if len(node.inputs) < 5:
        return False
    steps = small_value(node.inputs[4])
    return steps is None or bool(np.any(steps != 1))


def _merge_equal_constants(graph: gs.Graph) -> int:
    first: dict[Hashable, gs.Tensor] = {}
    merged = 0
    for tensor in list(graph.tensors().values()):
        value = small_value(tensor)
        if value is None or is_output(graph, tensor):
            continue
        kept = first.setdefault((value.dtype.name, value.shape, value.tobytes()), tensor)
        if kept is not tensor:
            reroute(tensor, kept)
            merged += 1
    return merged


def _key(node: gs.Node) -> Hashable:
    if node.op in _RANDOM or node.domain not in (None, "", "ai.onnx"):
        return None
    attrs = []
    for name, value in sorted(node.attrs.items()):
        if not isinstance(value, (int, float, str, list)):
            return None
        attrs.append((name, tuple(value) if isinstance(value, list) else value))
    return (node.op, tuple(attrs), tuple(id(tensor) if not tensor.is_empty() else None for tensor in node.inputs))
