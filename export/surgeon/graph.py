"""What the passes share: ModelProto <-> graph-surgeon without losing module scopes or loading weights, and small edits.

Weights stay where they are. graph-surgeon keeps initializers as unread LazyValues over the original protos, external ones
included; only constants of up to SMALL bytes are ever read. graph-surgeon drops the exporter's metadata (stack traces with
paths of the export host among it), so each node's module scope is taken from there first and kept as `node.scope`.
"""

from __future__ import annotations

import ast
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from onnx.external_data_helper import load_external_data_for_tensor, uses_external_data
from onnx_graphsurgeon.ir.tensor import LazyValues

SMALL = 1 << 20  # bytes; index tables and shapes are below, weights of real models above
_QDQ = ("QuantizeLinear", "DequantizeLinear")
_SCOPES = "pkg.torch.onnx.name_scopes"
_KIND = "pkg.torch.export.graph_signature.InputSpec.kind"


def graph_from_model(model: onnx.ModelProto, directory: Path | None = None) -> gs.Graph:
    """Import `model`; small external constants are read if `directory` says where their file is."""
    if directory is not None:
        for tensor in model.graph.initializer:
            if uses_external_data(tensor) and _num_bytes(tensor) <= SMALL:
                load_external_data_for_tensor(tensor, str(directory))
                tensor.data_location = onnx.TensorProto.DEFAULT
                del tensor.external_data[:]
    graph = gs.import_onnx(model)
    for node, proto in zip(graph.nodes, model.graph.node, strict=True):
        node.scope = _module_scope(proto)
    owned = {value.name for value in model.graph.value_info for prop in value.metadata_props if prop.key == _KIND}
    for tensor in graph.tensors().values():
        tensor.of_checkpoint = tensor.name in owned
    if any(node.scope for node in graph.nodes):
        for node in reversed(graph.nodes):
            if node.scope is None:
                node.scope = _scope_of_readers(node)
    return graph


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
    """The shape where every dimension is a number."""
    shape = tensor.shape
    return tuple(shape) if shape is not None and all(isinstance(dim, int) for dim in shape) else None


def is_output(graph: gs.Graph, tensor: gs.Tensor) -> bool:
    return any(tensor is output for output in graph.outputs)


def replace_node(graph: gs.Graph, node: gs.Node, new: Sequence[gs.Node]) -> None:
    """Put `new`, in order, where `node` is; they inherit its scope. The last of them takes over its outputs unless it has some."""
    outputs = list(node.outputs)
    node.inputs.clear()
    node.outputs.clear()
    position = _position(graph, node)
    graph.nodes[position : position + 1] = list(new)
    for added in new:
        added.scope = scope_of(node)
    if not new[-1].outputs:
        new[-1].outputs = outputs


def insert_after(graph: gs.Graph, tensor: gs.Tensor, new: gs.Node) -> None:
    """Put `new` right behind the producer of `tensor`, or first where that is a graph input or a constant."""
    new.scope = scope_of(tensor.inputs[0]) if tensor.inputs else ""
    graph.nodes.insert(_position(graph, tensor.inputs[0]) + 1 if tensor.inputs else 0, new)


def insert_before(graph: gs.Graph, node: gs.Node, new: gs.Node) -> None:
    new.scope = scope_of(node)
    graph.nodes.insert(_position(graph, node), new)


def reroute(old: gs.Tensor, new: gs.Tensor) -> None:
    """Let every consumer of `old` read `new`."""
    for consumer in unique(old.outputs):
        for index, tensor in enumerate(consumer.inputs):
            if tensor is old:
                consumer.inputs[index] = new


def scope_of(node: gs.Node) -> str:
    """The node's module in the traced torch module, e.g. `encoder.layers.3.self_attn`; "" at the root or where unknown."""
    return getattr(node, "scope", None) or ""


def is_exporters(tensor: gs.Tensor, reader: gs.Node) -> bool:
    """Whether the exporter made up the constant, and so its name; parameters and buffers have the module's names."""
    traced = getattr(reader, "scope", None) is not None
    return traced and isinstance(tensor, gs.Constant) and not getattr(tensor, "of_checkpoint", False)


def unique(items: Iterable) -> list:
    """Items without repetitions of the same object (graph-surgeon compares nodes by value)."""
    return list({id(item): item for item in items}.values())


def free_name(graph: gs.Graph, wanted: str) -> str:
    """`wanted`, or the first of wanted_2, wanted_3, … that names no node and no tensor."""
    taken = {node.name for node in graph.nodes} | set(graph.tensors())
    name, count = wanted, 1
    while name in taken:
        count += 1
        name = f"{wanted}_{count}"
    return name


def _hoist_initializers(model: onnx.ModelProto) -> None:
    """Move what graph-surgeon writes into subgraphs to the outer graph: a weight once, external data where runtimes look.

    What a subgraph's Q/DQ nodes alone read stays: ONNX Runtime joins them with a MatMul only where their constants are of the same graph.
    """
    known = {tensor.name for tensor in model.graph.initializer}
    read_outside = {name for node in model.graph.node for name in node.input} | known
    for node in model.graph.node:
        for body in (attribute.g for attribute in node.attribute if attribute.type == onnx.AttributeProto.GRAPH):
            quantized = {name for inner in body.node if inner.op_type in _QDQ for name in inner.input} - read_outside
            own = [tensor for tensor in body.initializer if tensor.name in quantized]
            model.graph.initializer.extend(
                tensor for tensor in body.initializer if tensor.name not in known and tensor.name not in quantized
            )
            known.update(tensor.name for tensor in model.graph.initializer)
            own = [onnx.TensorProto.FromString(tensor.SerializeToString()) for tensor in own]  # `del` empties what it deletes
            del body.initializer[:]
            body.initializer.extend(own)
            made_here = {name for inner in body.node for name in inner.output}
            declared = [value for value in body.value_info if value.name in made_here]
            del body.value_info[:]
            body.value_info.extend(declared)


def _position(graph: gs.Graph, node: gs.Node) -> int:
    return next(index for index, other in enumerate(graph.nodes) if other is node)


def _num_bytes(tensor: onnx.TensorProto) -> int:
    return int(np.prod(tensor.dims, dtype=np.int64)) * max(1, onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize)


def _module_scope(node: onnx.NodeProto) -> str | None:
    for prop in node.metadata_props:
        if prop.key == _SCOPES:
            scopes = ast.literal_eval(prop.value)  # modules from the root inwards, then the traced op itself
            scope = scopes[-2] if len(scopes) > 1 else ""
            return "" if scope.startswith("_empty_nn_module_stack") else scope  # sizes that the exporter itself reads
    return None


def _scope_of_readers(node: gs.Node) -> str:
    """The innermost scope that holds all readers, for nodes that the exporter's optimizer made without a scope."""
    scopes = [scope_of(reader).split(".") for tensor in node.outputs for reader in tensor.outputs]
    common: list[str] = []
    for parts in zip(*scopes, strict=False):
        if len(set(parts)) > 1:
            break
        common.append(parts[0])
    return ".".join(common)
