"""The engines beside a bundle, in `engines/<backend>-<target>-<precision>/`: which there are and which can run here.

<graph>.engine      one per graph, e.g. vision.engine, llm/decoder.engine
build.json          what they were built from and for: the ONNX's sha256, TensorRT's version, target, options, sizes
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from plugins.tensorrt import LIBRARY as PLUGIN_LIBRARY
from runtime.bundle import Bundle
from runtime.core.errors import EngineError
from runtime.engine import cuda
from runtime.engine import trt_api as facade
from runtime.engine.trt_target import runs_on

BUILD = "build.json"
ENGINES = "engines"
NONE, AOT, LIBRARY = "none", "aot", "library"  # the plugin of an engine, see trt_build.PluginChoice


def engine_file(graph: str) -> str:
    """The file of a graph's engine, relative to its directory."""
    return f"{graph}.engine"


def find_engine(bundle: Bundle, backend: str, graph: str) -> Path:
    """The engine of `graph` that was built from this bundle, by this TensorRT, for this machine's GPU.

    EngineError says why the existing ones can't be used, and the command that builds one that can.
    """
    version = facade.load(backend).__version__
    remedy = f"run `python -m runtime build {bundle.path} --backend {backend}`"
    refused = []
    for directory, record in _records(bundle, backend):
        file = directory / engine_file(graph)
        why = _mismatch(bundle, graph, file, directory, record, version)
        if why is None:
            return file
        refused.append(f"{file} {why}")
    if refused:
        raise EngineError(f"{'; '.join(refused)}: {remedy}")
    raise EngineError(f"{bundle.path} has no {backend} engine for {graph}: {remedy}")


def reusable_engines(bundle: Bundle, directory: Path, key: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The entries of `directory`'s build.json whose engines a build with `key` would reproduce."""
    record = read_record(directory)
    if record is None or any(record.get(name) != value for name, value in key.items()):
        return {}
    return {
        graph: entry
        for graph, entry in record["graphs"].items()
        if bundle.has(graph)
        and entry["onnx_sha256"] == bundle.sha256(graph)
        and _size(directory / engine_file(graph)) == entry["size"]
    }


def plugin_library(path: Path, graph: str) -> Path | None:
    """The plugin library that must be loaded before the engine at `path`; None where it needs none."""
    return path.parents[graph.count("/")] / PLUGIN_LIBRARY if _entry(path, graph).get("plugin") == LIBRARY else None


def dimension_names(path: Path, graph: str) -> dict[str, list[int | str]]:
    """{input: its shape, with dynamic dimensions by name} of the engine at `path`."""
    return _entry(path, graph)["inputs"]


def read_record(directory: Path) -> dict[str, Any] | None:
    """build.json of an engine directory; None where there is none that can be read."""
    try:
        record = json.loads((directory / BUILD).read_text())
        return record if record["schema_version"] == 1 and _is_record(record) else None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None


def _entry(path: Path, graph: str) -> dict[str, Any]:
    return json.loads((path.parents[graph.count("/")] / BUILD).read_text())["graphs"][graph]


def _records(bundle: Bundle, backend: str) -> Iterator[tuple[Path, dict[str, Any]]]:
    for directory in sorted((bundle.path / ENGINES).glob(f"{backend}-*")):
        record = read_record(directory)
        if record is not None and record["backend"] == backend:
            yield directory, record


def _mismatch(bundle: Bundle, graph: str, file: Path, directory: Path, record: dict[str, Any], version: str) -> str | None:
    """Why an engine can't be used here, None where it can."""
    entry = record["graphs"].get(graph)
    if entry is None:
        return "was not built"
    if entry["onnx_sha256"] != bundle.sha256(graph):
        return "was built from another ONNX graph"
    if entry.get("plugin") == LIBRARY and not (directory / PLUGIN_LIBRARY).is_file():
        return f"needs {PLUGIN_LIBRARY} beside it, which is missing"
    if record["version"] != version:
        return f"was built by version {record['version']}, here is {version}"
    if _size(file) != entry["size"]:
        return "is missing or truncated"
    gpus = cuda.gpus()
    if gpus and not runs_on(record["target"], gpus[0].capability):
        return f"was built for {record['target']}, here is {gpus[0].name} ({gpus[0].target})"
    return None


def _size(file: Path) -> int | None:
    try:
        return file.stat().st_size
    except OSError:
        return None


def _is_record(record: dict[str, Any]) -> bool:
    """Whether the values that are read from a build.json have the types that they were written with."""
    return all(isinstance(record[name], str) for name in ("backend", "version", "target")) and all(
        type(entry["size"]) is int
        and isinstance(entry["onnx_sha256"], str)
        and type(entry["seconds"]) in (int, float)
        and isinstance(entry["inputs"], dict)
        for entry in record["graphs"].values()
    )
