"""Every argument that reaches CUDA's two libraries, written down by stand-ins for them; the numbers are those of NVIDIA's headers."""

from __future__ import annotations

import ctypes
from types import SimpleNamespace

import numpy as np
import pytest

from runtime.core.errors import EngineError
from runtime.engine import cuda


class Library:
    """A library whose functions succeed. calls: (name, *arguments), pointers that it fills as "to"; memory: what it handed out."""

    def __init__(self, **values: int):
        self.values, self.calls, self.memory, self.failing = values, [], {}, {}

    def __getattr__(self, name: str):
        def call(*arguments: object) -> int | bytes:
            if name == "cudaGetErrorString":
                return b"no luck"
            self.calls.append((name, *("to" if hasattr(one, "_obj") else getattr(one, "value", one) for one in arguments)))
            if name in self.failing:
                return self.failing[name]
            for one in (one for one in arguments if hasattr(one, "_obj")):
                one._obj.value = self.fill(name, arguments)
            return 0

        return call

    def fill(self, name: str, arguments: tuple) -> int:
        if name not in ("cudaMalloc", "cudaMallocHost"):
            return self.values.get(name, 0)
        buffer = (ctypes.c_char * arguments[1].value)()
        self.memory[ctypes.addressof(buffer)] = buffer
        return ctypes.addressof(buffer)


@pytest.fixture
def library(monkeypatch: pytest.MonkeyPatch) -> Library:
    library = Library(cudaStreamCreateWithFlags=7, cudaStreamEndCapture=11, cudaGraphInstantiateWithFlags=13)
    monkeypatch.setattr(cuda, "_runtime", lambda: library)
    return library


@pytest.fixture
def gpu(library: Library) -> cuda.Cuda:
    gpu = cuda.Cuda()
    assert gpu.stream == 7 and library.calls == [("cudaStreamCreateWithFlags", "to", 1)]  # cudaStreamNonBlocking
    library.calls.clear()
    return gpu


@pytest.mark.parametrize(("asked", "allocated"), [(0, 1), (1, 1), (2, 2), (4096, 4096)])
def test_as_much_memory_as_asked_for_and_never_none(gpu: cuda.Cuda, library: Library, asked: int, allocated: int) -> None:
    address = gpu.allocate(asked)
    assert library.calls == [("cudaMalloc", "to", allocated)] and list(library.memory) == [address]
    gpu.free(address + 1, address, address)
    assert library.calls[1:] == [("cudaFree", address)]
    gpu.close()
    assert library.calls[2:] == [("cudaStreamDestroy", 7)] and gpu.stream == 0


@pytest.mark.parametrize(
    ("shape", "dtype", "nbytes"),
    [((2, 3), np.float32, 24), ((5,), np.float16, 10), ((), np.int64, 8), ((0, 4), np.int64, 1), ((1,), np.int8, 1)],
)
def test_an_array_in_page_locked_memory_is_as_large_as_its_shape(gpu, library, shape, dtype, nbytes) -> None:
    array = gpu.host(shape, np.dtype(dtype))
    assert library.calls == [("cudaMallocHost", "to", nbytes)] and (array.shape, array.dtype) == (shape, dtype)
    (address,) = library.memory
    array[...] = 1
    assert bytes(library.memory[address]) == (array.tobytes() or b"\0")
    gpu.close()
    assert library.calls[1:] == [("cudaFreeHost", address), ("cudaStreamDestroy", 7)]


def test_copies_and_fills_go_onto_the_stream(gpu: cuda.Cuda, library: Library) -> None:
    array = np.zeros((3, 5), np.float32)
    gpu.to_device(1000, array)
    gpu.to_host(array, 2000)
    gpu.zero(3000, 12)
    gpu.synchronize()
    gpu.replay(13)
    gpu.drop_graph(13)
    here = array.ctypes.data
    assert library.calls == [
        ("cudaMemcpyAsync", 1000, here, 60, 1, 7),
        ("cudaMemcpyAsync", here, 2000, 60, 2, 7),
        ("cudaMemsetAsync", 3000, 0, 12, 7),
        ("cudaStreamSynchronize", 7),
        ("cudaGraphLaunch", 13, 7),
        ("cudaGraphExecDestroy", 13),
    ]


def test_a_launch_is_captured_on_the_stream(gpu: cuda.Cuda, library: Library) -> None:
    assert gpu.capture(lambda: library.calls.append("launched")) == 13
    assert library.calls == [
        ("cudaStreamBeginCapture", 7, 1),  # cudaStreamCaptureModeThreadLocal
        "launched",
        ("cudaStreamEndCapture", 7, "to"),
        ("cudaGraphInstantiateWithFlags", "to", 11, 0),
        ("cudaGraphDestroy", 11),
    ]


@pytest.mark.parametrize("graph", [0, 11])
def test_a_launch_that_fails_ends_the_capture_and_drops_what_it_left(gpu: cuda.Cuda, library: Library, graph: int) -> None:
    def fail() -> None:
        raise KeyboardInterrupt

    library.values["cudaStreamEndCapture"] = graph
    with pytest.raises(KeyboardInterrupt):
        gpu.capture(fail)
    dropped = [("cudaGraphDestroy", 11)] if graph else []
    assert library.calls[1:] == [("cudaStreamEndCapture", 7, "to"), *dropped, ("cudaGetLastError",)]


@pytest.mark.parametrize(
    ("name", "do", "said"),
    [
        ("cudaMalloc", lambda gpu: gpu.allocate(5 << 20), "allocating 5 MiB on the GPU"),
        ("cudaMallocHost", lambda gpu: gpu.host((3 << 19,), np.dtype(np.float32)), "page-locking 6 MiB"),
        ("cudaStreamSynchronize", lambda gpu: gpu.synchronize(), "running the engine"),
        ("cudaGraphLaunch", lambda gpu: gpu.replay(1), "cudaGraphLaunch"),
        ("cudaMemsetAsync", lambda gpu: gpu.zero(1, 1), "cudaMemsetAsync"),
    ],
)
def test_a_failure_says_what_was_being_done(gpu: cuda.Cuda, library: Library, name, do, said) -> None:
    library.failing[name] = 2
    with pytest.raises(EngineError, match=rf"^{said}: CUDA says no luck \(error 2\)$"):
        do(gpu)
    assert library.calls[-1] == ("cudaGetLastError",)


def test_versions_are_major_and_minor(monkeypatch: pytest.MonkeyPatch, library: Library) -> None:
    for number, version in ((13000, "13.0"), (12060, "12.6"), (11080, "11.8"), (12110, "12.11")):
        library.values["cudaRuntimeGetVersion"] = number
        assert cuda.runtime_version() == version
        monkeypatch.setattr(cuda, "_driver", lambda number=number: Library(cuDriverGetVersion=number))
        assert cuda.driver_version() == version
    failing = Library()
    failing.failing["cuDriverGetVersion"] = 3
    monkeypatch.setattr(cuda, "_driver", lambda: failing)
    assert cuda.driver_version() is None


class Driver:
    """libcuda with these GPUs: (name, compute capability, memory) each, None for one that can't be asked."""

    def __init__(self, *gpus: tuple[bytes, tuple[int, int], int] | None, fails: str = ""):
        self.gpus, self.fails = gpus, fails

    def cuInit(self, flags: int) -> int:
        assert flags == 0
        return 100 if self.fails == "cuInit" else 0

    def cuDeviceGetCount(self, count) -> int:
        count._obj.value = len(self.gpus)
        return 100 if self.fails == "cuDeviceGetCount" else 0

    def cuDeviceGet(self, device, ordinal: int) -> int:
        device._obj.value = ordinal
        return 0 if self.gpus[ordinal] else 101

    def cuDeviceGetName(self, name, size: int, device) -> int:
        assert size == len(name) >= 64
        name.value = self.gpus[device.value][0]
        return 1 if self.fails == "cuDeviceGetName" else 0

    def cuDeviceGetAttribute(self, value, attribute: int, device) -> int:
        value._obj.value = self.gpus[device.value][1][{75: 0, 76: 1}[attribute]]
        return 1 if self.fails == str(attribute) else 0

    def cuDeviceTotalMem_v2(self, memory, device) -> int:
        memory._obj.value = self.gpus[device.value][2]
        return 1 if self.fails == "cuDeviceTotalMem_v2" else 0


@pytest.mark.parametrize(
    ("driver", "found"),
    [
        (None, ()),
        (Driver(), ()),
        (Driver((b"A", (8, 0), 5), (b"B", (12, 1), 6 << 40)), (cuda.Gpu("A", (8, 0), 5), cuda.Gpu("B", (12, 1), 6 << 40))),
        (Driver(None, (b"B\xff", (9, 0), 6)), (cuda.Gpu("B\ufffd", (9, 0), 6),)),
        *((Driver((b"A", (8, 0), 5), fails=name), ()) for name in ("cuInit", "cuDeviceGetCount", "cuDeviceGetName", "75", "76",
                                                                   "cuDeviceTotalMem_v2")),
    ],
)  # fmt: skip
def test_every_gpu_that_can_be_asked_is_found(monkeypatch: pytest.MonkeyPatch, driver, found) -> None:
    monkeypatch.setattr(cuda, "_driver", lambda: driver)
    cuda.gpus.cache_clear()
    try:
        assert cuda.gpus() == found and [gpu.target for gpu in found] == [f"sm{a}{b}" for a, b in (gpu.capability for gpu in found)]
        said = cuda.no_gpu()
        assert said is None if found else ("no NVIDIA driver" if driver is None else "the NVIDIA driver sees no GPU") in said
    finally:
        cuda.gpus.cache_clear()


@pytest.mark.parametrize(
    ("there", "tried"),
    [(["libcuda.so.1"], ["libcuda.so.1"]), (["nvcuda.dll"], ["libcuda.so.1", "nvcuda.dll"]), ([], ["libcuda.so.1", "nvcuda.dll"])],
)
def test_the_driver_is_looked_for_on_linux_and_windows(monkeypatch: pytest.MonkeyPatch, there, tried) -> None:
    asked = []

    def load(name: str) -> SimpleNamespace:
        asked.append(name)
        if name not in there:
            raise OSError(name)
        return SimpleNamespace(name=name)

    monkeypatch.setattr(ctypes, "CDLL", load)
    driver = cuda._driver()
    assert asked == tried and (driver.name if driver else None) == (there[0] if there else None)
