"""How fast machines compute and read, for predictions.

This machine's rates are measured, with ONNX Runtime's matrix products: one that is all arithmetic, one that is all reading. The
others' are the makers' numbers without sparsity, and `reached` is the share of them that engines commonly reach on dense transformers,
an assumption and labelled so.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from onnx import ModelProto, NodeProto


@dataclass(frozen=True)
class Machine:
    """rates: operations a second by precision; bandwidth: bytes a second; reached: share of both that is expected; source: of the rates."""

    name: str
    rates: dict[str, float]
    bandwidth: float
    reached: float
    source: str


MACHINES = {
    "orin": Machine(
        "Jetson AGX Orin 64GB",
        {"fp32": 5.3e12, "fp16": 42.5e12, "int8": 85e12},
        204.8e9,
        0.5,
        "NVIDIA's technical brief: 170 INT8 TOPS sparse on the GPU, half of it dense, half of that in FP16; 204.8 GB/s",
    ),
    "thor": Machine(
        "Jetson AGX Thor T5000",
        {"fp32": 8e12, "fp16": 258e12, "int8": 517e12},
        273e9,
        0.5,
        "NVIDIA's 2070 FP4 TFLOPS sparse: an eighth of it in dense FP16, a quarter in 8 bits; 273 GB/s",
    ),
    "h200": Machine(
        "H200 SXM", {"fp32": 67e12, "fp16": 989e12, "int8": 1979e12}, 4.8e12, 0.5, "NVIDIA's data sheet, without sparsity"
    ),
}


def measured() -> Machine:
    """This machine's CPU by ONNX Runtime's products: float32 and int8 of an encoder's size, and one row by a matrix that no cache holds.

    Takes about two seconds, and 256 MB.
    """
    rows, width, wide = 729, 1152, 4304
    x = np.random.default_rng(0).normal(size=(1, rows, width)).astype(np.float32)
    operations = 2 * rows * width * wide
    rates = {precision: operations / _seconds(_product(precision, rows, width, wide), {"x": x}) for precision in ("fp32", "int8")}
    rates["fp16"] = rates["fp32"]  # ONNX Runtime computes float16 in float32 on a CPU
    return Machine(
        "this CPU", rates, _read_rate(), 1.0, "measured just now: a matrix product of an encoder's size, and one that only reads"
    )


def _read_rate(side: int = 8192) -> float:
    """Bytes a second that a row times a float32 matrix [side, side] reads: what a decode step does, with all threads."""
    from onnx import helper

    x, w = np.ones((1, side), np.float32), np.ones((side, side), np.float32)
    model = _model([helper.make_node("MatMul", ["x", "w"], ["y"])], {"x": x.shape, "w": w.shape}, x.shape, {})
    return w.nbytes / _seconds(model, {"x": x, "w": w})


def _product(precision: str, rows: int, width: int, wide: int) -> ModelProto:
    """x [1, rows, width] times a constant, in float32 or in Q/DQ."""
    from onnx import helper

    rng = np.random.default_rng(1)
    if precision == "fp32":
        constants = {"w": rng.normal(size=(width, wide)).astype(np.float32)}
        nodes = [helper.make_node("MatMul", ["x", "w"], ["y"])]
    else:
        constants = {
            "w8": rng.integers(-127, 128, (width, wide), np.int8),
            "ws": np.full(wide, 0.01, np.float32),
            "wz": np.zeros(wide, np.int8),
            "xs": np.asarray(0.03, np.float32),
            "xz": np.asarray(0, np.int8),
        }
        nodes = [
            helper.make_node("QuantizeLinear", ["x", "xs", "xz"], ["x8"]),
            helper.make_node("DequantizeLinear", ["x8", "xs", "xz"], ["xd"]),
            helper.make_node("DequantizeLinear", ["w8", "ws", "wz"], ["wd"], axis=1),
            helper.make_node("MatMul", ["xd", "wd"], ["y"]),
        ]
    return _model(nodes, {"x": (1, rows, width)}, (1, rows, wide), constants)


def _model(
    nodes: list[NodeProto], inputs: Mapping[str, tuple[int, ...]], y: tuple[int, ...], constants: Mapping[str, np.ndarray]
) -> ModelProto:
    from onnx import TensorProto, helper, numpy_helper

    infos = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in {**inputs, "y": y}.items()]
    weights = [numpy_helper.from_array(array, name) for name, array in constants.items()]
    graph = helper.make_graph(nodes, "product", infos[:-1], infos[-1:], weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def _seconds(model: ModelProto, feeds: dict[str, np.ndarray]) -> float:
    """Of a run on ONNX Runtime."""
    from runtime.engine.onnx import OnnxEngine

    engine = OnnxEngine.load(model.SerializeToString())
    try:
        return _fastest(lambda: engine.run(feeds))
    finally:
        engine.close()


def _fastest(function: Callable[[], object]) -> float:
    """Seconds of the fastest of five calls after one to warm up: the rate is measured, not the noise."""
    function()
    seconds = []
    for _ in range(5):
        start = time.perf_counter()
        function()
        seconds.append(time.perf_counter() - start)
    return min(seconds)
