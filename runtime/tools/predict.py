"""What a bundle's stages should take on a machine: the larger of its operations at the peak rate and its bytes at the memory's rate.

A roofline says what a machine allows, not what an engine reaches. This machine's rates are measured, with ONNX Runtime's matrix
products: one that is all arithmetic, one that is all reading. The others' are the makers' numbers without sparsity, and `reached` is
the share of them that engines commonly reach on dense transformers, an assumption and labelled so.
"""

from __future__ import annotations

import time
import timeit
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from runtime.bundle import DECODER, VISION, Bundle
from runtime.core.errors import EngineError, nearest
from runtime.tools.table import table
from runtime.tools.work import Work, decode_work, prefill_work, vision_work

if TYPE_CHECKING:
    from onnx import ModelProto

_TEXT = 32  # positions of chat template and question


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


@dataclass(frozen=True)
class Stage:
    """seconds: predicted; bound: what it waits for, "arithmetic" or "memory"; operations and bytes: of the whole stage."""

    name: str
    seconds: float
    bound: str
    operations: float
    bytes: float


@dataclass(frozen=True)
class Prediction:
    machine: Machine
    stages: list[Stage]

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def predict(bundle: Bundle, name: str) -> Prediction:
    """Stage times on "cpu" (this one, measured now) or a machine of MACHINES; EngineError for another name."""
    if name != "cpu" and name not in MACHINES:
        raise EngineError(f'no machine "{name}"{nearest(name, ["cpu", *MACHINES])}')
    machine = measured() if name == "cpu" else MACHINES[name]
    stages = []
    if bundle.has(VISION):
        stages.append(_stage(f"encode and compress {bundle.manifest.frames} frames", vision_work(bundle), machine))
    if bundle.has(DECODER):
        positions = bundle.manifest.tokens_per_clip + _TEXT
        stages.append(_stage(f"prefill {positions:,} positions", prefill_work(bundle, positions), machine))
        if len(stages) == 2:
            first = tuple(stages)
            total = sum(stage.seconds for stage in first)
            stages.append(Stage("time to first token", total, "", sum(s.operations for s in first), sum(s.bytes for s in first)))
        stages.append(_stage("decode one token", decode_work(bundle, positions), machine))
    return Prediction(machine, stages)


def text(prediction: Prediction) -> str:
    """The table for people, with the label that it is a prediction."""
    machine = prediction.machine
    rows = [
        [stage.name, f"{stage.seconds:.3g}", stage.bound, f"{stage.operations / 1e9:,.1f}", f"{stage.bytes / 1e6:,.0f}"]
        for stage in prediction.stages
    ]
    rates = ", ".join(f"{precision} {rate / 1e9:,.0f} GFLOP/s" for precision, rate in machine.rates.items())
    share = "as measured" if machine.reached == 1 else f"of which {machine.reached:.0%} are assumed to be reached"
    return "\n".join(
        [
            f"prediction, not a measurement: {machine.name}, {rates}, {machine.bandwidth / 1e9:,.0f} GB/s, {share}",
            f"({machine.source})",
            table(["stage", "seconds", "bound by", "GFLOP", "MB"], rows, right=(1, 3, 4)),
        ]
    )


def _stage(name: str, work: Work, machine: Machine) -> Stage:
    arithmetic = sum(count / machine.rates[precision] for precision, count in work.operations.items()) / machine.reached
    memory = work.bytes / machine.bandwidth / machine.reached
    bound = "arithmetic" if arithmetic >= memory else "memory"
    return Stage(name, max(arithmetic, memory), bound, sum(work.operations.values()), work.bytes)


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
    x, w = np.ones((1, side), np.float32), np.ones((side, side), np.float32)
    model = _model(f"float[1, {side}] x, float[{side}, {side}] w", f"float[1, {side}] y", "y = MatMul(x, w)")
    return w.nbytes / _seconds(model, {"x": x, "w": w})


def _product(precision: str, rows: int, width: int, wide: int) -> ModelProto:
    """x [1, rows, width] times a constant, in float32 or in Q/DQ."""
    rng = np.random.default_rng(1)
    x, y = f"float[1, {rows}, {width}] x", f"float[1, {rows}, {wide}] y"
    if precision == "fp32":
        return _model(x, y, "y = MatMul(x, w)", w=rng.normal(size=(width, wide)).astype(np.float32))
    quantized = """
        x8 = QuantizeLinear(x, xs, xz)
        xd = DequantizeLinear(x8, xs, xz)
        wd = DequantizeLinear<axis = 1>(w8, ws, wz)
        y = MatMul(xd, wd)
    """
    w8 = rng.integers(-127, 128, (width, wide), np.int8)
    ws, wz = np.full(wide, 0.01, np.float32), np.zeros(wide, np.int8)
    return _model(x, y, quantized, w8=w8, ws=ws, wz=wz, xs=np.float32(0.03), xz=np.int8(0))


def _model(inputs: str, outputs: str, nodes: str, **constants: Any) -> ModelProto:
    from onnx import numpy_helper, parser

    model = parser.parse_model(f'<ir_version: 10, opset_import: ["" : 20]> product ({inputs}) => ({outputs}) {{ {nodes} }}')
    model.graph.initializer.extend(numpy_helper.from_array(np.asarray(array), name) for name, array in constants.items())
    return model


def _seconds(model: ModelProto, feeds: dict[str, np.ndarray]) -> float:
    """Of a run on ONNX Runtime, the fastest of five after one to warm up: the rate is measured, not the noise."""
    from runtime.engine.onnx import OnnxEngine

    engine = OnnxEngine.load(model.SerializeToString())
    try:
        return min(timeit.repeat(lambda: engine.run(feeds), timer=time.perf_counter, number=1, repeat=6)[1:])
    finally:
        engine.close()
