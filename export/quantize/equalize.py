"""Equalizing the channels of a layer's input before they are rounded together: SmoothQuant's scaling, exact in float.

One threshold per tensor rounds a channel of small values as coarsely as the loudest one, and trained vision transformers have a few very
loud channels. After a LayerNormalization, which multiplies each channel by a factor anyway,

    x W = (x / s) (diag(s) W),    s_j = max|x_j|^a / max|W_j|^(1 - a)

(Xiao et al., SmoothQuant, 2023, arXiv:2211.10438, equations 3 and 4), and 1 / s goes into that LayerNormalization's scale and bias. For each
normalization the exponent a is the one of ALPHAS that rounds the products of its layers best; there is none where that gains little.

K inputs of a layer.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from onnx import numpy_helper

from export.quantize.layers import Layer, sampled
from export.quantize.qdq import int8_rounded
from export.quantize.ranges import activation_rounded, thresholds
from runtime.tools.compare import relative_error

ALPHAS = (0.35, 0.5, 0.65, 0.8)
_GAIN = 0.9  # of the error without equalization: a smaller gain is not worth another graph
_FLOOR = 0.1  # of the median channel: a channel that is silent on these frames may not be on others


@dataclass(frozen=True)
class _Group:
    """A normalization's output, its scale and bias (initializers), and the layers that read it."""

    output: str
    affine: tuple[str, ...]
    layers: tuple[Layer, ...]


@dataclass(frozen=True)
class Equalization:
    """inputs: {input of layers: s [K]} of those that gain; factors: {initializer: what it is multiplied by}."""

    inputs: dict[str, np.ndarray]
    factors: dict[str, np.ndarray]

    def of(self, name: str) -> np.ndarray:
        """s [K] of an input, [1] of one that stays as it is."""
        return self.inputs.get(name, np.ones(1, np.float32))

    def fold(self, model: onnx.ModelProto) -> onnx.ModelProto:
        """Multiply the weights of a model, which are in memory; it is changed and returned."""
        for tensor in model.graph.initializer:
            if tensor.name in self.factors:
                values = numpy_helper.to_array(tensor)
                tensor.CopyFrom(numpy_helper.from_array((values * self.factors[tensor.name]).astype(values.dtype), tensor.name))
        return model


def find_equalization(
    model: onnx.ModelProto, directory: Path, layers: Collection[Layer], samples: Iterable[Mapping[str, np.ndarray]]
) -> Equalization:
    """model: with external weights in `directory`; samples: {input of a layer: values [..., K]} of the float graph, read once."""
    groups = _groups(model, layers)
    loudest: dict[str, np.ndarray] = {}
    rows: dict[str, list[np.ndarray]] = {group.output: [] for group in groups}
    for sample in samples:
        for name, parts in rows.items():
            values = sample[name].reshape(-1, sample[name].shape[-1])
            here = np.abs(values).max(0)
            loudest[name] = np.maximum(loudest.get(name, here), here)
            parts.append(sampled(values))
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    inputs: dict[str, np.ndarray] = {}
    factors: dict[str, np.ndarray] = {}
    for group in groups:
        weights = [numpy_helper.to_array(tensors[layer.weight], str(directory)).astype(np.float32) for layer in group.layers]
        scales = _best(sampled(np.concatenate(rows[group.output])), weights, loudest[group.output])
        if scales is not None:
            inputs[group.output] = scales
            factors |= dict.fromkeys(group.affine, 1 / scales)
            factors |= {layer.weight: scales[:, None] for layer in group.layers}
    return Equalization(inputs, factors)


def _groups(model: onnx.ModelProto, layers: Collection[Layer]) -> list[_Group]:
    """Normalizations whose output only layers read, and whose constants and layers' weights are used once."""
    of_node = {layer.node: layer for layer in layers}
    readers: dict[str, list[onnx.NodeProto]] = {}
    for node in model.graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    constants, outputs = {tensor.name for tensor in model.graph.initializer}, {output.name for output in model.graph.output}
    groups = []
    for node in model.graph.node:
        if node.op_type != "LayerNormalization" or node.output[0] in outputs:
            continue
        affine = tuple(filter(None, node.input[1:]))
        reading = [of_node.get(reader.name) for reader in readers.get(node.output[0], [])]
        found = tuple(layer for layer in reading if layer and layer.input == node.output[0])
        changed = (*affine, *(layer.weight for layer in found))
        if found and len(found) == len(reading) and all(name in constants and len(readers[name]) == 1 for name in changed):
            groups.append(_Group(node.output[0], affine, found))
    return groups


def _best(x: np.ndarray, weights: list[np.ndarray], loudest: np.ndarray) -> np.ndarray | None:
    """s [K] that rounds the products of x [S, K] with the weights [K, N] best, None where that gains little."""
    exact = [x @ weight for weight in weights]
    largest = np.maximum.reduce([np.abs(weight).max(1) for weight in weights])
    if not np.median(loudest) or not np.median(largest):
        return None  # hardly anything but zeros
    loud, heavy = (np.maximum(of, _FLOOR * np.median(of)) for of in (loudest, largest))
    best, least = None, _GAIN * _error(x, weights, exact, np.ones_like(loud))
    for alpha in ALPHAS:
        scales = loud**alpha / heavy ** (1 - alpha)
        scales = (scales / np.exp(np.log(scales).mean())).astype(np.float32)
        error = _error(x, weights, exact, scales)
        if error < least:
            best, least = scales, error
    return best


def _error(x: np.ndarray, weights: list[np.ndarray], exact: list[np.ndarray], scales: np.ndarray) -> float:
    equal = x / scales
    rounded = activation_rounded(equal, thresholds([{"": equal}])[""])
    products = [rounded @ int8_rounded(weight * scales[:, None]) for weight in weights]
    return relative_error(np.concatenate(products, 1), np.concatenate(exact, 1))
