"""The compression plugin in TensorRT engines: registered before a graph is parsed, named in build.json, loaded before an engine is.

In `vision.onnx` compression is a call of `gridpool::StGridPool`, a function whose body is the plain nodes (plugins/op.py). A
TensorRT that knows a plugin of that name uses the plugin, any other the body. Three choices:

    none            the body
    aot             the ahead-of-time Python plugin (TensorRT 10.9 and newer): the engine carries its kernel
    PATH of a .so   the plugin library; it is copied beside the engine, which can't be read without it
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from runtime.core.errors import EngineError
from runtime.core.files import sha256_of
from runtime.engine import trt_api as facade

NONE, AOT, LIBRARY = "none", "aot", "library"


@dataclass(frozen=True)
class PluginChoice:
    """kind: NONE | AOT | LIBRARY; library: the file of the third."""

    kind: str = NONE
    library: Path | None = None

    @classmethod
    def parse(cls, text: str, backend: str) -> PluginChoice:
        """The choice that `--plugin TEXT` names; EngineError where this backend or file can't be it."""
        if text == NONE:
            return cls()
        if backend != "tensorrt":
            raise EngineError(f"--plugin {text} is for --backend tensorrt; {backend} builds the plain nodes, leave it out")
        if text == AOT:
            return cls(AOT)
        path = Path(text)
        if not path.is_file():
            raise EngineError(f'no plugin library at {path}; expected "{NONE}", "{AOT}" or a library built with cmake -S plugins')
        return cls(LIBRARY, path)

    @property
    def key(self) -> str:
        """What tells engines with different plugins apart."""
        return f"{LIBRARY}:{sha256_of(self.library)}" if self.library else self.kind

    def register(self, backend: str) -> None:
        """Make the plugin known to TensorRT. EngineError where this release or file has none."""
        if self.kind == NONE:
            return
        trt = facade.load(backend)
        if self.library:
            from plugins.tensorrt import load_library

            load_library(trt, self.library)
        else:
            from plugins.tensorrt.aot import register

            register(trt)


def has_plugin_layer(backend: str, network: Any) -> bool:
    """Whether a parsed network has a plugin layer."""
    kinds = facade.load(backend).LayerType
    return any(network.get_layer(index).type == kinds.PLUGIN_V3 for index in range(network.num_layers))
