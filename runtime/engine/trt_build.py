"""Bundle -> TensorRT engines beside it, in `engines/<backend>-<target>-<precision>/`.

    <graph>.engine      one a graph, e.g. vision.engine, llm/decoder.engine
    build.json          what they were built from and for: the ONNX's sha256, TensorRT's version, target, options, sizes

Precision is decided in the ONNX graph (networks are strongly typed), so a build only chooses where the engine runs.
One optimisation profile a graph, from 1 to the bundle's `max_context`: a second one would double the weights. A
directory is replaced as a whole once it is complete, and an engine whose inputs are all the same is kept, not rebuilt.

S prompt positions of one call, T positions of the KV cache that are read.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from plugins.tensorrt import LIBRARY as PLUGIN_LIBRARY
from runtime.bundle import DECODER, VISION, VISION_COMPRESSOR, VISION_ENCODER, Bundle
from runtime.core.errors import EngineError, nearest
from runtime.core.files import atomic_directory, atomic_file
from runtime.core.progress import log
from runtime.engine import cuda
from runtime.engine import trt_api as facade
from runtime.engine.trt_build_backend import backend_that_builds
from runtime.engine.trt_plugin import LIBRARY, NONE, PluginChoice, taken

BUILD = "build.json"
ENGINES = "engines"
DEFAULT_TARGET = {"tensorrt": "current", "tensorrt-rtx": "any"}

_RTX_ANY = "any"  # RTX engines run on every GPU from compute capability 8.0 on unless architectures are named
_AMPERE_PLUS = "ampere-plus"  # TensorRT's own portable kind of engine; slower, and not on Jetson


@dataclass(frozen=True)
class BuildOptions:
    """backend: "tensorrt" | "tensorrt-rtx" | "auto": tensorrt where it is installed and there is a GPU, or a plugin asks for it, else
               tensorrt-rtx

    target     "tensorrt": "current" (the GPU of this machine) or "ampere-plus" (every GPU from Ampere on);
               "tensorrt-rtx": "any" (every GPU from Ampere on), "current", or architectures such as "sm89" or "sm86,sm120"
    graphs     which graphs; () for all that answer questions: of a split bundle, encoder and compressor instead of both at once
    force      build even where an engine of the same inputs is there
    tf32       let fp32 matrix products drop to TF32: faster, and no longer what the ONNX graph says
    workspace  scratch memory in MiB that a kernel may use, 0 for TensorRT's own limit
    plugin     "none", "aot" or the path of the compression plugin's library; see runtime/engine/trt_plugin.py
    """

    backend: str = "auto"
    target: str | None = None
    graphs: tuple[str, ...] = ()
    force: bool = False
    tf32: bool = False
    workspace: int = 0
    plugin: str = NONE


@dataclass(frozen=True)
class BuiltEngine:
    """One engine in the bundle: bytes on disk, seconds that its build took, and whether it was there already."""

    graph: str
    path: Path
    size: int
    seconds: float
    reused: bool

    def as_dict(self) -> dict[str, Any]:
        """The same for JSON, with the size under "bytes"."""
        values = asdict(self) | {"path": str(self.path), "bytes": self.size}
        del values["size"]
        return values


def build(bundle: Bundle, options: BuildOptions) -> list[BuiltEngine]:
    """Build the engines of `bundle`; EngineError says what was wrong, and the old engines stay as they were.

    The `tensorrt` backend needs the GPU that it builds for; `tensorrt-rtx` needs none.
    """
    graphs = _chosen_graphs(bundle, options.graphs)
    note = ""
    if options.backend == "auto":
        backend, note = backend_that_builds(options.plugin)
        options = replace(options, backend=backend)
    version = _available(options)
    precision = bundle.manifest.precision  # the manifest's field, not ILayer's (tensorrt<11)
    target = _target(options)
    plugin = PluginChoice.parse(options.plugin, options.backend)
    key = {
        "backend": options.backend,
        "version": version,
        "target": target,
        "precision": precision,
        "options": {"tf32": options.tf32, "workspace": options.workspace},
        "plugin": plugin.key,
    }
    directory = bundle.path / ENGINES / "-".join((options.backend, target.replace(",", "+"), precision))
    if note:
        log(note)
    kept = _kept(bundle, directory, key)
    to_build = [graph for graph in graphs if options.force or graph not in kept]
    for graph in set(graphs) - set(to_build):
        log(f"{graph}: {directory / _engine_file(graph)} is up to date; --force builds it again")
    if to_build:
        entries = {graph: entry for graph, entry in kept.items() if graph not in to_build}
        plugin.register(options.backend)
        with atomic_directory(directory) as temporary:
            for graph in entries:
                _link(directory / _engine_file(graph), temporary / _engine_file(graph))
            for graph in to_build:
                entries[graph] = _build_graph(bundle, graph, options, target, plugin, temporary / _engine_file(graph))
            if plugin.library:
                shutil.copyfile(plugin.library, temporary / PLUGIN_LIBRARY)
            gpu = cuda.gpus()[0].name if cuda.gpus() else None
            (temporary / BUILD).write_text(
                json.dumps({"schema_version": 1, **key, "built_on": gpu, "graphs": entries}, indent=1) + "\n"
            )
        kept = entries
    return [
        BuiltEngine(graph, directory / _engine_file(graph), kept[graph]["size"], kept[graph]["seconds"], graph not in to_build)
        for graph in graphs
    ]


def find_engine(bundle: Bundle, backend: str, graph: str) -> Path:
    """The engine of `graph` that was built from this bundle, by this TensorRT, for this machine's GPU.

    EngineError says why what is there doesn't serve, and the command that builds one that does.
    """
    version = facade.load(backend).__version__
    mend = f"run `python -m runtime build {bundle.path} --backend {backend}`"
    refused = []
    for directory, record in _records(bundle, backend):
        why = _mismatch(bundle, graph, directory, record, version)
        if why is None:
            return directory / _engine_file(graph)
        refused.append(f"{directory / _engine_file(graph)} {why}")
    if refused:
        raise EngineError(f"{'; '.join(refused)}: {mend}")
    raise EngineError(f"{bundle.path} has no {backend} engine for {graph}: {mend}")


def plugin_library(path: Path, graph: str) -> Path | None:
    """The plugin library that the engine at `path` must have loaded before it is read; None where it needs none."""
    directory = path.parents[graph.count("/")]
    entry = json.loads((directory / BUILD).read_text())["graphs"][graph]
    return directory / PLUGIN_LIBRARY if entry.get("plugin") == LIBRARY else None


def dimension_names(path: Path, graph: str) -> dict[str, list[int | str]]:
    """{input: its shape, dynamic dimensions by name} as `build.json` beside the engine at `path` has it."""
    directory = path.parents[graph.count("/")]
    return json.loads((directory / BUILD).read_text())["graphs"][graph]["inputs"]


def _chosen_graphs(bundle: Bundle, graphs: tuple[str, ...]) -> list[str]:
    has = [graph for graph in (VISION, VISION_ENCODER, VISION_COMPRESSOR, DECODER) if f"{graph}.onnx" in bundle.manifest.files]
    for graph in graphs:
        if graph not in has:
            raise EngineError(f'{bundle.path} has no graph "{graph}"{nearest(graph, has)}')
    return list(dict.fromkeys(graphs)) or [graph for graph in has if graph != VISION or not bundle.is_split]


def _available(options: BuildOptions) -> str:
    """The installed version of the backend; EngineError where it can't build here."""
    if options.backend not in DEFAULT_TARGET:
        raise EngineError(f'no TensorRT backend "{options.backend}"{nearest(options.backend, DEFAULT_TARGET)}')
    version = facade.load(options.backend).__version__
    reason = cuda.no_gpu()
    if options.backend == "tensorrt" and reason:
        raise EngineError(f"tensorrt builds on the GPU that it builds for, and {reason}; --backend tensorrt-rtx builds without one")
    return version


def _target(options: BuildOptions) -> str:
    """The target as it is recorded: what was asked for, "current" replaced by this machine's architecture."""
    target = options.target or DEFAULT_TARGET[options.backend]
    if target == "current":
        if cuda.no_gpu():
            raise EngineError(f'target "current" is the GPU of this machine, and {cuda.no_gpu()}')
        return cuda.gpus()[0].target
    if options.backend == "tensorrt":
        here = cuda.gpus()[0].target
        if target not in (_AMPERE_PLUS, here):
            raise EngineError(f'tensorrt builds for the GPU it runs on ({here}) or "{_AMPERE_PLUS}", not for "{target}"')
        return target
    known = _rtx_architectures()
    names = list(dict.fromkeys(target.split(",")))
    for name in names:
        if name not in known and target != _RTX_ANY:
            raise EngineError(f'tensorrt-rtx has no target "{name}"; known: {", ".join([_RTX_ANY, "current", *known])}')
    return ",".join(names)


def _rtx_architectures() -> list[str]:
    members = facade.load("tensorrt-rtx").ComputeCapability.__members__
    return [name.lower() for name in members if name.startswith("SM")]


def _build_graph(
    bundle: Bundle, graph: str, options: BuildOptions, target: str, plugin: PluginChoice, goal: Path
) -> dict[str, Any]:
    """Build one engine into the file `goal`; its entry of build.json."""
    started = time.perf_counter()
    backend = options.backend
    builder, network, parser = facade.parse(backend, bundle.model(graph), plugin.kind != NONE)
    with_plugin = plugin.kind != NONE and taken(backend, network)
    if plugin.kind != NONE and graph in (VISION, VISION_COMPRESSOR) and not with_plugin:
        log(f"{graph}: compression {bundle.manifest.compression['spec']} is built as plain nodes, the plugin does not cover it")
    facade.decompose_attention(backend, network)
    config = builder.create_builder_config()
    _configure(config, options, target)
    inputs = _add_profile(builder, network, config, bundle.manifest.limits.get("max_context"))
    with _timing_cache(backend, config), _progress(f"building {graph} for {target} with {backend}") as progress:
        engine = facade.serialize(backend, builder, network, config, progress)
    del parser  # it owns the weights that the network refers to, so it had to live until here
    goal.parent.mkdir(parents=True, exist_ok=True)
    goal.write_bytes(engine)
    return {
        "onnx_sha256": bundle.sha256(graph),
        "size": goal.stat().st_size,
        "seconds": round(time.perf_counter() - started, 1),
        "inputs": inputs,
        "plugin": plugin.kind if with_plugin else NONE,
    }


def _configure(config: Any, options: BuildOptions, target: str) -> None:
    trt = facade.load(options.backend)
    if not options.tf32:
        config.clear_flag(trt.BuilderFlag.TF32)
    if options.workspace:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, options.workspace << 20)
    if options.backend == "tensorrt-rtx" and target != _RTX_ANY:
        names, rtx = target.split(","), facade.load(options.backend)
        config.num_compute_capabilities = len(names)
        for index, name in enumerate(names):
            config.set_compute_capability(getattr(rtx.ComputeCapability, name.upper()), index)
    elif target == _AMPERE_PLUS:
        config.hardware_compatibility_level = trt.HardwareCompatibilityLevel.AMPERE_PLUS


def _add_profile(builder: Any, network: Any, config: Any, max_context: int | None) -> dict[str, list[int | str]]:
    """One profile for every dynamic dimension, 1 to `max_context`; {input: its shape with names}.

    Kernels are tuned for a decode step (S = 1) at half the context, which is run once a token; a prefill once a question.
    """
    profile, inputs, dynamic = builder.create_optimization_profile(), {}, False
    for index in range(network.num_inputs):
        tensor = network.get_input(index)
        shape = list(tensor.shape)
        names = [tensor.get_dimension_name(axis) or f"{tensor.name}.{axis}" for axis in range(len(shape))]
        inputs[tensor.name] = [name if size < 0 else size for size, name in zip(shape, names, strict=True)]
        if min(shape, default=0) >= 0:
            continue
        if not max_context:
            raise EngineError(
                f"input {tensor.name} has the shape {inputs[tensor.name]} and the manifest no max_context; export the bundle again"
            )
        dynamic = True
        typical = max(max_context // 2, 1) if tensor.name == "attention_mask" else 1
        lowest, usual, highest = ([value if size < 0 else size for size in shape] for value in (1, typical, max_context))
        profile.set_shape(tensor.name, lowest, usual, highest)
    if dynamic:
        config.add_optimization_profile(profile)
    return inputs


@contextmanager
def _timing_cache(backend: str, config: Any) -> Iterator[None]:
    """Keep TensorRT's kernel timings between builds, one file a version and GPU (TensorRT-RTX measures nothing)."""
    if backend != "tensorrt":
        yield
        return
    root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "st-gridpool" / "timing"
    file = root / f"{facade.load(backend).__version__}-{cuda.gpus()[0].target}.cache"
    cache = config.create_timing_cache(file.read_bytes() if file.exists() else b"")
    config.set_timing_cache(cache, False)
    yield
    try:
        with atomic_file(file) as temporary:
            temporary.write_bytes(config.get_timing_cache().serialize())
    except OSError as error:
        log(f"the timing cache was not kept ({error}); the next build measures again")


def _kept(bundle: Bundle, directory: Path, key: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The entries of `directory`'s build.json whose engines a build with `key` would make again."""
    record = _read(directory)
    if record is None or any(record.get(name) != value for name, value in key.items()):
        return {}
    return {
        graph: entry
        for graph, entry in record["graphs"].items()
        if f"{graph}.onnx" in bundle.manifest.files
        and entry["onnx_sha256"] == bundle.sha256(graph)
        and _size(directory / _engine_file(graph)) == entry["size"]
    }


def _records(bundle: Bundle, backend: str) -> Iterator[tuple[Path, dict[str, Any]]]:
    for directory in sorted((bundle.path / ENGINES).glob(f"{backend}-*")):
        record = _read(directory)
        if record is not None and record.get("backend") == backend:
            yield directory, record


def _mismatch(bundle: Bundle, graph: str, directory: Path, record: dict[str, Any], version: str) -> str | None:
    """Why an engine does not serve here, None where it does."""
    entry = record["graphs"].get(graph)
    if entry is None:
        return "was not built"
    if entry["onnx_sha256"] != bundle.sha256(graph):
        return "was built from another ONNX graph"
    if entry.get("plugin") == LIBRARY and not (directory / PLUGIN_LIBRARY).is_file():
        return f"needs {PLUGIN_LIBRARY} beside it, which is missing"
    if record["version"] != version:
        return f"was built by version {record['version']}, here is {version}"
    if _size(directory / _engine_file(graph)) != entry["size"]:
        return "is missing or truncated"
    gpus = cuda.gpus()
    if gpus and not _runs_on(record["target"], gpus[0].capability):
        return f"was built for {record['target']}, here is {gpus[0].name} ({gpus[0].target})"
    return None


def _runs_on(target: str, capability: tuple[int, int]) -> bool:
    if target in (_RTX_ANY, _AMPERE_PLUS):
        return capability >= (8, 0)
    return f"sm{capability[0]}{capability[1]}" in target.split(",")


@contextmanager
def _progress(title: str) -> Iterator[Callable[[str, int, int], None]]:
    """A bar for the phase at work on a terminal, a line for each phase elsewhere, the whole time at the end."""
    started = time.perf_counter()
    if sys.stderr.isatty():
        from rich.console import Console
        from rich.progress import Progress

        with Progress(console=Console(stderr=True), transient=True) as bars:
            bar = bars.add_task(title, total=None)

            def move(phase: str, done: int, steps: int) -> None:
                bars.update(bar, description=f"{title}: {phase.lower()}", completed=done, total=steps)  # rich's (tensorrt>=11)

            yield move
    else:
        seen: set[str] = set()

        def line(phase: str, done: int, steps: int) -> None:
            if phase not in seen:
                seen.add(phase)
                log(f"{title}: {phase.lower()}")

        yield line
    log(f"{title}: {time.perf_counter() - started:.1f} s")


def _engine_file(graph: str) -> str:
    return f"{graph}.engine"


def _link(source: Path, goal: Path) -> None:
    goal.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(source, goal)
    except OSError:  # a file system without hard links
        shutil.copyfile(source, goal)


def _size(file: Path) -> int | None:
    try:
        return file.stat().st_size
    except OSError:
        return None


def _read(directory: Path) -> dict[str, Any] | None:
    """build.json of an engine directory; None where there is none that can be read."""
    try:
        record = json.loads((directory / BUILD).read_text())
        return record if record["schema_version"] == 1 and _is_record(record) else None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None


def _is_record(record: dict[str, Any]) -> bool:
    """Whether what is read of a build.json has the types that it was written with."""
    texts = all(isinstance(record[name], str) for name in ("backend", "version", "target"))
    entries = record["graphs"].values()
    sizes = all(type(entry["size"]) is int and isinstance(entry["onnx_sha256"], str) for entry in entries)
    return (
        texts and sizes and all(type(entry["seconds"]) in (int, float) and isinstance(entry["inputs"], dict) for entry in entries)
    )
