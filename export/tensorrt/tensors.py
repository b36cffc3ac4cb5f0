"""What is known of a graph's tensors without its weights: element types, ranks, and the values of small constants."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import onnx
from onnx import AttributeProto, NodeProto, TensorProto, helper, numpy_helper

_WEIGHT_BYTES = 1 << 16  # a larger constant is a weight, whose values no check needs


@dataclass
class Tensors:
    """types, ranks, values: {tensor name: …}, as far as they are known; constants: names of constants, of unknown value too."""

    types: dict[str, int] = field(default_factory=dict)
    ranks: dict[str, int] = field(default_factory=dict)
    constants: set[str] = field(default_factory=set)
    values: dict[str, np.ndarray] = field(default_factory=dict)

    def read(self, graph: onnx.GraphProto) -> None:
        """Add the tensors of a graph and its subgraphs."""
        for value in (*graph.input, *graph.output, *graph.value_info):
            tensor = value.type.tensor_type
            if tensor.elem_type:
                self.types[value.name] = tensor.elem_type
            if tensor.HasField("shape"):
                self.ranks[value.name] = len(tensor.shape.dim)
        for tensor in graph.initializer:
            self._add(tensor.name, tensor)
        for node in graph.node:
            self.read_node(node)

    def read_node(self, node: NodeProto) -> None:
        """Add a Constant's value and the tensors of a node's subgraphs."""
        for attribute in node.attribute:
            if node.op_type == "Constant":
                self.constants.add(node.output[0])
                if attribute.name == "value":
                    self._add(node.output[0], attribute.t)
                elif attribute.name in ("value_int", "value_ints", "value_float", "value_floats"):
                    self.values[node.output[0]] = np.asarray(helper.get_attribute_value(attribute))
            for graph in subgraphs(attribute):
                self.read(graph)

    def _add(self, name: str, tensor: TensorProto) -> None:
        self.constants.add(name)
        self.types[name], self.ranks[name] = tensor.data_type, len(tensor.dims)
        if _is_small(tensor) and _has_values(tensor):
            self.values[name] = numpy_helper.to_array(tensor)


def subgraphs(attribute: AttributeProto) -> list[onnx.GraphProto]:
    return [attribute.g] if attribute.type == AttributeProto.GRAPH else list(attribute.graphs)


def without_weights(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model with only names, types and shapes of its weights: a model past 2 GB can't be serialised for shape inference."""
    light = onnx.ModelProto(ir_version=model.ir_version)
    light.opset_import.extend(model.opset_import)
    light.functions.extend(model.functions)
    for name in ("node", "input", "output", "value_info"):
        getattr(light.graph, name).extend(getattr(model.graph, name))
    light.graph.name = model.graph.name or "graph"
    for tensor in model.graph.initializer:
        if not _is_small(tensor):
            tensor = TensorProto(name=tensor.name, data_type=tensor.data_type, dims=tensor.dims)
        light.graph.initializer.append(tensor)
    return light


def _is_small(tensor: TensorProto) -> bool:
    return tensor.ByteSize() <= _WEIGHT_BYTES and not tensor.external_data


def _has_values(tensor: TensorProto) -> bool:
    stored = (tensor.raw_data, tensor.float_data, tensor.int32_data, tensor.int64_data, tensor.double_data, tensor.uint64_data)
    return any(len(data) for data in stored)
