"""Which backends there are, and graphs of a bundle loaded on the device and backend that the user named, or on the best here.

To add a backend: a module with a class that has the methods of `protocol.Backend`, and a line in BACKENDS.

One device for all graphs of a bundle, chosen before weights are read. `--device auto` is (runtime/cpp/src/engine.cpp has the same rule)

    tensorrt, tensorrt-rtx      the GPU: they have no other device
    openvino, and bf16          the CPU: OpenVINO's other devices round more coarsely than the graph says, so they must be named
    onnx                        the GPU where the CUDA provider computes on it, else the CPU
    auto                        the GPU where TensorRT has engines of all graphs, or where onnx would use it, else the CPU

`--backend auto` is the first of tensorrt, tensorrt-rtx and onnx that can run on the GPU and has the engines; on a CPU the backend that
`python -m runtime tune` found to be fastest on this machine, else onnx.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass, replace
from typing import Any

from runtime.bundle import DECODER, DECODER_BATCH, VISION, VISION_COMPRESSOR, VISION_LOOP, Bundle
from runtime.bundle.graphs import LOGITS
from runtime.core.errors import EngineError, UserError, nearest
from runtime.core.options import option
from runtime.core.progress import log
from runtime.engine import cuda, tuning
from runtime.engine.onnx import has_cuda_provider
from runtime.engine.protocol import Backend, Engine, EngineOptions, check_available
from runtime.engine.trt_records import find_engine

BACKENDS = {
    "onnx": "runtime.engine.onnx:OnnxEngine",
    "openvino": "runtime.engine.openvino:OpenVINOEngine",
    "tensorrt": "runtime.engine.tensorrt:TensorRTEngine",
    "tensorrt-rtx": "runtime.engine.tensorrt:TensorRTRTXEngine",
}
CUDA_ORDER = ("tensorrt", "tensorrt-rtx", "onnx")  # what `--backend auto` tries on an NVIDIA GPU
_RESULTS = dict.fromkeys((VISION, VISION_LOOP, VISION_COMPRESSOR), ("vision graph", "visual_tokens"))
_RESULTS |= dict.fromkeys((DECODER, DECODER_BATCH), ("decoder", LOGITS))


def backend_option() -> Any:
    """The field of options that choose a backend."""
    return option("auto", "the engine to run on", choices=("auto", *BACKENDS))


def backend_class(name: str) -> type[Backend]:
    """The engine class registered under `name`; EngineError suggests the nearest name for a misspelt one."""
    if name not in BACKENDS:
        raise EngineError(f'no backend "{name}"{nearest(name, BACKENDS)}')
    module, _, attribute = BACKENDS[name].partition(":")
    return getattr(importlib.import_module(module), attribute)


def open_engine(bundle: Bundle, graph: str, backend: str = "auto", options: EngineOptions = EngineOptions()) -> Engine:
    """One graph. EngineError says why no backend, or not the one that was named, can run it.

    DECODER stands in for DECODER_BATCH in a bundle without it, and on a backend that runs no batches.
    """
    return open_engines(bundle, (graph,), backend, options)[0]


def open_engines(
    bundle: Bundle, graphs: tuple[str, ...], backend: str = "auto", options: EngineOptions = EngineOptions()
) -> tuple[Engine, ...]:
    """Several graphs of one component, all on the same backend."""
    options = place(bundle, backend, options).options
    if backend != "auto":
        return _open_all(backend_class(backend), bundle, graphs, options)
    order, options = _order(bundle, graphs[0], options)
    reasons = []
    for name in order:
        try:
            return _open_all(backend_class(name), bundle, graphs, options)
        except UserError as error:
            reasons.append(str(error))
    raise EngineError(f"no backend can run {', '.join(graphs)} on {options.device}: " + "; ".join(reasons))


@dataclass(frozen=True)
class Placement:
    """options: with a device; note: why that one, as a line for the log, "" where there was no choice."""

    options: EngineOptions
    note: str = ""


def place(bundle: Bundle, backend: str = "auto", options: EngineOptions = EngineOptions()) -> Placement:
    """The device of every graph of `bundle`; options that name one are returned unchanged.

    A machine with neither a GPU nor a CUDA provider offers no choice. EngineError for an unknown backend, and for TensorRT without a GPU.
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


def _order(bundle: Bundle, graph: str, options: EngineOptions) -> tuple[list[str], EngineOptions]:
    """The backends that "auto" tries, and the options with the number of threads that was measured, unless one was passed."""
    if options.bf16 or options.device not in ("cpu", "cuda"):
        return ["openvino"], options
    if options.device == "cuda":
        return list(CUDA_ORDER), options
    measured = tuning.chosen(bundle, graph)
    if measured is None or measured.backend not in BACKENDS or backend_class(measured.backend).unavailable("cpu"):
        return ["onnx"], options
    return list(dict.fromkeys([measured.backend, "onnx"])), replace(options, threads=options.threads or measured.threads)


def _open_all(backend: type[Backend], bundle: Bundle, graphs: tuple[str, ...], options: EngineOptions) -> tuple[Engine, ...]:
    if options.bf16 and not backend.takes_bf16:
        raise EngineError(f"backend {backend.backend} does not support bf16; pass --backend openvino, or leave --bf16 out")
    check_available(backend, options.device)
    opened: list[Engine] = []
    try:
        for graph in graphs:
            if graph == DECODER_BATCH and not (backend.takes_batches and bundle.has(graph)):
                graph = DECODER
            opened.append(backend.open(bundle, graph, options))
            part, result = _RESULTS.get(graph, ("", ""))
            if result and result not in (spec.name for spec in opened[-1].outputs):
                raise EngineError(f"the {part} has no output {result}; export the bundle again")
    except BaseException:
        for engine in opened:
            engine.close()
        raise
    return tuple(opened)
