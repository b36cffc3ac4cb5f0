"""Q/DQ nodes into a graph, by ONNX Runtime's quantiser, in the form in which the engines fuse them.

    w8a8(model, thresholds, nodes)       int8 weights and activations: DequantizeLinear on both sides of a MatMul
    w8(model, layers)                    int8 weights alone, a scale for each output channel
    w4(model, layers, block)             int4 weights alone, a scale for each block of inputs of an output channel

All are symmetric (zero point 0), which TensorRT requires. The model's weights must be in memory; it is changed and returned.

K inputs, N outputs of a layer.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Collection, Iterator, Mapping

import numpy as np
import onnx
from onnx import helper, numpy_helper

from export.quantize.layers import Layer

OPSET_OF_INT4 = 21


def w8a8(model: onnx.ModelProto, thresholds: Mapping[str, float], nodes: Collection[str]) -> onnx.ModelProto:
    """Quantise the MatMuls `nodes`; thresholds: {tensor that one of them reads: largest magnitude that int8 stands for}."""
    if not nodes:
        return model  # to the quantiser an empty list means all
    from onnxruntime.quantization import CalibrationMethod, QuantType
    from onnxruntime.quantization.calibrate import TensorData, TensorsData
    from onnxruntime.quantization.qdq_quantizer import QDQQuantizer

    def bounds(threshold: float) -> TensorData:
        return TensorData(lowest=np.float32(-threshold), highest=np.float32(threshold))

    ranges = TensorsData(CalibrationMethod.MinMax, {name: bounds(threshold) for name, threshold in thresholds.items()})
    with _quiet():
        quantizer = QDQQuantizer(
            model,
            per_channel=True,
            reduce_range=False,
            weight_qType=QuantType.QInt8,
            activation_qType=QuantType.QInt8,
            tensors_range=ranges,
            nodes_to_quantize=list(nodes),
            nodes_to_exclude=[],
            op_types_to_quantize=["MatMul"],
            # the products leave in float: one rounding less, and the bias behind them needs none
            extra_options={"ActivationSymmetric": True, "WeightSymmetric": True, "OpTypesToExcludeOutputQuantization": ["MatMul"]},
        )
        quantizer.quantize_model()
        quantizer.model.topological_sort()
    model = quantizer.model.model
    _lift_biases(model, nodes)
    return model


def w8(model: onnx.ModelProto, layers: Collection[Layer]) -> onnx.ModelProto:
    """Quantise the weights of `layers` to int8 by output channel."""
    weights = {layer.weight for layer in layers}
    kept, dequantize = [], []
    for tensor in model.graph.initializer:
        if tensor.name not in weights:
            kept.append(tensor)
            continue
        values, scales = rows_to_int8(numpy_helper.to_array(tensor).T)
        name = tensor.name
        kept.append(numpy_helper.from_array(np.ascontiguousarray(values.T), f"{name}/int8"))
        kept.append(numpy_helper.from_array(scales, f"{name}/scale"))
        inputs = [f"{name}/int8", f"{name}/scale"]
        dequantize.append(helper.make_node("DequantizeLinear", inputs, [name], f"{name}/DequantizeLinear", axis=1))
    _replace(model, [*dequantize, *model.graph.node], kept)
    return model


def w4(model: onnx.ModelProto, layers: Collection[Layer], block: int) -> onnx.ModelProto:
    """Quantise the weights of `layers` to int4; `block` divides the K of each. The opset becomes OPSET_OF_INT4 where it is lower."""
    from onnxruntime.quantization import QuantFormat
    from onnxruntime.quantization.matmul_nbits_quantizer import DefaultWeightOnlyQuantConfig, MatMulNBitsQuantizer

    chosen = {layer.node for layer in layers}
    others = [node.name for node in model.graph.node if node.op_type == "MatMul" and node.name not in chosen]
    config = DefaultWeightOnlyQuantConfig(block_size=block, is_symmetric=True, quant_format=QuantFormat.QDQ, bits=4)
    with _quiet():
        quantizer = MatMulNBitsQuantizer(model, algo_config=config, nodes_to_exclude=others)
        quantizer.process()
    return quantizer.model.model


def rows_to_int8(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """float [R, C] -> int8 [R, C] and float32 scales [R]: row r is values[r] * scales[r], its largest magnitude 127 steps."""
    scales = (np.abs(rows).max(axis=1) / 127).astype(np.float32)
    scales[scales == 0] = 1.0
    values = np.empty(rows.shape, np.int8)
    for start in range(0, len(rows), 4096):  # an embedding table in float64 would be twice its size
        part = slice(start, start + 4096)
        values[part] = np.clip(np.rint(rows[part] / scales[part, None]), -127, 127)
    return values, scales


def int8_rounded(weight: np.ndarray) -> np.ndarray:
    """What a weight [K, N] is worth after it was rounded to int8 by output channel."""
    values, scales = rows_to_int8(weight.T)
    return (values * scales[:, None]).T


def _lift_biases(model: onnx.ModelProto, nodes: Collection[str]) -> None:
    """Biases [N] behind the products `nodes` become [1, 1, N].

    ONNX Runtime joins a MatMul and the Add of a row to a Gemm before it looks for Q/DQ, and has no integer Gemm with a float bias;
    a row of three dimensions it leaves alone.
    """
    graph = model.graph
    products = {node.output[0] for node in graph.node if node.name in set(nodes)}
    biases = {tensor.name: tensor for tensor in graph.initializer if len(tensor.dims) == 1}
    lifted: dict[str, str] = {}
    for node in graph.node:
        if node.op_type != "Add" or not products.intersection(node.input):
            continue
        for index, name in enumerate(node.input):
            if name in biases:
                if name not in lifted:
                    lifted[name] = f"{name}/row"
                    row = numpy_helper.to_array(biases[name])[None, None]
                    graph.initializer.append(numpy_helper.from_array(row, lifted[name]))
                node.input[index] = lifted[name]
    read = {name for node in graph.node for name in node.input} | {output.name for output in graph.output}
    _replace(model, list(graph.node), [tensor for tensor in graph.initializer if tensor.name not in lifted.keys() - read])


def _replace(model: onnx.ModelProto, nodes: list[onnx.NodeProto], tensors: list[onnx.TensorProto]) -> None:
    """Make these the graph's nodes and initializers. Weights are moved, not copied, one by one."""
    old = model.graph
    graph = onnx.GraphProto(name=old.name, doc_string=old.doc_string)
    for tensor in tensors:
        graph.initializer.add().CopyFrom(tensor)
    graph.node.extend(nodes)
    for part in ("input", "output", "value_info", "metadata_props"):
        getattr(graph, part).extend(getattr(old, part))
    model.graph.CopyFrom(graph)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep the quantiser's log, a line a node, off the user's terminal."""
    root = logging.getLogger()
    before = root.manager.disable
    logging.disable(logging.ERROR)
    try:
        yield
    finally:
        logging.disable(before)
