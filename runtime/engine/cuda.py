"""What an engine needs of CUDA, through ctypes: which GPUs there are, buffers, copies, one stream, captured graphs.

Two libraries: the driver (`libcuda`, asked only what devices exist, so that a machine without a GPU gets an answer and
not a crash) and the runtime (`libcudart`, everything else). No package is needed for either; `libcudart` is looked for
where the loader, the CUDA toolkit and NVIDIA's pip wheels put it. Every failing call raises EngineError with CUDA's own
words for it.
"""

from __future__ import annotations

import ctypes
import functools
import glob
import importlib.util
import os
from collections.abc import Callable
from ctypes import byref, c_char_p, c_int, c_size_t, c_void_p
from dataclasses import dataclass

import numpy as np

from runtime.core.errors import EngineError

_TO_DEVICE, _TO_HOST = 1, 2  # cudaMemcpyKind
_CAPTURE_THREAD_LOCAL = 1  # cudaStreamCaptureMode: other threads may go on using CUDA
_MAJOR, _MINOR = 75, 76  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_*


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
    """The CUDA devices of this machine; empty without a driver or a device."""
    driver = _driver()
    count = c_int()
    if driver is None or driver.cuInit(0) or driver.cuDeviceGetCount(byref(count)):
        return ()
    found = []
    for ordinal in range(count.value):
        device, major, minor, memory = c_int(), c_int(), c_int(), c_size_t()
        name = ctypes.create_string_buffer(128)
        failed = (
            driver.cuDeviceGet(byref(device), ordinal)
            or driver.cuDeviceGetName(name, len(name), device)
            or driver.cuDeviceGetAttribute(byref(major), _MAJOR, device)
            or driver.cuDeviceGetAttribute(byref(minor), _MINOR, device)
            or driver.cuDeviceTotalMem_v2(byref(memory), device)
        )
        if not failed:
            found.append(Gpu(name.value.decode(errors="replace"), (major.value, minor.value), memory.value))
    return tuple(found)


def driver_version() -> str | None:
    """The highest CUDA version that the installed driver runs, e.g. "12.6"; None without a driver."""
    driver, version = _driver(), c_int()
    if driver is None or driver.cuDriverGetVersion(byref(version)):
        return None
    return f"{version.value // 1000}.{version.value % 1000 // 10}"


def runtime_version() -> str:
    """The version of the CUDA runtime library, e.g. "13.0"; EngineError where there is none."""
    version = c_int()
    _runtime().cudaRuntimeGetVersion(byref(version))
    return f"{version.value // 1000}.{version.value % 1000 // 10}"


def no_gpu() -> str | None:
    """Why nothing can run on a GPU here, as one line; None where there is one."""
    if gpus():
        return None
    if _driver() is None:
        return "no NVIDIA driver (libcuda.so.1 is not installed); use --device cpu or run on a machine with an NVIDIA GPU"
    return "the NVIDIA driver sees no GPU; check nvidia-smi and CUDA_VISIBLE_DEVICES, or use --device cpu"


class Cuda:
    """One stream of the first visible GPU and the memory that an engine binds to it."""

    def __init__(self) -> None:
        self._lib = _runtime()
        self._allocated: dict[int, Callable] = {}
        stream = c_void_p()
        self._call("cudaStreamCreateWithFlags", byref(stream), 1)  # 1: does not wait for the legacy default stream
        self.stream: int = stream.value or 0

    def allocate(self, nbytes: int) -> int:
        """Address of `nbytes` of device memory."""
        pointer = c_void_p()
        self._call("cudaMalloc", byref(pointer), c_size_t(max(nbytes, 1)), doing=f"allocating {nbytes / 2**20:.0f} MiB on the GPU")
        self._allocated[pointer.value or 0] = self._lib.cudaFree
        return pointer.value or 0

    def host(self, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
        """An array in page-locked memory, which the GPU copies from and to without a detour."""
        count = int(np.prod(shape, dtype=np.int64))
        nbytes = max(count * dtype.itemsize, 1)
        pointer = c_void_p()
        self._call("cudaMallocHost", byref(pointer), c_size_t(nbytes), doing=f"page-locking {nbytes / 2**20:.0f} MiB")
        self._allocated[pointer.value or 0] = self._lib.cudaFreeHost
        raw = (ctypes.c_char * nbytes).from_address(pointer.value or 0)
        return np.frombuffer(memoryview(raw), dtype, count).reshape(shape)

    def zero(self, address: int, nbytes: int) -> None:
        self._call("cudaMemsetAsync", c_void_p(address), 0, c_size_t(nbytes), c_void_p(self.stream))

    def to_device(self, address: int, array: np.ndarray) -> None:
        """Copy a contiguous array to `address`, in stream order."""
        self._copy(address, array.ctypes.data, array.nbytes, _TO_DEVICE)

    def to_host(self, array: np.ndarray, address: int) -> None:
        """Copy into a contiguous array from `address`, in stream order; `synchronize` before reading it."""
        self._copy(array.ctypes.data, address, array.nbytes, _TO_HOST)

    def synchronize(self) -> None:
        self._call("cudaStreamSynchronize", c_void_p(self.stream), doing="running the engine")

    def capture(self, launch: Callable[[], object]) -> int:
        """Record what `launch` puts on the stream as a CUDA graph and return its handle; nothing runs meanwhile."""
        self._call("cudaStreamBeginCapture", c_void_p(self.stream), _CAPTURE_THREAD_LOCAL)
        graph, executable = c_void_p(), c_void_p()
        try:
            launch()
        except BaseException:  # a failed launch leaves the stream in capture mode, where nothing else can run
            self._lib.cudaStreamEndCapture(c_void_p(self.stream), byref(graph))
            if graph:
                self._lib.cudaGraphDestroy(graph)
            self._lib.cudaGetLastError()  # a spoiled capture is an error too, which the next call must not report
            raise
        self._call("cudaStreamEndCapture", c_void_p(self.stream), byref(graph))
        try:
            self._call("cudaGraphInstantiateWithFlags", byref(executable), graph, ctypes.c_ulonglong(0))
        finally:
            self._lib.cudaGraphDestroy(graph)
        return executable.value or 0

    def replay(self, graph: int) -> None:
        """Run a captured graph, in stream order."""
        self._call("cudaGraphLaunch", c_void_p(graph), c_void_p(self.stream))

    def drop_graph(self, graph: int) -> None:
        self._lib.cudaGraphExecDestroy(c_void_p(graph))

    def free(self, *addresses: int) -> None:
        """Free what was allocated here; what `close` has freed already is left alone."""
        for address in addresses:
            if address in self._allocated:
                self._allocated.pop(address)(c_void_p(address))

    def close(self) -> None:
        """Free everything that was allocated here, and the stream."""
        self.free(*self._allocated)
        if self.stream:
            self._lib.cudaStreamDestroy(c_void_p(self.stream))
            self.stream = 0

    def _copy(self, to: int, source: int, nbytes: int, kind: int) -> None:
        self._call("cudaMemcpyAsync", c_void_p(to), c_void_p(source), c_size_t(nbytes), kind, c_void_p(self.stream))

    def _call(self, name: str, *arguments: object, doing: str = "") -> None:
        self._check(getattr(self._lib, name)(*arguments), doing or name)

    def _check(self, status: int, doing: str) -> None:
        if status:
            self._lib.cudaGetLastError()  # clears it: the next call must not report this one's failure
            message = self._lib.cudaGetErrorString(status).decode()
            raise EngineError(f"{doing}: CUDA says {message} (error {status})")


def _driver() -> ctypes.CDLL | None:
    for name in ("libcuda.so.1", "nvcuda.dll"):
        try:
            return ctypes.CDLL(name)
        except OSError:
            continue
    return None


@functools.cache
def _runtime() -> ctypes.CDLL:
    for name in ("libcudart.so.13", "libcudart.so.12", "libcudart.so", *_runtime_files()):
        try:
            library = ctypes.CDLL(name)
        except OSError:
            continue
        library.cudaGetErrorString.restype = c_char_p
        return library
    raise EngineError("libcudart was not found: install the CUDA toolkit, or `pip install nvidia-cuda-runtime`")


def _runtime_files() -> list[str]:
    """Where the CUDA toolkit and NVIDIA's wheels (nvidia/cu13, nvidia/cuda_runtime) put the library."""
    roots = [os.environ.get("CUDA_HOME", ""), os.environ.get("CUDA_PATH", ""), "/usr/local/cuda"]
    spec = importlib.util.find_spec("nvidia")
    for location in spec.submodule_search_locations or () if spec else ():
        roots += glob.glob(f"{location}/*")
    patterns = [f"{root}/{folder}/libcudart.so*" for root in roots if root for folder in ("lib64", "lib")]
    return [file for pattern in patterns for file in sorted(glob.glob(pattern), reverse=True)]
