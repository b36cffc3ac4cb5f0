"""Reading the structure of a bundle's ONNX file with the onnx package; weights stay unread."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from runtime.core.errors import BundleError, UserError, missing_package

if TYPE_CHECKING:
    import onnx


def read_graph(path: Path, inline: bool = False) -> onnx.ModelProto:
    """The model in `path`; BundleError if it is not one. inline: replace local functions by their nodes."""
    try:
        import onnx
        import onnx.inliner
    except ImportError:
        raise missing_package("onnx", "reading a graph", "runtime") from None

    with onnx_errors(path):
        model = onnx.load(str(path), load_external_data=False)
        if inline and model.functions:
            model = onnx.inliner.inline_local_functions(model)
        for node in model.graph.node:
            # protobuf gives names that are not UTF-8 as bytes
            if not all(isinstance(name, str) for name in (node.name, node.op_type, *node.input, *node.output)):
                raise ValueError("a node with a name that is not text")
    return model


@contextmanager
def onnx_errors(path: Path) -> Iterator[None]:
    """What the onnx package raises about a file, as a BundleError: its readers and checks have no common class of errors."""
    try:
        yield
    except (UserError, ImportError):
        raise
    except Exception as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:500]
        raise BundleError(f"{path} is not an ONNX file that can be read ({reason}); copy or export the bundle again") from None
