"""TensorRT and TensorRT-RTX: engines that `python -m runtime build` made, run on the GPU.

Device and page-locked buffers are allocated once, at the largest shape of the engine's profile, and reused by every run.
A graph of static shapes is captured as a CUDA graph after its first run, so that the CPU no longer launches its hundreds of kernels
one by one; if capture fails, that is logged and runs go on without it. A state (the KV cache) never leaves the GPU: it is one buffer
where TensorRT declares output and input to be the same memory (its KV-cache layer), else two that swap after each run, because
TensorRT guarantees nothing for other layers that write what they read.
"""

from __future__ import annotations

import mmap
import weakref
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from plugins.tensorrt import load_library
from runtime.bundle import Bundle
from runtime.core.errors import EngineError, UserError
from runtime.core.progress import log
from runtime.engine import cuda
from runtime.engine import trt_api as facade
from runtime.engine.protocol import EngineOptions, TensorSpec, check_feeds
from runtime.engine.trt_records import dimension_names, find_engine, plugin_library


@dataclass
class TensorRTState:
    """pairs: {input name: output name}; reads and writes: {input name: device address} of the next run."""

    pairs: dict[str, str]
    reads: dict[str, int]
    writes: dict[str, int]


class TensorRTEngine:
    """One deserialised engine with one execution context, one stream and its buffers."""

    backend = "tensorrt"
    device = "cuda"
    takes_bf16 = takes_batches = False

    def __init__(self, engine: Any, gpu: cuda.Cuda, names: Mapping[str, list[int | str]] | None = None):
        """engine: an ICudaEngine; names: {input: its shape, with dynamic dimensions by name}."""
        self._gpu, self._engine = gpu, engine
        self._context = engine.create_execution_context()
        if self._context is None:
            raise EngineError(f"{self.backend} could not make an execution context: {facade.last_error(self.backend)}")
        tensors = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
        input_mode = facade.load(self.backend).TensorIOMode.INPUT
        are_inputs = [engine.get_tensor_mode(name) == input_mode for name in tensors]
        specs = [self._spec(name, (names or {}).get(name)) for name in tensors]
        self.inputs = tuple(spec for spec, is_input in zip(specs, are_inputs, strict=True) if is_input)
        self.outputs = tuple(spec for spec, is_input in zip(specs, are_inputs, strict=True) if not is_input)
        self._largest = self._largest_shapes()
        self._device: dict[str, int] = {}  # buffers of the tensors that are in no state, allocated when first needed
        self._host: dict[str, np.ndarray] = {}
        self._graph: int | None = None
        self._may_capture = not any(spec.is_dynamic for spec in self.inputs)
        self._is_warm = False

    @classmethod
    def unavailable(cls, device: str) -> str | None:
        if device != "cuda":
            return f"TensorRT engines run on a GPU, not on {device}; pass --device cuda"
        try:
            facade.load(cls.backend)
        except UserError as error:
            return str(error)
        return cuda.no_gpu()  # TensorRT itself is not asked: without a GPU it fails deep inside

    @classmethod
    def open(cls, bundle: Bundle, graph: str, options: EngineOptions) -> TensorRTEngine:
        path = find_engine(bundle, cls.backend, graph)
        library = plugin_library(path, graph)
        if library:
            load_library(facade.load(cls.backend), library)
        gpu = cuda.Cuda()
        try:
            return cls(_deserialize(cls.backend, path, bundle.path), gpu, dimension_names(path, graph))
        except BaseException:
            gpu.close()
            raise

    def new_state(self, pairs: Mapping[str, str], batch: int = 1) -> TensorRTState:
        if batch != 1:
            raise EngineError(f"a TensorRT engine of this runtime decodes one conversation at a time, not {batch}")
        specs = {spec.name: spec for spec in (*self.inputs, *self.outputs)}
        state = TensorRTState(dict(pairs), {}, {})
        for name, output in pairs.items():
            if self._largest[name] != self._largest[output] or specs[name].dtype != specs[output].dtype:
                raise EngineError(f"{name} {specs[name].shape} and {output} {specs[output].shape} can't share a buffer")
            nbytes = _nbytes(self._largest[name], specs[name].dtype)
            state.reads[name] = self._gpu.allocate(nbytes)
            self._gpu.zero(state.reads[name], nbytes)
            state.writes[name] = state.reads[name] if self._is_aliased(output, name) else self._gpu.allocate(nbytes)
        weakref.finalize(state, self._gpu.free, *{*state.reads.values(), *state.writes.values()})
        return state

    def run(self, feeds: Mapping[str, np.ndarray], state: TensorRTState | None = None) -> dict[str, np.ndarray]:
        state = state or TensorRTState({}, {}, {})
        check_feeds(self.inputs, feeds, frozenset(state.pairs))
        for spec in self.inputs:
            if spec.name in feeds:
                self._bind_input(spec, feeds[spec.name])
        for name, output in state.pairs.items():
            self._bind(name, state.reads[name])
            self._bind(output, state.writes[name])
        wanted = [spec for spec in self.outputs if spec.name not in state.pairs.values()]
        for spec in wanted:
            self._bind(spec.name, self._device_buffer(spec))
        self._launch(alone=not state.pairs)
        results = {spec.name: self._fetch(spec) for spec in wanted}
        self._gpu.synchronize()
        state.reads, state.writes = state.writes, state.reads  # the next run reads what this one wrote
        return {name: array.copy() for name, array in results.items()}  # the next run overwrites the page-locked original

    def close(self) -> None:
        if self._graph is not None:
            self._gpu.drop_graph(self._graph)
        self._context = self._engine = None
        self._gpu.close()

    def _spec(self, name: str, named: list[int | str] | None) -> TensorSpec:
        """named: the shape with dynamic dimensions by name, where it is known."""
        kind = self._engine.get_tensor_dtype(name)
        try:
            dtype = np.dtype(facade.load(self.backend).nptype(kind))
        except TypeError:
            raise EngineError(
                f"{name} is {kind}, which this runtime does not support; export with --precision fp32 or fp16"
            ) from None
        shape = tuple(self._engine.get_tensor_shape(name))
        named = named or [f"{name}.{axis}" for axis in range(len(shape))]
        return TensorSpec(name, dtype, tuple(label if size < 0 else size for size, label in zip(shape, named, strict=True)))

    def _largest_shapes(self) -> dict[str, tuple[int, ...]]:
        """{tensor: shape} with every dynamic input at its profile's upper end."""
        shapes: dict[str, tuple[int, ...]] = {}
        for spec in self.inputs:
            shapes[spec.name] = tuple(spec.shape)  # type: ignore[arg-type]
            if spec.is_dynamic:
                shapes[spec.name] = tuple(self._engine.get_tensor_profile_shape(spec.name, 0)[2])
                self._context.set_input_shape(spec.name, shapes[spec.name])
        for spec in self.outputs:
            shapes[spec.name] = tuple(self._context.get_tensor_shape(spec.name))
            if min(shapes[spec.name], default=0) < 0:
                raise EngineError(f"the shape of output {spec.name} depends on values; engines here have shapes known before a run")
        return shapes

    def _is_aliased(self, output: str, name: str) -> bool:
        ask = getattr(self._engine, "get_aliased_input_tensor", None)  # since TensorRT 10.15
        return ask is not None and ask(output) == name

    def _bind_input(self, spec: TensorSpec, array: np.ndarray) -> None:
        limit = self._largest[spec.name]
        if any(size > most for size, most in zip(array.shape, limit, strict=True)):
            raise EngineError(f"{spec.name} has shape {list(array.shape)}, the engine was built for at most {list(limit)}")
        if spec.is_dynamic:
            self._context.set_input_shape(spec.name, array.shape)
        staged = self._host_view(spec, array.shape)
        np.copyto(staged, array)
        self._gpu.to_device(self._device_buffer(spec), staged)
        self._bind(spec.name, self._device_buffer(spec))

    def _bind(self, name: str, address: int) -> None:
        if not self._context.set_tensor_address(name, address):
            raise EngineError(f"{self.backend} refused the buffer of {name}: {facade.last_error(self.backend)}")

    def _launch(self, alone: bool) -> None:
        """Queue one inference, from the second one on as a CUDA graph; alone: no state is bound."""
        if alone and self._may_capture and self._is_warm:  # a first run allocates, which capture forbids
            self._may_capture = False
            try:
                self._graph = self._gpu.capture(self._enqueue)
            except EngineError as error:
                log(f"{self.backend}: no CUDA graph ({error}); each run launches its kernels one by one")
        if alone and self._graph is not None:
            self._gpu.replay(self._graph)
        else:
            self._enqueue()
            self._is_warm = True

    def _enqueue(self) -> None:
        if not self._context.execute_async_v3(self._gpu.stream):
            raise EngineError(f"{self.backend} could not run the engine: {facade.last_error(self.backend)}")

    def _fetch(self, spec: TensorSpec) -> np.ndarray:
        view = self._host_view(spec, tuple(self._context.get_tensor_shape(spec.name)))
        self._gpu.to_host(view, self._device_buffer(spec))
        return view

    def _device_buffer(self, spec: TensorSpec) -> int:
        if spec.name not in self._device:
            self._device[spec.name] = self._gpu.allocate(_nbytes(self._largest[spec.name], spec.dtype))
        return self._device[spec.name]

    def _host_view(self, spec: TensorSpec, shape: tuple[int, ...]) -> np.ndarray:
        """The first elements of the tensor's page-locked buffer in `shape`."""
        if spec.name not in self._host:
            self._host[spec.name] = self._gpu.host((int(np.prod(self._largest[spec.name], dtype=np.int64)),), spec.dtype)
        return self._host[spec.name][: int(np.prod(shape, dtype=np.int64))].reshape(shape)


class TensorRTRTXEngine(TensorRTEngine):
    """TensorRT-RTX, whose kernels are compiled for the GPU at the first run."""

    backend = "tensorrt-rtx"


def _deserialize(backend: str, path: Path, bundle: Path) -> Any:
    trt = facade.load(backend)
    logger = facade.logger(backend)
    if backend == "tensorrt":
        trt.init_libnvinfer_plugins(logger, "")  # ScatterElements is one of the library's plugins
    runtime = trt.Runtime(logger)
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        engine = runtime.deserialize_cuda_engine(content)
    if engine is None:
        raise EngineError(
            f"{backend} {trt.__version__} can't load {path}: {facade.last_error(backend)}; "
            f"run `python -m runtime build {bundle} --backend {backend} --force`"
        )
    return engine


def _nbytes(shape: tuple[int, ...], dtype: np.dtype) -> int:
    return int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
