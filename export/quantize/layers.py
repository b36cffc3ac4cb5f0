"""The layers of a graph that can be quantised, the error of each, and which of them go up in precision to meet a budget.

A layer is a MatMul of an activation with a constant matrix. Its error is the relative error of its output,
|x W - x' W'| / |x W| (root of the sums of squares), when only its weight W' and its input x' are rounded, on inputs x as the float graph
computes them.

S rows of an input, K inputs, N outputs of a layer.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path

import numpy as np
import onnx
from onnx import numpy_helper
from onnx.external_data_helper import load_external_data_for_model

from export.surgeon.join_matmuls import ARITHMETIC
from export.trace import INLINE_BYTES
from runtime.tools.compare import relative_error

SAMPLE = 256  # rows of a layer's input that its error is measured on


@dataclass(frozen=True)
class Layer:
    """node: the MatMul's name; input, weight: names of tensors; shape: (K, N)."""

    node: str
    input: str
    weight: str
    shape: tuple[int, int]


def find_layers(model: onnx.ModelProto) -> list[Layer]:
    """In the graph's order; products of the compression and of the resize of frames are arithmetic and not layers."""
    matrices = {tensor.name: tuple(tensor.dims) for tensor in model.graph.initializer if len(tensor.dims) == 2}
    return [
        Layer(node.name, node.input[0], node.input[1], matrices[node.input[1]])
        for node in model.graph.node
        if node.op_type == "MatMul" and node.input[1] in matrices and not node.name.startswith(ARITHMETIC)
    ]


def with_outputs(model: onnx.ModelProto, names: Collection[str]) -> onnx.ModelProto:
    """A copy of the structure with the tensors `names` as further outputs."""
    marked = onnx.ModelProto()
    marked.CopyFrom(model)
    known = {output.name for output in marked.graph.output} | {graph_input.name for graph_input in marked.graph.input}
    marked.graph.output.extend(onnx.ValueInfoProto(name=name) for name in dict.fromkeys(names) if name not in known)
    return marked


def layer_errors(
    model: onnx.ModelProto,
    directory: Path,
    layers: Collection[Layer],
    inputs: Mapping[str, np.ndarray],
    round_input: Callable[[Layer, np.ndarray], np.ndarray],
    round_weight: Callable[[Layer, np.ndarray], np.ndarray],
) -> dict[str, float]:
    """{node: relative error of its output}.

    model: with external weights in `directory`, which are read one by one; inputs: {tensor: values [..., K]} of the float graph;
    round_input: of a layer and x [S, K]; round_weight: of a layer and its weight [K, N].
    """
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    errors = {}
    for layer in layers:
        x = sampled(inputs[layer.input].reshape(-1, layer.shape[0])).astype(np.float32)
        weight = numpy_helper.to_array(tensors[layer.weight], str(directory)).astype(np.float32)
        errors[layer.node] = relative_error(round_input(layer, x) @ round_weight(layer, weight), x @ weight)
    return errors


def meet_budget(
    lowest: Mapping[str, str],
    steps: Sequence[str],
    errors: Mapping[str, float],
    measure: Callable[[dict[str, str]], float],
    budget: float,
) -> tuple[dict[str, str], float]:
    """({node: precision}, the component's error in them), within `budget` unless every layer is in the last of `steps`.

    lowest: {node: precision to start from}; steps: precisions, from the lowest; errors: {node: the layer's error};
    measure: the component's error with layers in these precisions.
    """
    chosen = dict(lowest)
    for rounds in count():
        error = measure(chosen)
        left = [node for node, step in chosen.items() if step != steps[-1]]
        if error <= budget or not left:
            break
        first = min((chosen[node] for node in left), key=steps.index)
        for node in worst(errors, [node for node in left if chosen[node] == first], rounds):
            chosen[node] = steps[steps.index(first) + 1]
    return chosen, error


def worst(errors: Mapping[str, float], left: Collection[str], rounds: int = 0) -> list[str]:
    """The nodes of `left` to raise next: those of the largest error, a twelfth of all layers, then twice as many each round."""
    ranked = sorted(left, key=lambda node: -errors[node])
    return ranked[: max(1, len(errors) * 2**rounds // 12)]


def sampled(rows: np.ndarray) -> np.ndarray:
    """At most SAMPLE of the rows, evenly spaced."""
    return rows[:: -(-len(rows) // SAMPLE)]


def save(model: onnx.ModelProto, path: Path) -> onnx.ModelProto:
    """Write a model whose weights are in memory, to `<file>.data` beside it where they are large; its structure, which refers to them."""
    data = path.with_name(f"{path.name}.data")
    large = sum(len(tensor.raw_data) for tensor in model.graph.initializer) > INLINE_BYTES
    data.unlink(missing_ok=True)
    onnx.save_model(model, str(path), save_as_external_data=large, location=data.name, size_threshold=1024, convert_attribute=False)
    return onnx.load(str(path), load_external_data=False)


def with_weights(model: onnx.ModelProto, directory: Path) -> onnx.ModelProto:
    """A copy whose weights, external in `directory`, are in memory."""
    copied = onnx.ModelProto()
    copied.CopyFrom(model)
    load_external_data_for_model(copied, str(directory))
    return copied
