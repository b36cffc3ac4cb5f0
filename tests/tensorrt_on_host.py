"""Stand-ins for TensorRT and a GPU: host memory for device memory, NumPy for kernels."""

from __future__ import annotations

import ctypes
from collections.abc import Callable

import numpy as np

from runtime.core.errors import EngineError

FLOAT, INT64, BF16 = "FLOAT", "INT64", "BF16"


class Module:
    """The few names of the tensorrt module that an engine reads."""

    __version__ = "10.3.0"

    @staticmethod
    def nptype(kind: str) -> type:
        if kind not in (FLOAT, INT64):
            raise TypeError("no such type in NumPy")
        return np.float32 if kind == FLOAT else np.int64

    class TensorIOMode:
        INPUT, OUTPUT = "INPUT", "OUTPUT"


class Gpu:
    """Host memory with the interface of `cuda.Cuda`; counts what is allocated and remembers the order of calls."""

    stream = 7

    def __init__(self) -> None:
        self.memory: dict[int, ctypes.Array] = {}
        self.calls: list[str] = []
        self.launch: Callable | None = None
        self.fails_to_capture = False

    def allocate(self, nbytes: int) -> int:
        buffer = (ctypes.c_char * nbytes)()
        buffer.raw = b"\xff" * nbytes
        self.memory[ctypes.addressof(buffer)] = buffer
        return ctypes.addressof(buffer)

    def host(self, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
        return np.empty(shape, dtype)

    def zero(self, address: int, nbytes: int) -> None:
        ctypes.memset(address, 0, nbytes)

    def to_device(self, address: int, array: np.ndarray) -> None:
        assert array.flags.c_contiguous
        ctypes.memmove(address, array.ctypes.data, array.nbytes)

    def to_host(self, array: np.ndarray, address: int) -> None:
        assert array.flags.c_contiguous
        ctypes.memmove(array.ctypes.data, address, array.nbytes)

    def synchronize(self) -> None:
        self.calls.append("synchronize")

    def capture(self, launch: Callable) -> int:
        self.calls.append("capture")
        if self.fails_to_capture:
            raise EngineError("cudaStreamEndCapture: CUDA says operation not permitted")
        self.launch = launch
        return 1

    def replay(self, graph: int) -> None:
        self.calls.append("replay")
        assert self.launch
        self.launch()

    def drop_graph(self, graph: int) -> None:
        self.calls.append("drop")

    def free(self, *addresses: int) -> None:
        for address in addresses:
            self.memory.pop(address, None)

    def close(self) -> None:
        self.memory.clear()


class Engine:
    """An ICudaEngine and its context: tensors by name, and `compute` from the input arrays to the output arrays."""

    def __init__(self, tensors: dict, compute: Callable, maximum: dict | None = None, aliases: dict | None = None) -> None:
        self.tensors, self.compute, self.maximum = tensors, compute, maximum or {}
        self.num_io_tensors = len(tensors)
        self.shapes = {name: shape for name, (_, _, shape) in tensors.items()}
        self.addresses: dict[str, int] = {}
        self.runs = 0
        if aliases is not None:
            self.get_aliased_input_tensor = aliases.get

    def create_execution_context(self) -> Engine:
        return self

    def get_tensor_name(self, index: int) -> str:
        return list(self.tensors)[index]

    def get_tensor_mode(self, name: str) -> str:
        return self.tensors[name][0]

    def get_tensor_dtype(self, name: str) -> str:
        return self.tensors[name][1]

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        shape = self.shapes[name]
        return shape if shape is not None else self.shapes["x"]  # None: as large as x

    def get_tensor_profile_shape(self, name: str, profile: int) -> list[tuple[int, ...]]:
        assert profile == 0
        return [(1, 4), (1, 4), self.maximum[name]]

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        self.shapes[name] = tuple(shape)
        return True

    def set_tensor_address(self, name: str, address: int) -> bool:
        self.addresses[name] = address
        return True

    def execute_async_v3(self, stream: int) -> bool:
        assert stream == Gpu.stream
        self.runs += 1
        arrays = {}
        for name, (_, dtype, _) in self.tensors.items():
            kind = {FLOAT: np.float32, INT64: np.int64}[dtype]
            shape = self.get_tensor_shape(name)
            raw = (ctypes.c_char * (int(np.prod(shape)) * np.dtype(kind).itemsize)).from_address(self.addresses[name])
            arrays[name] = np.frombuffer(raw, kind).reshape(shape)
        self.compute(arrays)
        return True


def double(arrays: dict[str, np.ndarray]) -> None:
    arrays["y"][...] = 2 * arrays["x"]
