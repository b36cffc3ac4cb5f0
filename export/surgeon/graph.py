"""What the passes share: their context, ModelProto <-> graph-surgeon without loading weights, and small edits.

Weights stay where they are. graph-surgeon keeps initializers as unread LazyValues over the original protos, external ones
included; only constants of up to SMALL bytes are ever read. It drops the exporter's metadata of nodes, stack traces with paths of
the export host among it.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from onnx.external_data_helper import load_external_data_for_tensor, uses_external_data
from onnx_graphsurgeon.ir.tensor import LazyValues

SMALL = 1 << 20  # bytes; index tables and shapes are below, weights of real models above
_QDQ = ("QuantizeLinear", "DequantizeLinear")


@dataclass(frozen=True)
class Context:
    """model: as it was before the passes, with the exporter's metadata; compression: the expanded spec of the `compress` nodes."""

    model: onnx.ModelProto
    compression: str = ""


def graph_from_model(model: onnx.ModelProto, directory: Path | None = None) -> gs.Graph:
    """Import `model`; small external constants are read if `directory` says where their file is."""
    if directory is not None:
        for tensor in model.graph.initializer:
            if uses_external_data(tensor) and LazyValues(tensor).nbytes <= SMALL:
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


def drop_outputs(model: onnx.ModelProto, names: Collection[str]) -> onnx.ModelProto:
    """A copy of `model` without the outputs `names`, which served a comparison. Their types stay in its value_info, so that a tool can
    mark them as outputs again, except for those that only a Loop made and nothing else reads: they are no longer computed."""
    graph = graph_from_model(model)
    graph.outputs = [tensor for tensor in graph.outputs if tensor.name not in names]
    for loop in [node for node in graph.nodes if node.op == "Loop"]:
        body = loop.attrs["body"]
        for index in reversed(range(len(loop.inputs) - 2, len(loop.outputs))):  # those that are stacked
            if not loop.outputs[index].outputs and loop.outputs[index] not in graph.outputs:
                del loop.outputs[index], body.outputs[index + 1]  # the condition comes first
        body.cleanup()
    return model_from_graph(graph, model)


def small_value(tensor: gs.Tensor) -> np.ndarray | None:
    """The value of a constant that is small and readable here; None for variables, weights and unread external data."""
    if not isinstance(tensor, gs.Constant):
        return None
    stored = tensor._values  # `values` would load and cache a weight
    if stored.nbytes > SMALL or (isinstance(stored, LazyValues) and uses_external_data(stored.tensor)):
        return None
    return np.asarray(tensor.values)


def static_shape(tensor: gs.Tensor) -> tuple[int, ...] | None:
    """The shape where all dimensions are numbers, else None."""
    shape = tensor.shape
    return tuple(shape) if shape is not None and all(isinstance(dim, int) for dim in shape) else None


def leaving(graph: gs.Graph, region: Sequence[gs.Node]) -> list[gs.Tensor]:
    """The tensors that `region` makes and that nodes outside of it read, or that are graph outputs."""
    inside = {id(node) for node in region}
    return [
        tensor
        for node in region
        for tensor in node.outputs
        if tensor in graph.outputs or any(id(reader) not in inside for reader in tensor.outputs)
    ]


def insert_after(graph: gs.Graph, tensor: gs.Tensor, new: gs.Node) -> None:
    """Put `new` right after the producer of `tensor`, or first where that is a graph input or a constant."""
    position = next((index for index, node in enumerate(graph.nodes) if tensor.inputs and node is tensor.inputs[0]), -1)
    graph.nodes.insert(position + 1, new)


def reroute(old: gs.Tensor, new: gs.Tensor) -> None:
    """Let every consumer of `old` read `new`."""
    for consumer in list(old.outputs):
        consumer.inputs = [new if tensor is old else tensor for tensor in consumer.inputs]


def unique(items: Iterable) -> list:
    """Items without repetitions of the same object (graph-surgeon compares nodes by value)."""
    return list({id(item): item for item in items}.values())


def free_name(graph: gs.Graph, wanted: str) -> str:
    """`wanted`, or the first of wanted_2, wanted_3, … that names no node and no tensor."""
    return unused(wanted, {node.name for node in graph.nodes} | set(graph.tensors()))


def unused(wanted: str, used: Collection[str]) -> str:
    """`wanted`, or the first of wanted_2, wanted_3, … that is not `used`."""
    names = itertools.chain([wanted], (f"{wanted}_{number}" for number in itertools.count(2)))
    return next(name for name in names if name not in used)


def _hoist_initializers(model: onnx.ModelProto) -> None:
    """Move what graph-surgeon writes into subgraphs to the outer graph: a weight once, external data where runtimes look.

    What only a subgraph's Q/DQ nodes read stays: ONNX Runtime fuses them with a MatMul only where their constants are in the same graph.
    """
    known = {tensor.name for tensor in model.graph.initializer}
    read_outside = {name for node in model.graph.node for name in node.input} | known
    for body in (attribute.g for node in model.graph.node for attribute in node.attribute if attribute.HasField("g")):
        quantized = {name for inner in body.node if inner.op_type in _QDQ for name in inner.input} - read_outside
        there = known | quantized
        model.graph.initializer.extend(tensor for tensor in body.initializer if tensor.name not in there)
        known.update(tensor.name for tensor in model.graph.initializer)
        _keep(body.initializer, quantized)
        _keep(body.value_info, {name for inner in body.node for name in inner.output})


def _keep(parts: Any, names: Collection[str]) -> None:
    """Delete from a repeated field what has none of the names."""
    for index in reversed([index for index, part in enumerate(parts) if part.name not in names]):
        del parts[index]
