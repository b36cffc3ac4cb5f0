"""Bundle -> compressed visual tokens -> answer, on the device. Never imports torch, transformers or export.

    from runtime import Bundle, VideoChat, LiveEncoder

What these names import is loaded when one of them is first used, so `import runtime` itself loads nothing.
"""

import os
from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from runtime.bundle import Bundle
    from runtime.chat import VideoChat
    from runtime.vision.live import LiveEncoder

__version__ = "0.1.0"
__all__ = ["Bundle", "LiveEncoder", "VideoChat"]

_MODULES = {"Bundle": "runtime.bundle", "VideoChat": "runtime.chat", "LiveEncoder": "runtime.vision.live"}

# ONNX Runtime's own packages report sessions and models to Microsoft since 1.29, unless this is set before they start.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")


def __getattr__(name: str) -> object:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_MODULES[name]), name)
