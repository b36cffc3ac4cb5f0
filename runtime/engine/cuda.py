"""What an engine needs of CUDA: which GPUs there are, buffers, copies, a stream and captured graphs.

Every failing call raises EngineError with CUDA's own words. See `plugins.driver` for how the driver is called.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from plugins.driver import Device, call_driver, driver
from runtime.core.errors import EngineError


@dataclass(frozen=True)
class Gpu:
    """One CUDA device: its name, compute capability and memory in bytes."""

    name: str
    capability: tuple[int, int]
    memory: int

    @property
    def target(self) -> str:
        """The name of its architecture, e.g. "sm87"."""
        return f"sm{self.capability[0]}{self.capability[1]}"


@functools.cache
def gpus() -> tuple[Gpu, ...]:
    """The CUDA devices of this machine; empty without cuda-bindings, a driver or a device. One that can't be queried is left out."""
    try:
        count = call_driver("cuDeviceGetCount")
    except EngineError:
        return ()
    return tuple(gpu for gpu in map(_gpu, range(count)) if gpu)


def driver_version() -> str | None:
    """The highest CUDA version that the installed driver runs, e.g. "12.6"; None without a driver."""
    try:
        version = call_driver("cuDriverGetVersion")
    except EngineError:
        return None
    return f"{version // 1000}.{version % 1000 // 10}"


def no_gpu() -> str | None:
    """Why nothing can run on a GPU here, as one line; None where there is one."""
    if gpus():
        return None
    try:
        driver()
    except EngineError as error:
        return str(error)
    return "the NVIDIA driver sees no GPU; check nvidia-smi and CUDA_VISIBLE_DEVICES, or use the CPU"


class Cuda:
    """One stream of the first visible GPU and the memory that an engine uses on it."""

    def __init__(self) -> None:
        self._device = Device(0)
        self._allocated: dict[int, str] = {}  # address: the function that frees it
        # a stream that does not wait for the legacy default stream
        self.stream = int(self._call("cuStreamCreate", driver().CUstream_flags.CU_STREAM_NON_BLOCKING))

    def allocate(self, nbytes: int) -> int:
        """Address of `nbytes` of device memory."""
        doing = f"allocating {nbytes / 2**20:.0f} MiB on the GPU"
        address = int(self._call("cuMemAlloc", max(nbytes, 1), doing=doing))
        self._allocated[address] = "cuMemFree"
        return address

    def host(self, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
        """An array in page-locked memory, which the GPU copies from and to directly."""
        count = int(np.prod(shape, dtype=np.int64))
        nbytes = max(count * dtype.itemsize, 1)
        address = int(self._call("cuMemAllocHost", nbytes, doing=f"page-locking {nbytes / 2**20:.0f} MiB"))
        self._allocated[address] = "cuMemFreeHost"
        raw = (ctypes.c_char * nbytes).from_address(address)
        return np.frombuffer(memoryview(raw), dtype, count).reshape(shape)

    def zero(self, address: int, nbytes: int) -> None:
        self._call("cuMemsetD8Async", address, 0, nbytes, self.stream)

    def to_device(self, address: int, array: np.ndarray) -> None:
        """Copy a contiguous array to `address`, in stream order."""
        if array.nbytes:
            self._call("cuMemcpyHtoDAsync", address, array.ctypes.data, array.nbytes, self.stream)

    def to_host(self, array: np.ndarray, address: int) -> None:
        """Copy into a contiguous array from `address`, in stream order; `synchronize` before reading it."""
        if array.nbytes:
            self._call("cuMemcpyDtoHAsync", array.ctypes.data, address, array.nbytes, self.stream)

    def synchronize(self) -> None:
        self._call("cuStreamSynchronize", self.stream, doing="running the engine")

    def capture(self, launch: Callable[[], object]) -> int:
        """Record what `launch` puts on the stream as a CUDA graph and return its handle; nothing runs meanwhile."""
        # thread-local: other threads may go on using CUDA
        mode = driver().CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_THREAD_LOCAL
        self._call("cuStreamBeginCapture", self.stream, mode)
        try:
            launch()
        except BaseException:  # a failed launch leaves the stream in capture mode, where nothing else can run
            with self._device.active():
                _, graph = driver().cuStreamEndCapture(self.stream)
                if graph and int(graph):
                    driver().cuGraphDestroy(graph)
            raise
        graph = self._call("cuStreamEndCapture", self.stream)
        try:
            return int(self._call("cuGraphInstantiate", graph, 0))
        finally:
            self._call("cuGraphDestroy", graph)

    def replay(self, graph: int) -> None:
        """Run a captured graph, in stream order."""
        self._call("cuGraphLaunch", graph, self.stream)

    def drop_graph(self, graph: int) -> None:
        self._call("cuGraphExecDestroy", graph)

    def free(self, *addresses: int) -> None:
        """Free what was allocated here, unless `close` has freed it already."""
        for address in addresses:
            if address in self._allocated:
                self._call(self._allocated.pop(address), address)

    def close(self) -> None:
        """Free everything that was allocated here, and the stream."""
        self.free(*self._allocated)
        if self.stream:
            self._call("cuStreamDestroy", self.stream)
            self.stream = 0

    def _call(self, function: str, *arguments: object, doing: str = "") -> Any:
        with self._device.active():
            return call_driver(function, *arguments, doing=doing)


def _gpu(ordinal: int) -> Gpu | None:
    try:
        device = Device(ordinal)
        name = call_driver("cuDeviceGetName", 128, device.handle).decode(errors="replace").rstrip("\0")
        return Gpu(name, device.capability, int(call_driver("cuDeviceTotalMem", device.handle)))
    except EngineError:
        return None
