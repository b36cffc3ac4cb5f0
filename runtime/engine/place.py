"""`--device auto`: the device that the graphs of a bundle run on when none was named. runtime/cpp/src/engine.cpp has the same rule.

    tensorrt, tensorrt-rtx      the GPU: they have no other device
    openvino, and bf16          the CPU: OpenVINO's other devices round more coarsely than the graph says, so they must be named
    onnx                        the GPU where the CUDA provider computes on it, else the CPU
    auto                        the GPU where TensorRT has engines of all graphs, or where onnx would use it, else the CPU

One device for all graphs of a bundle, chosen before weights are read. Which backend then runs on a CPU is another question, which
`python -m runtime tune` answers by measuring. A machine with neither a GPU nor a CUDA provider offers no choice, so nothing is logged.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from runtime.bundle import Bundle
from runtime.core.errors import EngineError, UserError
from runtime.core.progress import log
from runtime.engine import cuda
from runtime.engine.onnx import has_cuda_provider
from runtime.engine.protocol import EngineOptions
from runtime.engine.registry import CUDA_ORDER, backend_class
from runtime.engine.trt_records import find_engine


@dataclass(frozen=True)
class Placement:
    """options: with a device; note: why that one, as a line for the log, "" where there was no choice."""

    options: EngineOptions
    note: str = ""


def place(bundle: Bundle, backend: str = "auto", options: EngineOptions = EngineOptions()) -> Placement:
    """The device of every graph of `bundle`; options that name one are returned unchanged.

    EngineError for an unknown backend, and for TensorRT without a GPU.
    """
    if options.device != "auto":
        return Placement(options)
    on_gpu, on_cpu, gpus = replace(options, device="cuda"), replace(options, device="cpu"), cuda.gpus()
    if backend.startswith("tensorrt"):
        if not gpus:
            raise EngineError(f"backend {backend} can't run here: {cuda.no_gpu()}")
        return Placement(on_gpu)
    if backend == "openvino" or options.bf16:
        return Placement(on_cpu)
    if not gpus:
        why_not = (cuda.no_gpu() or "").partition(";")[0]
        return Placement(on_cpu, f"device cpu: {why_not}" if has_cuda_provider() else "")
    reasons = []
    for name in CUDA_ORDER if backend == "auto" else (backend,):
        reason = _missing(bundle, name)
        if reason is None:
            return Placement(on_gpu, f"device cuda: {gpus[0].name}, backend {name}")
        reasons.append(f"{name}: {reason}")
    return Placement(on_cpu, f"device cpu, not {gpus[0].name}: {'; '.join(reasons)}")


def placed(bundle: Bundle, backend: str = "auto", options: EngineOptions = EngineOptions()) -> EngineOptions:
    """The options of `place`; where "auto" had a choice, the reason is logged."""
    placement = place(bundle, backend, options)
    if placement.note:
        log(placement.note)
    return placement.options


def _missing(bundle: Bundle, backend: str) -> str | None:
    """Why `backend` can't run all graphs of `bundle` on the GPU; None where it can."""
    reason = backend_class(backend).unavailable("cuda")
    if reason or backend == "onnx":
        return reason
    try:
        for graph in bundle.graphs("cuda"):
            find_engine(bundle, backend, graph)
    except UserError as error:
        return str(error)
    return None
