"""StGridPool in TensorRT: a library with an IPluginV3 (plugin.cpp), or an ahead-of-time plugin from Python (aot.py).

Either must be registered before a graph with calls of `gridpool::StGridPool` is parsed. TensorRT's parser then uses the plugin if
its release has ENABLE_PLUGIN_OVERRIDE, or if the function has no body (`drop_body`); otherwise it uses the body.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from plugins.errors import EngineError
from plugins.op import DOMAIN, NAME, VERSION

LIBRARY = "libst_gridpool_plugin.so"


def load_library(trt: Any, path: Path) -> None:
    """Load libst_gridpool_plugin.so into the plugin registry of `trt`, the imported `tensorrt`.

    Engines with the plugin need this before they are deserialized. EngineError where the file does not exist, does not load, or
    registers another version.
    """
    if not path.is_file():
        raise EngineError(f"{path} does not exist; build it with cmake -S plugins, or use an engine built without the plugin")
    if is_registered(trt):
        return
    if trt.get_plugin_registry().load_library(str(path)) is None or not is_registered(trt):
        plugin = f"{DOMAIN}::{NAME} version {VERSION} with TensorRT {trt.__version__}"
        raise EngineError(f"{path} does not register {plugin}; build it against this TensorRT")


def is_registered(trt: Any) -> bool:
    """Whether a graph that is parsed now, or an engine that is read, would find the plugin."""
    return trt.get_plugin_registry().get_creator(NAME, VERSION, DOMAIN) is not None


def prefer_plugin(trt: Any, parser: Any) -> bool:
    """Let `parser` use a registered plugin instead of a function's body; False where its release (before 10.16) has no such flag."""
    flag = getattr(getattr(trt, "OnnxParserFlag", None), "ENABLE_PLUGIN_OVERRIDE", None)
    if flag is None:
        return False
    parser.set_flag(flag)
    return True


def drop_body(model: Any) -> bool:
    """Remove the function's body from an ONNX model, for parsers without that flag; False where the model has no such function.

    Only a TensorRT with the plugin can read what is left.
    """
    kept = [function for function in model.functions if function.domain != DOMAIN]
    found = len(kept) < len(model.functions)
    del model.functions[:]
    model.functions.extend(kept)
    return found
