"""How much memory a graph's tensors take at the worst moment, from its shapes alone: no weights are read, nothing is run.

The nodes run in the graph's order; a tensor lives from the node that writes it to the last node that reads it. Local functions
are inlined first, so what is inside them counts. A reshape shares its input's memory, and so does a cache update, which writes in
place. The sum of living tensors, at its largest, is the peak. ONNX Runtime can need less (fused attention keeps no score matrix,
elementwise ops write in place) or more (its arena grows in steps).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import onnx

_SHARES_INPUT = {"Reshape", "Squeeze", "Unsqueeze", "Flatten", "Identity"}
_IN_PLACE = {"ScatterElements", "ScatterND", "TensorScatter"}  # of a state, which engines bind as input and output at once


@dataclass(frozen=True)
class Peak:
    """bytes alive at once at most, the node at which that is, and how many tensors had no known size and were left out."""

    bytes: int
    node: str
    unknown: int


def load(path: Path, sizes: Mapping[str, Mapping[int, int]]) -> onnx.ModelProto:
    """The structure of an ONNX file with every shape inferred. sizes: {input: {axis: size}} for dynamic axes."""
    import onnx
    from onnx import inliner

    model = inliner.inline_local_functions(onnx.load(str(path), load_external_data=False))
    named: dict[str, int] = {}
    for value in model.graph.input:
        for axis, length in sizes.get(value.name, {}).items():
            dim = value.type.tensor_type.shape.dim[axis]
            if dim.dim_param:
                named[dim.dim_param] = length
            dim.dim_value = length
    del model.graph.value_info[:]  # inferred anew: what the file says has names where sizes now are
    for value in model.graph.output:
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param in named:
                dim.dim_value = named[dim.dim_param]
    return onnx.shape_inference.infer_shapes(model, data_prop=True)


def inputs(model: onnx.ModelProto) -> list[str]:
    """Names of the graph's inputs, initialisers left out."""
    weights = {tensor.name for tensor in model.graph.initializer}
    return [value.name for value in model.graph.input if value.name not in weights]


def weights(model: onnx.ModelProto) -> int:
    """Bytes of all initialisers, external data included."""
    return sum(_bytes(tensor.data_type, tensor.dims) for tensor in model.graph.initializer)


def operators(path: Path) -> dict[str, int]:
    """{operator: nodes} of the graph as it is in the file; a local function counts as one operator, with its domain."""
    import onnx

    nodes = onnx.load(str(path), load_external_data=False).graph.node
    return dict(Counter(f"{node.domain}.{node.op_type}" if node.domain else node.op_type for node in nodes))


def peak(model: onnx.ModelProto, state: Collection[str] = ()) -> Peak:
    """The largest sum of tensors alive at once. state: inputs that are counted elsewhere (the KV cache)."""
    graph = model.graph
    constant = {tensor.name for tensor in graph.initializer}
    constant |= {name for node in graph.node if node.op_type == "Constant" for name in node.output}
    size = {value.name: _value_bytes(value) for value in [*graph.input, *graph.value_info, *graph.output]}
    root: dict[str, str] = {}  # tensor -> the tensor whose memory it shares

    def owner(name: str) -> str:
        return root.get(name, name)

    for node in graph.node:
        if node.op_type in _SHARES_INPUT or (node.op_type in _IN_PLACE and owner(node.input[0]) in state):
            root[node.output[0]] = owner(node.input[0])
    last: dict[str, int] = {owner(value.name): len(graph.node) for value in graph.output}
    for index, node in enumerate(graph.node):
        for name in node.input:
            last[owner(name)] = max(last.get(owner(name), 0), index)

    uncounted = constant | set(state) | {""}
    alive = {name: size.get(name) or 0 for name in inputs(model) if name not in uncounted}
    best, where, unknown = sum(alive.values()), "", 0
    for index, node in enumerate(graph.node):
        for name in node.output:
            if owner(name) == name and name not in uncounted:
                unknown += size.get(name) is None
                alive[name] = size.get(name) or 0
        total = sum(alive.values())
        if total > best:
            best, where = total, node.name
        for name in [name for name in alive if last.get(name, index) <= index]:
            del alive[name]
    return Peak(best, where, unknown)


def _value_bytes(value: onnx.ValueInfoProto) -> int | None:
    """Bytes of a tensor; None where its shape is not known."""
    tensor = value.type.tensor_type
    dims = tensor.shape.dim
    if not tensor.elem_type or not tensor.HasField("shape") or any(not dim.HasField("dim_value") for dim in dims):
        return None
    return _bytes(tensor.elem_type, [dim.dim_value for dim in dims])


def _bytes(kind: int, dims: Collection[int]) -> int:
    import onnx

    if kind in (onnx.TensorProto.INT4, onnx.TensorProto.UINT4):
        return (prod(dims) + 1) // 2  # two to a byte
    return prod(dims) * onnx.helper.tensor_dtype_to_np_dtype(kind).itemsize
