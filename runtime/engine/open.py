"""Load graphs of a bundle on the backend that the user named, or on the best one that can run them here.

"auto" is the first of tensorrt, tensorrt-rtx and onnx that can run on the GPU and has the engines; on a CPU the backend that
`python -m runtime tune` found to be fastest on this machine, else onnx. A device of "auto" is chosen by `place`.
"""

from __future__ import annotations

from dataclasses import replace

from runtime.bundle import DECODER, DECODER_BATCH, VISION, VISION_COMPRESSOR, VISION_LOOP, Bundle
from runtime.bundle.graphs import LOGITS
from runtime.core.errors import EngineError, UserError
from runtime.engine import tuning
from runtime.engine.place import place
from runtime.engine.protocol import Backend, Engine, EngineOptions
from runtime.engine.registry import BACKENDS, CUDA_ORDER, backend_class

_RESULTS = dict.fromkeys((VISION, VISION_LOOP, VISION_COMPRESSOR), ("vision graph", "visual_tokens"))
_RESULTS |= dict.fromkeys((DECODER, DECODER_BATCH), ("decoder", LOGITS))


def open_engine(bundle: Bundle, graph: str, backend: str = "auto", options: EngineOptions = EngineOptions()) -> Engine:
    """One graph. EngineError says why no backend, or not the one that was named, can run it."""
    return open_engines(bundle, (graph,), backend, options)[0]


def open_engines(
    bundle: Bundle, graphs: tuple[str, ...], backend: str = "auto", options: EngineOptions = EngineOptions()
) -> tuple[Engine, ...]:
    """Several graphs of one component, all on the same backend."""
    options = place(bundle, backend, options).options
    if backend != "auto":
        engine = backend_class(backend)
        if options.bf16 and not engine.takes_bf16:
            raise EngineError(f"backend {backend} does not support bf16; pass --backend openvino, or leave --bf16 out")
        reason = engine.unavailable(options.device)
        if reason:
            raise EngineError(f"backend {backend} can't run here: {reason}")
        return _open_all(engine, bundle, graphs, options)
    order, options = _order(bundle, graphs[0], options)
    reasons = []
    for name in order:
        engine = backend_class(name)
        reason = engine.unavailable(options.device)
        if reason is None:
            try:
                return _open_all(engine, bundle, graphs, options)
            except UserError as error:
                reason = str(error)
        reasons.append(f"{name}: {reason}")
    raise EngineError(f"no backend can run {', '.join(graphs)} on {options.device}: " + "; ".join(reasons))


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
    opened: list[Engine] = []
    try:
        for graph in graphs:
            opened.append(backend.open(bundle, graph, options))
            part, result = _RESULTS.get(graph, ("", ""))
            if result and result not in (spec.name for spec in opened[-1].outputs):
                raise EngineError(f"the {part} has no output {result}; export the bundle again")
    except BaseException:
        for engine in opened:
            engine.close()
        raise
    return tuple(opened)
