"""Engines: a graph of a bundle, loaded and run on NumPy arrays by ONNX Runtime, OpenVINO or TensorRT.

What a backend provides is in `protocol`; which backends there are, where a graph runs and how it is loaded in `open`.
Modules of this package import from those; everyone else imports the names below.
"""

from runtime.engine.open import (
    BACKENDS,
    Placement,
    backend_class,
    backend_option,
    open_engine,
    open_engines,
    place,
    placed,
)
from runtime.engine.protocol import Backend, Engine, EngineOptions, State, TensorSpec, check_feeds

__all__ = [
    "BACKENDS",
    "Backend",
    "Engine",
    "EngineOptions",
    "Placement",
    "State",
    "TensorSpec",
    "backend_class",
    "backend_option",
    "check_feeds",
    "open_engine",
    "open_engines",
    "place",
    "placed",
]
