"""int64 arithmetic -> int32 where that is safe: positions, masks and index tables; the types of inputs and outputs stay.

TensorRT has 64-bit kernels for few operators and fuses none of them; positions, frame and token indices fit in 32 bits.
A POLYMORPHIC node that computes in int64 is narrowed when all readers of its results accept int32: another narrowed node, an index
input, a Cast. What ONNX requires to be int64 (the shape input of Reshape, Expand, Slice, …, graph outputs) keeps the nodes before it
as they are. Constants are converted if their values fit; an int64 value from elsewhere (a graph input, Shape, TopK's indices) gets
one Cast, and a Cast to int64 becomes one to int32. A connected group is narrowed only if it needs fewer new Casts than it has nodes.

Arithmetic must not overflow: Mul and the like are narrowed on graph inputs and shapes, which count positions.
"""

from __future__ import annotations

import numpy as np
import onnx
import onnx_graphsurgeon as gs

from export.surgeon.graph import Context, free_name, insert_after, small_value

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
    made = {tensor.name: tensor for node in narrowed for tensor in node.outputs if tensor.dtype == np.int64}
    indices = [(node, INDEX_INPUT[node.op]) for node in graph.nodes if node.op in INDEX_INPUT]
    tables = [(node, index) for node, index in indices if node.inputs[index].dtype == np.int64 and _fits(node.inputs[index])]
    casts: dict[str, gs.Tensor] = {}
    typed = [(node, index) for node in narrowed for index in _typed_inputs(node)]
    for node, index in typed + tables:
        tensor = node.inputs[index]
        if tensor.dtype == np.int64 and tensor.name not in made:
            node.inputs[index] = _as_int32(graph, tensor, casts)
    for tensor in made.values():
        tensor.dtype = np.dtype(np.int32)
    graph.cleanup()
    return len(narrowed) + len(tables)


def check(graph: gs.Graph, context: Context) -> str:
    left = [node.op for node in graph.nodes if _computes_int64(node)]
    return f"{len(left)} nodes stay int64: {', '.join(sorted(set(left)))}" if left else "no arithmetic in int64"


def _computes_int64(node: gs.Node) -> bool:
    return node.op in POLYMORPHIC and any(node.inputs[index].dtype == np.int64 for index in _typed_inputs(node))


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
    operands = [node.inputs[index] for index in _typed_inputs(node)]
    if any(isinstance(tensor, gs.Constant) and not _fits(tensor) for tensor in operands):
        return False
    for tensor in node.outputs:
        if tensor.dtype != np.int64:
            continue
        if tensor in graph.outputs:
            return False
        for consumer in tensor.outputs:
            slots = [index for index, other in enumerate(consumer.inputs) if other is tensor]
            typed = _typed_inputs(consumer) if id(consumer) in candidates else ()
            if any(index not in typed and not (consumer.op == "Cast" or INDEX_INPUT.get(consumer.op) == index) for index in slots):
                return False
    return True


def _worthwhile(graph: gs.Graph, nodes: list[gs.Node]) -> list[gs.Node]:
    """The connected groups that need fewer Casts than they have nodes; nodes that share an int64 tensor are connected."""
    groups: list[tuple[set[str], list[gs.Node]]] = []  # names of tensors, nodes
    for node in nodes:
        tensors = [*(node.inputs[index] for index in _typed_inputs(node)), *node.outputs]
        names, members = (
            {tensor.name for tensor in tensors if tensor.dtype == np.int64 and not isinstance(tensor, gs.Constant)},
            [node],
        )
        for other in [group for group in groups if group[0] & names]:
            groups.remove(other)
            names, members = names | other[0], other[1] + members
        groups.append((names, members))
    known, made = graph.tensors(), {tensor.name for node in nodes for tensor in node.outputs}
    casts = [sum(not _is_cast(known[name]) for name in names - made) for names, _ in groups]
    kept = {id(node) for (_, members), count in zip(groups, casts, strict=True) if count < len(members) for node in members}
    return [node for node in nodes if id(node) in kept]


def _as_int32(graph: gs.Graph, tensor: gs.Tensor, casts: dict[str, gs.Tensor]) -> gs.Tensor:
    if tensor.name not in casts:
        name = free_name(graph, f"{tensor.name}/int32")
        if isinstance(tensor, gs.Constant):
            casts[tensor.name] = gs.Constant(name, tensor.values.astype(np.int32))
        else:
            casts[tensor.name] = narrow = gs.Variable(name, np.dtype(np.int32), tensor.shape)
            source = tensor.inputs[0].inputs[0] if _is_cast(tensor) else tensor  # not a Cast of a Cast
            insert_after(graph, tensor, gs.Node("Cast", name, {"to": int(onnx.TensorProto.INT32)}, [source], [narrow]))
    return casts[tensor.name]


def _typed_inputs(node: gs.Node) -> tuple[int, ...]:
    slots = POLYMORPHIC.get(node.op, ())
    present = tuple(index for index, tensor in enumerate(node.inputs) if not tensor.is_empty())
    return present if slots is None else tuple(index for index in slots if index in present)


def _is_cast(tensor: gs.Tensor) -> bool:
    return bool(tensor.inputs) and tensor.inputs[0].op == "Cast"


def _fits(tensor: gs.Tensor) -> bool:
    """Whether it is a constant whose values fit into 32 bits."""
    value = small_value(tensor)
    return value is not None and (value.size == 0 or (value.min() >= _INT32.min and value.max() <= _INT32.max))
