"""Which TensorRT engines a bundle's directory has, and whether they were built from its graphs."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from runtime.bundle import Bundle


@dataclass(frozen=True)
class EngineDirectory:
    """A built engine directory and what its build.json says."""

    directory: str
    backend: str
    version: str
    target: str
    precision: str
    graphs: dict[str, int]  # {graph: bytes}
    stale: tuple[str, ...]  # graphs that were built from another ONNX


def built_engines(bundle: Bundle) -> list[EngineDirectory]:
    """By directory; those whose record can't be read are left out."""
    found = []
    for file in sorted((bundle.path / "engines").glob("*/build.json")):
        record = _read(file)
        if record is None:
            continue
        entries = record["graphs"]
        current = {graph: f"{graph}.onnx" in bundle.manifest.files and bundle.sha256(graph) for graph in entries}
        found.append(
            EngineDirectory(
                directory=file.parent.relative_to(bundle.path).as_posix(),
                **{name: str(record.get(name, "?")) for name in ("backend", "version", "target", "precision")},
                graphs={graph: entry["size"] for graph, entry in entries.items()},
                stale=tuple(graph for graph, entry in entries.items() if entry["onnx_sha256"] != current[graph]),
            )
        )
    return found


def _read(file: Path) -> dict[str, Any] | None:
    """A build.json; None for one that this runtime can't read (the engine loader says why when it is asked for it)."""
    try:
        record = json.loads(file.read_text())
        return record if all({"size", "onnx_sha256"} <= entry.keys() for entry in record["graphs"].values()) else None
    except (OSError, ValueError, KeyError, AttributeError, TypeError):
        return None
