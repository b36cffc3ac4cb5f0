"""Which backends there are. To add one: a module with a class that has the methods of `protocol.Backend`, and a line in BACKENDS."""

from __future__ import annotations

import importlib
from typing import Any

from runtime.core.errors import EngineError, nearest
from runtime.core.options import option
from runtime.engine.protocol import Backend

BACKENDS = {
    "onnx": "runtime.engine.onnx:OnnxEngine",
    "openvino": "runtime.engine.openvino:OpenVINOEngine",
    "tensorrt": "runtime.engine.tensorrt:TensorRTEngine",
    "tensorrt-rtx": "runtime.engine.tensorrt:TensorRTRTXEngine",
}
CUDA_ORDER = ("tensorrt", "tensorrt-rtx", "onnx")  # what `--backend auto` tries on an NVIDIA GPU


def backend_option() -> Any:
    """The field of options that choose a backend."""
    return option("auto", "the engine to run on", choices=("auto", *BACKENDS))


def backend_class(name: str) -> type[Backend]:
    """The engine class registered under `name`; EngineError suggests the nearest name for a misspelt one."""
    if name not in BACKENDS:
        raise EngineError(f'no backend "{name}"{nearest(name, BACKENDS)}')
    module, _, attribute = BACKENDS[name].partition(":")
    return getattr(importlib.import_module(module), attribute)
