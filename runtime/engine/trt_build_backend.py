"""`build --backend auto`: which TensorRT builds engines here, and the line that says why."""

from __future__ import annotations

from runtime.core.errors import EngineError, UserError
from runtime.engine import cuda
from runtime.engine import trt_api as facade
from runtime.engine.trt_plugin import NONE


def backend_that_builds(plugin: str) -> tuple[str, str]:
    """The backend that can build here, tensorrt before tensorrt-rtx, and the line that says why. EngineError where none can."""
    if plugin != NONE:
        return "tensorrt", "backend tensorrt: only it takes a plugin"
    why_not = _tensorrt_fault()
    if why_not is None:
        return "tensorrt", f"backend tensorrt: {facade.load('tensorrt').__version__}, for {cuda.gpus()[0].name}"
    try:
        facade.load("tensorrt-rtx")
    except UserError as error:
        raise EngineError(f"nothing here builds TensorRT engines: {why_not}; {error}") from None
    return "tensorrt-rtx", f"backend tensorrt-rtx, not tensorrt: {why_not}"


def _tensorrt_fault() -> str | None:
    """Why the `tensorrt` backend can't build here; None where it can."""
    if facade.installed("tensorrt"):
        reason = cuda.no_gpu()
        if reason:
            return f"tensorrt builds on the GPU that it builds for, and {reason.partition(';')[0]}"
    try:
        facade.load("tensorrt")
    except UserError as error:
        return str(error)
    return None
