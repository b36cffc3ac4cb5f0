"""int64 arithmetic -> int32 where that is safe: positions, masks and index tables; the types of inputs and outputs stay.

TensorRT has 64-bit kernels for few operators and fuses none of them; positions, frame and token indices fit in 32 bits.
A POLYMORPHIC node that computes in int64 is narrowed when all readers of its results accept int32: another narrowed node, an index
input, a Cast. What ONNX requires to be int64 (the shape input of Reshape, Expand, Slice, …, graph outputs) keeps the nodes before it
as they are. Constants are converted if their values fit; an int64 value from elsewhere (a graph input, Shape, TopK's indices) gets
one Cast, and a Cast to int64 becomes one to int32. A connected group is narrowed only if it needs fewer new Casts than it has nodes.

Arithmetic must not overflow: Mul and the like are narrowed on graph inputs and shapes, which count positions.
"""

from __future__ import annotations

from collections import defaultdict

import numpy as np
import onnx
import onnx_graphsurgeon as gs

from export.surgeon.context import Context
from export.surgeon.graph import free_name, insert_after, is_output, small_value, unique

_ALL = None
# Operator -> its inputs of the common type T (None: all of them). Both runtimes have them in int32.
POLYMORPHIC: dict[str, tuple[int, ...] | None] = {
    **dict.fromkeys(("Add", "Sub", "Mul", "Div", "Min", "Max", "Mod", "Neg", "Abs"), _ALL),
    **dict.fromkeys(("Equal", "Less", "LessOrEqual", "Greater", "GreaterOrEqual", "Range", "Concat"), _ALL),
    **dict.fromkeys(("Identity", "Transpose", "Flatten"), _ALL),
    **dict.fromkeys(("Reshape", "Expand", "Slice", "Squeeze", "Unsqueeze", "Tile", "Split"), (0,)),
    **dict.fromkeys(("Gather", "GatherElements", "ReduceMax", "ReduceMin", "ReduceSum", "CumSum"), (0,)),
    "Where": (1, 2),
}
INDEX_INPUT = {"Gather": 1, "GatherElements": 1, "ScatterElements": 1}
_INT32 = np.iinfo(np.int32)


def run(graph: gs.Graph, context: Context) -> int:
    """Narrow; counts nodes that compute in int32 now, and constant index tables that are int32 now."""
    narrowed = _worthwhile(graph, _narrowable(graph))
    casts: dict[int, gs.Tensor] = {}
    inside = {id(node) for node in narrowed}
    for node in narrowed:
        for index in _typed_inputs(node):
            if _is_int64(node.inputs[index]) and not _made_by(node.inputs[index], inside):
                node.inputs[index] = _as_int32(graph, node.inputs[index], casts)
    for node in narrowed:
        for tensor in node.outputs:
            if _is_int64(tensor):
                tensor.dtype = np.dtype(np.int32)
    rewrites = len(narrowed) + _narrow_tables(graph, casts)
    graph.cleanup()
    return rewrites


def check(graph: gs.Graph, context: Context) -> str:
    left = [node.op for node in graph.nodes if _computes_int64(node)]
    return f"{len(left)} nodes stay int64: {', '.join(sorted(set(left)))}" if left else "no arithmetic in int64"


def _computes_int64(node: gs.Node) -> bool:
    return node.op in POLYMORPHIC and any(_is_int64(node.inputs[index]) for index in _typed_inputs(node))


def _narrowable(graph: gs.Graph) -> list[gs.Node]:
    """Nodes that may compute in int32: candidates that may not are dropped until none is left."""
    candidates = {id(node): node for node in graph.nodes if _computes_int64(node)}
    while True:
        bad = [node for node in candidates.values() if not _may_narrow(graph, node, candidates)]
        if not bad:
            return [node for node in graph.nodes if id(node) in candidates]
        for node in bad:
            del candidates[id(node)]


def _may_narrow(graph: gs.Graph, node: gs.Node, candidates: dict[int, gs.Node]) -> bool:
    for index in _typed_inputs(node):
        tensor = node.inputs[index]
        if isinstance(tensor, gs.Constant) and not _fits(tensor):
            return False
    for tensor in node.outputs:
        if not _is_int64(tensor):
            continue
        if is_output(graph, tensor):
            return False
        for consumer in tensor.outputs:
            slots = [index for index, other in enumerate(consumer.inputs) if other is tensor]
            typed = _typed_inputs(consumer) if id(consumer) in candidates else ()
            if any(index not in typed and not _takes_any_integer(consumer, index) for index in slots):
                return False
    return True


def _worthwhile(graph: gs.Graph, nodes: list[gs.Node]) -> list[gs.Node]:
    """The connected groups that need fewer Casts than they have nodes."""
    group = {id(node): id(node) for node in nodes}

    def root(key: int) -> int:
        while group[key] != key:
            key = group[key]
        return key

    sources: dict[int, tuple[gs.Tensor, list[int]]] = {}  # int64 tensor from outside, and the nodes that read it
    for node in nodes:
        for index in _typed_inputs(node):
            tensor = node.inputs[index]
            if not _is_int64(tensor) or isinstance(tensor, gs.Constant):
                continue
            producer = tensor.inputs[0] if tensor.inputs else None
            if producer is not None and id(producer) in group:
                group[root(id(node))] = root(id(producer))
            else:
                sources.setdefault(id(tensor), (tensor, []))[1].append(id(node))
    for _, readers in sources.values():
        for reader in readers[1:]:
            group[root(reader)] = root(readers[0])
    size: dict[int, int] = defaultdict(int)
    for node in nodes:
        size[root(id(node))] += 1
    for tensor, readers in sources.values():
        size[root(readers[0])] -= not _is_cast(tensor)
    return [node for node in nodes if size[root(id(node))] > 0]


def _narrow_tables(graph: gs.Graph, casts: dict[int, gs.Tensor]) -> int:
    """Constant index inputs."""
    tables = 0
    for node in graph.nodes:
        index = INDEX_INPUT.get(node.op)
        if index is None or not isinstance(node.inputs[index], gs.Constant):
            continue
        if _is_int64(node.inputs[index]) and _fits(node.inputs[index]):
            node.inputs[index] = _as_int32(graph, node.inputs[index], casts)
            tables += 1
    return tables


def _as_int32(graph: gs.Graph, tensor: gs.Tensor, casts: dict[int, gs.Tensor]) -> gs.Tensor:
    if id(tensor) not in casts:
        if isinstance(tensor, gs.Constant):
            casts[id(tensor)] = gs.Constant(free_name(graph, f"{tensor.name}/int32"), tensor.values.astype(np.int32))
        else:
            narrow = gs.Variable(free_name(graph, f"{tensor.name}/int32"), np.dtype(np.int32), tensor.shape)
            source = tensor.inputs[0].inputs[0] if _is_cast(tensor) else tensor  # not a Cast of a Cast
            cast = gs.Node("Cast", narrow.name, {"to": int(onnx.TensorProto.INT32)}, [source], [narrow])
            insert_after(graph, tensor, cast)
            casts[id(tensor)] = narrow
        casts[id(casts[id(tensor)])] = casts[id(tensor)]
    return casts[id(tensor)]


def _typed_inputs(node: gs.Node) -> tuple[int, ...]:
    slots = POLYMORPHIC.get(node.op, ())
    present = tuple(index for index, tensor in enumerate(node.inputs) if not tensor.is_empty())
    return present if slots is None else tuple(index for index in slots if index in present)


def _takes_any_integer(node: gs.Node, index: int) -> bool:
    return node.op == "Cast" or INDEX_INPUT.get(node.op) == index


def _is_int64(tensor: gs.Tensor) -> bool:
    return tensor.dtype is not None and not isinstance(tensor.dtype, int) and tensor.dtype == np.int64


def _is_cast(tensor: gs.Tensor) -> bool:
    return bool(tensor.inputs) and tensor.inputs[0].op == "Cast"


def _fits(tensor: gs.Constant) -> bool:
    value = small_value(tensor)
    return value is not None and (value.size == 0 or (value.min() >= _INT32.min and value.max() <= _INT32.max))


def _made_by(tensor: gs.Tensor, inside: set[int]) -> bool:
    return any(id(producer) in inside for producer in unique(tensor.inputs))
