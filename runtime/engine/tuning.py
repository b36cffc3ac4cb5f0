"""What `python -m runtime tune` measured on this machine: backend and threads of each component of a bundle, for `--backend auto`.

One file per bundle and machine in the user's cache (a bundle may be read-only, or move to another machine), named by the graphs'
digests. It is valid only while the processor, the cores that the process may use and the backend's release are those of the
measurement. Without one, nothing is guessed: `auto` runs ONNX Runtime with its default number of threads.
"""

from __future__ import annotations

import json
import platform
from dataclasses import dataclass
from hashlib import sha256
from importlib import metadata
from pathlib import Path
from typing import Any

from runtime.bundle import Bundle
from runtime.bundle.graphs import component_of
from runtime.core.files import atomic_file
from runtime.core.machine import cache_directory, cores, cpu_model

_RELEASES = {"onnx": ("onnxruntime", "onnxruntime-gpu"), "openvino": ("openvino",)}


@dataclass(frozen=True)
class Choice:
    """backend, and CPU threads of a run (0 for the backend's default)."""

    backend: str
    threads: int


def chosen(bundle: Bundle, graph: str) -> Choice | None:
    """What was measured to be fastest here for the component of `graph`; None without a valid measurement."""
    try:
        record = json.loads(file_of(bundle).read_text())
        entry = record["components"][component_name(graph)]
        choice = Choice(str(entry["backend"]), int(entry["threads"]))
        is_valid = record["schema_version"] == 2 and record["machine"] == machine() and entry["release"] == release(choice.backend)
    except (OSError, ValueError, KeyError, TypeError, RuntimeError):
        return None
    return choice if is_valid and choice.threads >= 0 else None


def write(bundle: Bundle, choices: dict[str, Choice], measured: list[dict[str, Any]]) -> Path:
    """Record the choice for each component ("vision", "llm") and the measurements behind it; returns the file."""
    file = file_of(bundle)
    components = {
        name: {"backend": choice.backend, "threads": choice.threads, "release": release(choice.backend)}
        for name, choice in choices.items()
    }
    values = {"schema_version": 2, "bundle": str(bundle.path), "machine": machine()}
    record = values | {"components": components, "measured": measured}
    with atomic_file(file) as temporary:
        temporary.write_text(json.dumps(record, indent=1) + "\n")
    return file


def file_of(bundle: Bundle) -> Path:
    """The record for this bundle's content and this machine."""
    graphs = [bundle.sha256(graph) for graph in bundle.components]
    key = sha256(json.dumps([graphs, bundle.is_split, machine()]).encode()).hexdigest()[:32]
    return cache_directory("tuning") / f"{key}.json"


def component_name(graph: str) -> str:
    """ "vision" or "llm"."""
    return component_of(graph).partition("/")[0]


def machine() -> dict[str, Any]:
    """What a measurement depends on and a process can find out cheaply."""
    return {"cpu": cpu_model(), "cores": cores(), "system": f"{platform.system()} {platform.machine()}"}


def release(backend: str) -> str | None:
    """The installed release of the backend's package; None where it is not installed."""
    for package in _RELEASES.get(backend, ()):
        try:
            return metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return None
