"""What a pass may know of the graph besides the graph itself."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import onnx


@dataclass(frozen=True)
class Context:
    """graph: the bundle's name of the graph, e.g. "vision"; model: as it was before the passes, with the exporter's metadata;
    compression: the expanded spec of the `compress` nodes, for passes that need it."""

    graph: str
    model: onnx.ModelProto
    compression: str = ""
