"""What the passes share: ModelProto <-> graph-surgeon without loading weights, and small edits.

Weights stay where they are. graph-surgeon keeps initializers as unread LazyValues over the original protos, external ones
included; only constants of up to SMALL bytes are ever read. It drops the exporter's metadata of nodes, stack traces with paths of
the export host among it.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from onnx.external_data_helper import load_external_data_for_tensor, uses_external_data
from onnx_graphsurgeon.ir.tensor import LazyValues

SMALL = 1 << 20  # bytes; index tables and shapes are below, weights of real models above
_QDQ = ("QuantizeLinear", "DequantizeLinear")


def graph_from_model(model: onnx.ModelProto, directory: Path | None = None) -> gs.Graph:
    """Import `model`; small external constants are read if `directory` says where their file is."""
    if directory is not None:
        for tensor in model.graph.initializer:
            if uses_external_data(tensor) and _num_bytes(tensor) <= SMALL:
                load_external_data_for_tensor(tensor, str(directory))
                tensor.data_location = onnx.TensorProto.DEFAULT
                del tensor.external_data[:]
    return gs.import_onnx(model)


def model_from_graph(graph: gs.Graph, source: onnx.ModelProto) -> onnx.ModelProto:
    """Export `graph` with what graph-surgeon does not keep of `source`: its model-level metadata and documentation."""
    model = gs.export_onnx(graph)
    _hoist_initializers(model)
    model.metadata_props.extend(source.metadata_props)
    model.domain, model.model_version, model.doc_string = source.domain, source.model_version, source.doc_string
    return model


def small_value(tensor: gs.Tensor) -> np.ndarray | None:
    """The value of a constant that is small and readable here; None for variables, weights and unread external data."""
    if not isinstance(tensor, gs.Constant) or not all(isinstance(dim, int) for dim in tensor.shape):
        return None
    values = tensor._values  # `values` would load and cache a weight
    if isinstance(values, LazyValues):
        if _num_bytes(values.tensor) > SMALL or uses_external_data(values.tensor):
            return None
    elif not isinstance(values, np.ndarray) or values.nbytes > SMALL:
        return None
    return np.asarray(tensor.values)


def static_shape(tensor: gs.Tensor) -> tuple[int, ...] | None:
    """The shape where all dimensions are numbers, else None."""
    shape = tensor.shape
    return tuple(shape) if shape is not None and all(isinstance(dim, int) for dim in shape) else None


def is_output(graph: gs.Graph, tensor: gs.Tensor) -> bool:
    return any(tensor is output for output in graph.outputs)


def insert_after(graph: gs.Graph, tensor: gs.Tensor, new: gs.Node) -> None:
    """Put `new` right after the producer of `tensor`, or first where that is a graph input or a constant."""
    position = next((index for index, node in enumerate(graph.nodes) if tensor.inputs and node is tensor.inputs[0]), -1)
    graph.nodes.insert(position + 1, new)


def reroute(old: gs.Tensor, new: gs.Tensor) -> None:
    """Let every consumer of `old` read `new`."""
    for consumer in unique(old.outputs):
        for index, tensor in enumerate(consumer.inputs):
            if tensor is old:
                consumer.inputs[index] = new


def unique(items: Iterable) -> list:
    """Items without repetitions of the same object (graph-surgeon compares nodes by value)."""
    return list({id(item): item for item in items}.values())


def free_name(graph: gs.Graph, wanted: str) -> str:
    """`wanted`, or the first of wanted_2, wanted_3, … that names no node and no tensor."""
    used = {node.name for node in graph.nodes} | set(graph.tensors())
    name, count = wanted, 1
    while name in used:
        count += 1
        name = f"{wanted}_{count}"
    return name


def _hoist_initializers(model: onnx.ModelProto) -> None:
    """Move what graph-surgeon writes into subgraphs to the outer graph: a weight once, external data where runtimes look.

    What only a subgraph's Q/DQ nodes read stays: ONNX Runtime fuses them with a MatMul only where their constants are in the same graph.
    """
    known = {tensor.name for tensor in model.graph.initializer}
    read_outside = {name for node in model.graph.node for name in node.input} | known
    for node in model.graph.node:
        for body in (attribute.g for attribute in node.attribute if attribute.type == onnx.AttributeProto.GRAPH):
            quantized = {name for inner in body.node if inner.op_type in _QDQ for name in inner.input} - read_outside
            kept = [tensor for tensor in body.initializer if tensor.name in quantized]
            model.graph.initializer.extend(
                tensor for tensor in body.initializer if tensor.name not in known and tensor.name not in quantized
            )
            known.update(tensor.name for tensor in model.graph.initializer)
            kept = [onnx.TensorProto.FromString(tensor.SerializeToString()) for tensor in kept]  # `del` empties what it deletes
            del body.initializer[:]
            body.initializer.extend(kept)
            made_here = {name for inner in body.node for name in inner.output}
            declared = [value for value in body.value_info if value.name in made_here]
            del body.value_info[:]
            body.value_info.extend(declared)


def _num_bytes(tensor: onnx.TensorProto) -> int:
    return int(np.prod(tensor.dims, dtype=np.int64)) * max(1, onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize)
