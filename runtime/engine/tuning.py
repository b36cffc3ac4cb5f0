"""What `python -m runtime tune` measured on this machine: backend and threads of each half of a bundle, for `--backend auto`.

A file a bundle and machine in the user's cache (a bundle may be read-only, or move to another machine), keyed by the graphs'
digests. It is believed only while the processor, the cores that the process may use and the backend's release are those of the
measurement. Without one, nothing is guessed: `auto` runs ONNX Runtime with its own number of threads.
"""

from __future__ import annotations

import json
import os
import platform
from dataclasses import dataclass
from hashlib import sha256
from importlib import metadata
from pathlib import Path
from typing import Any

from runtime.bundle import DECODER, VISION, Bundle
from runtime.core.files import atomic_file

HALVES = {"vision": VISION, "llm": DECODER}
_RELEASES = {"onnx": ("onnxruntime", "onnxruntime-gpu"), "openvino": ("openvino",)}


@dataclass(frozen=True)
class Choice:
    """backend, and CPU threads of a run (0 for the backend's own number)."""

    backend: str
    threads: int


def chosen(bundle: Bundle, graph: str) -> Choice | None:
    """What was measured to be fastest for the half of `graph` here; None where nothing that still holds was measured."""
    try:
        record = json.loads(file_of(bundle).read_text())
        entry = record["halves"][half_of(graph)]
        choice = Choice(str(entry["backend"]), int(entry["threads"]))
        holds = record["machine"] == machine() and entry["release"] == release(choice.backend)
    except (OSError, ValueError, KeyError, TypeError, RuntimeError):
        return None
    return choice if holds and choice.threads >= 0 else None


def write(bundle: Bundle, choices: dict[str, Choice], measured: list[dict[str, Any]]) -> Path:
    """Record the choice of each half ("vision", "llm") and the measurements behind it; the file."""
    file = file_of(bundle)
    halves = {
        half: {"backend": choice.backend, "threads": choice.threads, "release": release(choice.backend)}
        for half, choice in choices.items()
    }
    record = {"schema_version": 1, "bundle": str(bundle.path), "machine": machine(), "halves": halves, "measured": measured}
    with atomic_file(file) as temporary:
        temporary.write_text(json.dumps(record, indent=1) + "\n")
    return file


def file_of(bundle: Bundle) -> Path:
    """Where the record of this bundle's content and this machine lies."""
    graphs = [bundle.sha256(graph) for graph in HALVES.values() if f"{graph}.onnx" in bundle.manifest.files]
    key = sha256(json.dumps([graphs, bundle.is_split, machine()]).encode()).hexdigest()[:32]
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return cache / "st-gridpool" / "tuning" / f"{key}.json"


def half_of(graph: str) -> str:
    """ "vision" or "llm"."""
    return graph.partition(".")[0].partition("/")[0]


def machine() -> dict[str, Any]:
    """What a measurement depends on and a process can ask for cheaply."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return {"cpu": cpu_model(), "cores": cores, "system": f"{platform.system()} {platform.machine()}"}


def cpu_model() -> str:
    """The CPU's name; ARM kernels give none in cpuinfo, but a board has one."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.lower().startswith("model name"):
                return " ".join(line.split(":", 1)[1].split())
    except OSError:
        pass
    try:
        return Path("/proc/device-tree/model").read_text().strip("\0 \n")
    except OSError:
        return platform.processor() or platform.machine()


def release(backend: str) -> str | None:
    """The installed release of the backend's package; None where there is none."""
    for package in _RELEASES.get(backend, ()):
        try:
            return metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return None
