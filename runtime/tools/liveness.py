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

from runtime.bundle.graph_file import onnx_errors, read_graph

if TYPE_CHECKING:
    import onnx

_SHARES_INPUT = {"Reshape", "Squeeze", "Unsqueeze", "Flatten", "Identity"}
_IN_PLACE = {"ScatterElements", "ScatterND", "TensorScatter"}  # of a state, which engines bind as input and output at once
_SMALL = 1 << 16  # values of a tensor that may be a size or a list of positions


@dataclass(frozen=True)
class Peak:
    """bytes alive at once at most, the node at which that is, and how many tensors had no known size and were left out."""

    bytes: int
    node: str
    unknown: int


def load(path: Path, sizes: Mapping[str, Mapping[int, int]] = {}) -> onnx.ModelProto:
    """The structure of an ONNX file with every shape inferred. sizes: {input: {axis: size}} for dynamic axes."""
    model = read_graph(path, inline=True)
    named: dict[str, int] = {}
    for value in model.graph.input:
        for axis, length in sizes.get(value.name, {}).items():
            dim = value.type.tensor_type.shape.dim[axis]
            if dim.dim_param:
                named[dim.dim_param] = length
            dim.dim_value = length
    if named:
        del model.graph.value_info[:]  # inferred again: the file's shapes have names where sizes now are
    for value in model.graph.output:
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param in named:
                dim.dim_value = named[dim.dim_param]
    _bring_sizes_inside(model.graph, {})
    model = _inferred(path, model)
    while _count_passes(model) + _fold_sizes(model):  # what is computed from shapes at run time is a constant now
        model = _inferred(path, model)
    return model


def weights(model: onnx.ModelProto) -> int:
    """Bytes of all initializers, external data included."""
    return sum(_bytes(tensor.data_type, tensor.dims) for tensor in model.graph.initializer)


def value_bytes(value: onnx.ValueInfoProto) -> int | None:
    """Bytes of a tensor; None where its type or shape is not known."""
    kind, shape = value.type.tensor_type.elem_type, _known_shape(value)
    return _bytes(kind, shape) if kind and shape is not None else None


def shapes(graph: onnx.GraphProto) -> dict[str, list[int]]:
    """{tensor: shape} of the inputs, weights, outputs and what lies between whose every length is known."""
    known = {value.name: _known_shape(value) for value in (*graph.input, *graph.value_info, *graph.output)}
    weights = {tensor.name: list(tensor.dims) for tensor in graph.initializer}
    return weights | {name: shape for name, shape in known.items() if shape is not None}


def operators(path: Path) -> dict[str, int]:
    """{operator: nodes} of the graph as it is in the file; a local function counts as one operator, with its domain."""
    nodes = read_graph(path).graph.node
    return dict(Counter(f"{node.domain}.{node.op_type}" if node.domain else node.op_type for node in nodes))


def peak(graph: onnx.GraphProto, state: Collection[str] = ()) -> Peak:
    """The largest sum of tensors alive at once. state: inputs that are counted elsewhere (the KV cache)."""
    constant = {tensor.name for tensor in graph.initializer}
    constant |= {name for node in graph.node if node.op_type == "Constant" for name in node.output}
    uncounted = constant | {*state, ""}
    size = {value.name: value_bytes(value) for value in [*graph.input, *graph.value_info, *graph.output]}
    root: dict[str, str] = {}  # tensor -> the tensor whose memory it shares

    def owner(name: str) -> str:
        return root.get(name, name)

    for node in graph.node:
        if node.op_type in _SHARES_INPUT or (node.op_type in _IN_PLACE and owner(node.input[0]) in state):
            shared = root[node.output[0]] = owner(node.input[0])
            if size.get(shared) is None:  # the length of a Loop's output is unknown, that of its reshape is not
                size[shared] = size.get(node.output[0])
    # the caller owns inputs and outputs: both live to the end
    last = {owner(value.name): len(graph.node) for value in [*graph.input, *graph.output]}
    for index, node in enumerate(graph.node):
        for name in [*node.input, *(name for body in bodies(node) for inner in body.node for name in inner.input)]:
            last[owner(name)] = max(last.get(owner(name), 0), index)

    alive = {value.name: size[value.name] or 0 for value in graph.input if value.name not in uncounted}
    best, where, unknown = sum(alive.values()), "", 0
    for index, node in enumerate(graph.node):
        for name in node.output:
            if owner(name) == name and name not in uncounted:
                unknown += size.get(name) is None
                alive[name] = size.get(name) or 0
        inside = [peak(body) for body in bodies(node)]  # one pass of a Loop's body is in memory at a time
        unknown += sum(body.unknown for body in inside)
        total = sum(alive.values()) + max((body.bytes for body in inside), default=0)
        if total > best:
            best, where = total, node.name
        for name in [name for name in alive if last.get(name, index) <= index]:
            del alive[name]
    return Peak(best, where, unknown)


def _inferred(path: Path, model: onnx.ModelProto) -> onnx.ModelProto:
    import onnx

    with onnx_errors(path):
        return onnx.shape_inference.infer_shapes(model, data_prop=True)


def bodies(node: onnx.NodeProto) -> list[onnx.GraphProto]:
    """The graphs inside a node of control flow."""
    return [attribute.g for attribute in node.attribute if attribute.HasField("g")]


def _bring_sizes_inside(graph: onnx.GraphProto, outer: Mapping[str, onnx.TensorProto]) -> None:
    """Copy the integers that the body of a Loop uses from outside into it: inference looks for sizes only there."""
    from onnx import helper

    known = {**outer, **{tensor.name: tensor for tensor in graph.initializer if _is_small_integer(tensor)}}
    for body in [body for node in graph.node for body in bodies(node)]:
        used = {name for node in body.node for name in node.input} & known.keys()
        nodes = [helper.make_node("Constant", [], [name], value=known[name]) for name in sorted(used)] + list(body.node)
        del body.node[:]
        body.node.extend(nodes)
        _bring_sizes_inside(body, known)


def _count_passes(model: onnx.ModelProto) -> int:
    """Set the length of what a Loop of a constant trip count stacks, which inference leaves open; returns how many tensors."""
    from onnx import numpy_helper

    known = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer if _is_small_integer(t)}
    values = {value.name: value for value in [*model.graph.value_info, *model.graph.output]}
    counted = 0
    for node in model.graph.node:
        if node.op_type != "Loop" or node.input[0] not in known:
            continue
        for name in node.output[len(node.input) - 2 :]:  # after what is carried from pass to pass
            if name in values and len(dims := values[name].type.tensor_type.shape.dim) and not dims[0].HasField("dim_value"):
                dims[0].dim_value = int(known[node.input[0]])
                counted += 1
    return counted


def _fold_sizes(model: onnx.ModelProto) -> int:
    """Turn Shape nodes of known shapes, and integer arithmetic on them, into Constant nodes; returns how many."""
    import numpy as np
    from onnx import helper, numpy_helper, reference

    graph = model.graph
    values = {t.name: numpy_helper.to_array(t) for t in graph.initializer if _is_small_integer(t)}
    values |= {
        node.output[0]: numpy_helper.to_array(attribute.t)
        for node in graph.node
        if node.op_type == "Constant"
        for attribute in node.attribute
        if attribute.name == "value" and _is_small_integer(attribute.t)
    }
    known = shapes(graph)
    folded = 0
    for node in graph.node:
        if node.op_type == "Constant" or node.domain not in ("", "ai.onnx") or len(node.output) != 1 or not node.input:
            continue
        if node.op_type == "Shape":
            shape = known.get(node.input[0])
            if shape is None:
                continue
            bounds = {attribute.name: attribute.i for attribute in node.attribute}
            result = np.array(shape, np.int64)[bounds.get("start", 0) : bounds.get("end", len(shape))]
        elif all(name in values for name in node.input) and not bodies(node):
            shape = known.get(node.output[0])
            if shape is None or prod(shape) > _SMALL:  # asked before it is computed: a Range of three numbers may have any length
                continue
            feeds = {name: values[name] for name in node.input}
            alone = helper.make_function("gridpool", "One", list(feeds), node.output, [node], model.opset_import)
            (result,) = reference.ReferenceEvaluator(alone).run(None, feeds, attributes={})
        else:
            continue
        if result.dtype.kind not in "iu":
            continue
        name = node.output[0]
        values[name] = result
        node.CopyFrom(helper.make_node("Constant", [], [name], node.name, value=numpy_helper.from_array(result, name)))
        folded += 1
    return folded


def _is_small_integer(tensor: onnx.TensorProto) -> bool:
    import onnx

    integer = tensor.data_type in (onnx.TensorProto.INT64, onnx.TensorProto.INT32)
    return integer and tensor.data_location != onnx.TensorProto.EXTERNAL and prod(tensor.dims) <= _SMALL


def _known_shape(value: onnx.ValueInfoProto) -> list[int] | None:
    """None where it has none, or an axis without a number."""
    tensor = value.type.tensor_type
    dims = tensor.shape.dim
    return [dim.dim_value for dim in dims] if tensor.HasField("shape") and all(dim.HasField("dim_value") for dim in dims) else None


def _bytes(kind: int, dims: Collection[int]) -> int:
    import onnx

    if kind in (onnx.TensorProto.INT4, onnx.TensorProto.UINT4):
        return (prod(dims) + 1) // 2  # two to a byte
    return prod(dims) * onnx.helper.tensor_dtype_to_np_dtype(kind).itemsize
