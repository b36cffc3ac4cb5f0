"""Does a given release of TensorRT support this graph? Two answers that do not need that release:

check(model, "10.3")     from the parser's published operator table: each unsupported node, with the reason
require(model, "10.3")   the same as an ExportError that names the first one
parse_with_rtx(path)     from a real parser: that of the installed TensorRT-RTX
"""

from __future__ import annotations

from pathlib import Path

from export.tensorrt.nodes import Unsupported, check, require
from export.tensorrt.operators import PARSERS, RELEASES, release_of

__all__ = ["PARSERS", "RELEASES", "Unsupported", "check", "parse_with_rtx", "release_of", "require"]


def parse_with_rtx(path: Path) -> list[str] | None:
    """Errors of TensorRT-RTX's parser, each one line that names its node; None where TensorRT-RTX is not installed."""
    from runtime.engine import trt_api

    return trt_api.parse_errors("tensorrt-rtx", path) if trt_api.installed("tensorrt-rtx") else None
