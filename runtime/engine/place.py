"""`--device auto`: where the graphs of a bundle run when nobody said so. The rule of runtime/cpp/src/engine.cpp, in the same words.

    tensorrt, tensorrt-rtx      the GPU: they have no other device
    openvino, and bf16          the CPU: its other devices round more coarsely than the graph says, so they are named
    onnx                        the GPU where the CUDA provider computes on it, else the CPU
    auto                        the GPU where TensorRT has engines of all graphs, or where onnx would take it, else the CPU

One choice for all graphs of a bundle, made before weights are read. Which backend then runs on a CPU is another question: what
`python -m runtime tune` measured. Where there is neither a GPU nor a CUDA provider, nothing was chosen and there is nothing to say.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from runtime.bundle import DECODER, VISION, VISION_COMPRESSOR, VISION_ENCODER, Bundle
from runtime.core.errors import EngineError, UserError
from runtime.engine import EngineOptions, backend_class, cuda
from runtime.engine.onnx import has_cuda_provider


@dataclass(frozen=True)
class Placement:
    """options: with a device; note: why it is that one, as a line for the log, "" where there was no choice."""

    options: EngineOptions
    note: str = ""


def place(bundle: Bundle, backend: str = "auto", options: EngineOptions = EngineOptions()) -> Placement:
    """The device of every graph of `bundle`; options that name one come back as they are.

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
    for name in ("tensorrt", "tensorrt-rtx", "onnx") if backend == "auto" else (backend,):
        reason = _missing(bundle, name)
        if reason is None:
            return Placement(on_gpu, f"device cuda: {gpus[0].name}, backend {name}")
        reasons.append(f"{name}: {reason}")
    return Placement(on_cpu, f"device cpu, not {gpus[0].name}: {'; '.join(reasons)}")


def _missing(bundle: Bundle, backend: str) -> str | None:
    """Why `backend` can't run all graphs of `bundle` on the GPU; None where it can."""
    reason = backend_class(backend).unavailable("cuda")
    if reason or backend == "onnx":
        return reason
    from runtime.engine.trt_build import find_engine

    try:
        for graph in _graphs(bundle):
            find_engine(bundle, backend, graph)
    except UserError as error:
        return str(error)
    return None


def _graphs(bundle: Bundle) -> list[str]:
    """The graphs that answer questions."""
    vision = [VISION_ENCODER, VISION_COMPRESSOR] if bundle.is_split else [VISION]
    return [graph for graph in (*vision, DECODER) if f"{graph}.onnx" in bundle.manifest.files]
