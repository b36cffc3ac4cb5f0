"""Bundle -> TensorRT engines beside it; `trt_records` describes the files, `trt_target` the targets.

Precision is decided in the ONNX graph (networks are strongly typed, and fp32 products do not drop to TF32), so a build only chooses
where the engine runs.
One optimisation profile per graph, from 1 to the bundle's `max_context`: a second one would double the weights. A directory is
replaced in one step when it is complete, and an engine whose inputs have not changed is kept, not rebuilt.

S prompt positions of one call.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from plugins.tensorrt import LIBRARY as PLUGIN_LIBRARY
from plugins.tensorrt import load_library
from runtime.bundle import DECODER, VISION, VISION_COMPRESSOR, VISION_ENCODER, Bundle
from runtime.bundle.graphs import MASK
from runtime.core.errors import EngineError, nearest
from runtime.core.files import atomic_directory, atomic_file, sha256_of
from runtime.core.machine import cache_directory
from runtime.core.options import option
from runtime.core.progress import log, phases
from runtime.engine import cuda
from runtime.engine import trt_api as facade
from runtime.engine.trt_records import AOT, BUILD, ENGINES, LIBRARY, NONE, engine_file, reusable_engines
from runtime.engine.trt_target import backend_that_builds, resolved_target, set_target, version_that_builds


@dataclass(frozen=True)
class BuildOptions:
    """target     "tensorrt": "current" or "ampere-plus"; "tensorrt-rtx": "any", "current", or architectures such as "sm89" or
               "sm86,sm120"; see runtime/engine/trt_target.py
    graphs     which graphs; () for all that answer questions: of a split bundle, encoder and compressor
    """

    backend: str = option(
        "auto",
        "default auto: tensorrt where it is installed and there is a GPU, or --plugin needs it, else tensorrt-rtx",
        choices=("auto", "tensorrt", "tensorrt-rtx"),
    )
    target: str | None = option(None, "GPU to build for (default: what the backend can do here)")
    graphs: tuple[str, ...] = ()
    force: bool = option(False, "build again where an engine of this very graph exists")
    plugin: str = option(NONE, "the compression plugin (backend tensorrt only)", metavar="none|aot|FILE.so")


@dataclass(frozen=True)
class BuiltEngine:
    """One engine in the bundle: bytes on disk, seconds that its build took, and whether it existed before."""

    graph: str
    path: Path
    size: int
    seconds: float
    reused: bool

    def as_dict(self) -> dict[str, Any]:
        """The fields for JSON, with the size under "bytes"."""
        values = asdict(self) | {"path": str(self.path), "bytes": self.size}
        del values["size"]
        return values


@dataclass(frozen=True)
class PluginChoice:
    """The compression plugin in engines: registered before a graph is parsed, named in build.json, loaded before an engine is.

    In `vision.onnx` compression is a call of `gridpool::StGridPool`, a function whose body is the plain nodes (plugins/op.py). A
    TensorRT that knows a plugin of that name uses the plugin, any other the body. kind is one of

        NONE       the body
        AOT        the ahead-of-time Python plugin (TensorRT 10.9 and newer): the engine carries its kernel
        LIBRARY    the plugin library at `library`; it is copied beside the engine, which can't be read without it
    """

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
            load_library(trt, self.library)
        else:
            from plugins.tensorrt.aot import register

            register(trt)


def build(bundle: Bundle, options: BuildOptions) -> list[BuiltEngine]:
    """Build the engines of `bundle`; EngineError says what was wrong, and the old engines stay as they were.

    The `tensorrt` backend needs the GPU that it builds for; `tensorrt-rtx` needs none.
    """
    graphs = _chosen_graphs(bundle, options.graphs)
    if options.backend == "auto":
        backend, note = backend_that_builds(options.plugin != NONE)
        options = replace(options, backend=backend)
        log(note)
    version = version_that_builds(options.backend)
    precision = bundle.manifest.precision  # the manifest's field, not ILayer's (tensorrt<11)
    target = resolved_target(options.backend, options.target)
    plugin = PluginChoice.parse(options.plugin, options.backend)
    key = {
        "backend": options.backend,
        "version": version,
        "target": target,
        "precision": precision,
        "plugin": plugin.key,
    }
    directory = bundle.path / ENGINES / "-".join((options.backend, target.replace(",", "+"), precision))
    entries = reusable_engines(bundle, directory, key)
    to_build = [graph for graph in graphs if options.force or graph not in entries]
    for graph in set(graphs) - set(to_build):
        log(f"{graph}: {directory / engine_file(graph)} is up to date; --force builds it again")
    if to_build:
        entries = {graph: entry for graph, entry in entries.items() if graph not in to_build}
        plugin.register(options.backend)
        with atomic_directory(directory) as temporary:
            for graph in entries:
                _link(directory / engine_file(graph), temporary / engine_file(graph))
            for graph in to_build:
                entries[graph] = _build_graph(bundle, graph, options, target, plugin, temporary / engine_file(graph))
            if plugin.library:
                shutil.copyfile(plugin.library, temporary / PLUGIN_LIBRARY)
            gpu = cuda.gpus()[0].name if cuda.gpus() else None
            record = {"schema_version": 1, **key, "built_on": gpu, "graphs": entries}
            (temporary / BUILD).write_text(json.dumps(record, indent=1) + "\n")
    return [
        BuiltEngine(graph, directory / engine_file(graph), entries[graph]["size"], entries[graph]["seconds"], graph not in to_build)
        for graph in graphs
    ]


def _chosen_graphs(bundle: Bundle, graphs: tuple[str, ...]) -> list[str]:
    has = [graph for graph in (VISION, VISION_ENCODER, VISION_COMPRESSOR, DECODER) if bundle.has(graph)]
    for graph in graphs:
        if graph not in has:
            raise EngineError(f'{bundle.path} has no graph "{graph}"{nearest(graph, has)}')
    chosen = list(dict.fromkeys(graphs)) or list(bundle.graphs("cuda"))
    if DECODER in chosen and bundle.has_llm and bundle.llm.attention == "flash":
        raise EngineError(
            f"{bundle.path}'s decoder has flash attention, whose number of filled cache rows TensorRT ignores: its logits would be wrong; "
            "export with --attention portable or standard"
        )
    return chosen


def _build_graph(
    bundle: Bundle, graph: str, options: BuildOptions, target: str, plugin: PluginChoice, file: Path
) -> dict[str, Any]:
    """Build one engine into `file`; returns its entry of build.json."""
    started = time.perf_counter()
    backend = options.backend
    builder, network, parser = facade.parse(backend, bundle.model(graph), plugin.kind != NONE)
    with_plugin = plugin.kind != NONE and has_plugin_layer(backend, network)
    if plugin.kind != NONE and graph in (VISION, VISION_COMPRESSOR) and not with_plugin:
        log(f"{graph}: compression {bundle.manifest.compression.spec} is built as plain nodes, the plugin does not cover it")
    facade.decompose_attention(backend, network)
    config = builder.create_builder_config()
    config.clear_flag(facade.load(backend).BuilderFlag.TF32)
    set_target(backend, config, target)
    inputs = _add_profile(builder, network, config, bundle.max_context if bundle.has_llm else None)
    with _timing_cache(backend, config), phases(f"building {graph} for {target} with {backend}") as progress:
        engine = facade.serialize(backend, builder, network, config, progress)
    del parser  # it owns the weights that the network refers to, so it had to live until here
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(engine)
    return {
        "onnx_sha256": bundle.sha256(graph),
        "size": file.stat().st_size,
        "seconds": round(time.perf_counter() - started, 1),
        "inputs": inputs,
        "plugin": plugin.kind if with_plugin else NONE,
    }


def has_plugin_layer(backend: str, network: Any) -> bool:
    """Whether a parsed network has a plugin layer."""
    kinds = facade.load(backend).LayerType
    return any(network.get_layer(index).type == kinds.PLUGIN_V3 for index in range(network.num_layers))


def _add_profile(builder: Any, network: Any, config: Any, max_context: int | None) -> dict[str, list[int | str]]:
    """One profile for all dynamic dimensions, 1 to `max_context`; returns {input: its shape, with dynamic dimensions by name}.

    Kernels are tuned for a decode step (S = 1) in the middle of the context: it runs once per token, a prefill once per question.
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
        typical = max(max_context // 2, 1) if tensor.name == MASK else 1
        lowest, usual, highest = ([value if size < 0 else size for size in shape] for value in (1, typical, max_context))
        profile.set_shape(tensor.name, lowest, usual, highest)
    if dynamic:
        config.add_optimization_profile(profile)
    return inputs


@contextmanager
def _timing_cache(backend: str, config: Any) -> Iterator[None]:
    """Keep TensorRT's kernel timings between builds, one file per version and GPU (TensorRT-RTX measures nothing)."""
    if backend != "tensorrt":
        yield
        return
    file = cache_directory("timing") / f"{facade.load(backend).__version__}-{cuda.gpus()[0].target}.cache"
    cache = config.create_timing_cache(file.read_bytes() if file.exists() else b"")
    config.set_timing_cache(cache, False)
    yield
    try:
        with atomic_file(file) as temporary:
            temporary.write_bytes(config.get_timing_cache().serialize())
    except OSError as error:
        log(f"the timing cache could not be written ({error}); the next build measures again")


def _link(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(source, target)
    except OSError:  # a file system without hard links
        shutil.copyfile(source, target)
