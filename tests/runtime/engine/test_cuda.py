"""What is asked of the CUDA driver: which calls, with which arguments, in which order, and what a failure leaves behind."""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

import plugins.driver
from runtime.core.errors import EngineError
from runtime.engine import cuda

ATTRIBUTES = SimpleNamespace(
    CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR="major", CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR="minor"
)


class Driver:
    """Answers as cuda-bindings do, (status, value). calls: (function, *arguments); failing: {function: status}; memory: not yet freed."""

    CUdevice_attribute = ATTRIBUTES
    CUstream_flags = SimpleNamespace(CU_STREAM_NON_BLOCKING="non blocking")
    CUstreamCaptureMode = SimpleNamespace(CU_STREAM_CAPTURE_MODE_THREAD_LOCAL="thread local")

    def __init__(self) -> None:
        self.answers = {"cuStreamCreate": 7, "cuStreamEndCapture": 11, "cuGraphInstantiate": 13, "cuDevicePrimaryCtxRetain": 5}
        self.calls: list[object] = []
        self.failing: dict[str, int] = {}
        self.memory: dict[int, ctypes.Array] = {}

    def __getattr__(self, name: str):
        def function(*arguments: object) -> tuple:
            if name == "cuGetErrorString":
                return 0, b"no luck"
            if name in ("cuCtxPushCurrent", "cuCtxPopCurrent"):
                return 0, None
            self.calls.append((name, *arguments))
            return (self.failing.get(name, 0), self.answer(name, arguments))

        return function

    def answer(self, name: str, arguments: tuple) -> object:
        if name in ("cuMemAlloc", "cuMemAllocHost"):
            buffer = (ctypes.c_char * arguments[0])()
            self.memory[ctypes.addressof(buffer)] = buffer
            return ctypes.addressof(buffer)
        if name in ("cuMemFree", "cuMemFreeHost"):
            del self.memory[arguments[0]]
        return self.answers.get(name, 0)


@pytest.fixture
def install(monkeypatch: pytest.MonkeyPatch):
    """install(driver): let it be the machine's; an EngineError stands for a driver that can't be loaded."""

    def put(driver):
        def load():
            if isinstance(driver, Exception):
                raise driver
            return driver

        monkeypatch.setattr(plugins.driver, "driver", load)
        monkeypatch.setattr(cuda, "driver", load)
        cuda.gpus.cache_clear()

    yield put
    cuda.gpus.cache_clear()


@pytest.fixture
def driver(install) -> Driver:
    driver = Driver()
    install(driver)
    return driver


@pytest.fixture
def gpu(driver: Driver) -> cuda.Cuda:
    gpu = cuda.Cuda()
    assert gpu.stream == 7 and driver.calls[-1] == ("cuStreamCreate", "non blocking")
    driver.calls.clear()
    return gpu


class TestMemory:
    @pytest.mark.parametrize(("size", "allocated"), [(0, 1), (1, 1), (2, 2), (4096, 4096)])
    def test_an_allocation_has_the_size_that_was_asked_for_and_at_least_a_byte(self, gpu, driver, size, allocated) -> None:
        address = gpu.allocate(size)
        assert driver.calls == [("cuMemAlloc", allocated)] and list(driver.memory) == [address]
        gpu.free(address + 1, address, address)
        assert driver.calls[1:] == [("cuMemFree", address)]
        gpu.close()
        assert driver.calls[2:] == [("cuStreamDestroy", 7)] and gpu.stream == 0

    @pytest.mark.parametrize(
        ("shape", "dtype", "nbytes"),
        [((2, 3), np.float32, 24), ((5,), np.float16, 10), ((), np.int64, 8), ((0, 4), np.int64, 1), ((1,), np.int8, 1)],
    )
    def test_an_array_in_page_locked_memory_is_as_large_as_its_shape(self, gpu, driver, shape, dtype, nbytes) -> None:
        array = gpu.host(shape, np.dtype(dtype))
        assert driver.calls == [("cuMemAllocHost", nbytes)] and (array.shape, array.dtype) == (shape, dtype)
        (address,) = driver.memory
        array[...] = 1
        assert bytes(driver.memory[address]) == (array.tobytes() or b"\0")
        gpu.close()
        assert driver.calls[1:] == [("cuMemFreeHost", address), ("cuStreamDestroy", 7)]

    def test_everything_is_freed_once(self, gpu, driver) -> None:
        first = gpu.allocate(16)
        gpu.allocate(0)
        gpu.host((3,), np.dtype(np.int64))
        gpu.free(first)
        gpu.free(first)
        assert len(driver.memory) == 2
        gpu.close()
        gpu.close()
        names = [name for name, *_ in driver.calls]
        assert not driver.memory and [names.count(name) for name in ("cuMemFree", "cuMemFreeHost", "cuStreamDestroy")] == [2, 1, 1]


def test_copies_and_fills_go_onto_the_stream(gpu: cuda.Cuda, driver: Driver) -> None:
    array = np.zeros((3, 5), np.float32)
    gpu.to_device(1000, array)
    gpu.to_host(array, 2000)
    gpu.to_device(1000, array[:0])
    gpu.zero(3000, 12)
    gpu.synchronize()
    gpu.replay(13)
    gpu.drop_graph(13)
    here = array.ctypes.data
    assert driver.calls == [
        ("cuMemcpyHtoDAsync", 1000, here, 60, 7),
        ("cuMemcpyDtoHAsync", here, 2000, 60, 7),
        ("cuMemsetD8Async", 3000, 0, 12, 7),
        ("cuStreamSynchronize", 7),
        ("cuGraphLaunch", 13, 7),
        ("cuGraphExecDestroy", 13),
    ]


class TestCapture:
    def test_a_launch_is_recorded_between_begin_and_end(self, gpu, driver) -> None:
        assert gpu.capture(lambda: driver.calls.append("launched")) == 13
        assert driver.calls == [
            ("cuStreamBeginCapture", 7, "thread local"),
            "launched",
            ("cuStreamEndCapture", 7),
            ("cuGraphInstantiate", 11, 0),
            ("cuGraphDestroy", 11),
        ]

    @pytest.mark.parametrize("graph", [None, 0, 11])
    def test_a_launch_that_fails_ends_the_capture_and_drops_what_it_left(self, gpu, driver, graph) -> None:
        def fail() -> None:
            raise KeyboardInterrupt

        driver.answers["cuStreamEndCapture"] = graph
        with pytest.raises(KeyboardInterrupt):
            gpu.capture(fail)
        assert driver.calls[1:] == [("cuStreamEndCapture", 7), *([("cuGraphDestroy", 11)] if graph else [])]

    @pytest.mark.parametrize("name", ["cuStreamBeginCapture", "cuStreamEndCapture", "cuGraphInstantiate"])
    def test_what_cannot_be_captured_is_an_error(self, gpu, driver, name) -> None:
        driver.failing = {name: 801}
        with pytest.raises(EngineError, match=name):
            gpu.capture(lambda: None)
        assert (("cuGraphDestroy", 11) in driver.calls) == (name == "cuGraphInstantiate")


@pytest.mark.parametrize(
    ("name", "do", "doing"),
    [
        ("cuMemAlloc", lambda gpu: gpu.allocate(5 << 20), "allocating 5 MiB on the GPU"),
        ("cuMemAllocHost", lambda gpu: gpu.host((3 << 19,), np.dtype(np.float32)), "page-locking 6 MiB"),
        ("cuStreamSynchronize", lambda gpu: gpu.synchronize(), "running the engine"),
        ("cuGraphLaunch", lambda gpu: gpu.replay(1), "cuGraphLaunch"),
        ("cuMemsetD8Async", lambda gpu: gpu.zero(1, 1), "cuMemsetD8Async"),
    ],
)
def test_a_failure_names_the_operation_in_cudas_words(gpu: cuda.Cuda, driver: Driver, name, do, doing) -> None:
    driver.failing[name] = 2
    with pytest.raises(EngineError, match=rf"^{doing}: .*no luck.*2"):
        do(gpu)


@pytest.mark.parametrize(("number", "version"), [(13000, "13.0"), (12060, "12.6"), (11080, "11.8"), (12110, "12.11")])
def test_the_drivers_version_is_major_and_minor(driver: Driver, number: int, version: str) -> None:
    driver.answers["cuDriverGetVersion"] = number
    assert cuda.driver_version() == version
    driver.failing["cuDriverGetVersion"] = 3
    assert cuda.driver_version() is None


class Machine(Driver):
    """One with these GPUs: (name, compute capability, memory) each, None for one that can't be queried."""

    def __init__(self, *gpus: tuple[bytes, tuple[int, int], int] | None, fails: str = ""):
        super().__init__()
        self.gpus, self.fails = gpus, fails

    def cuDeviceGetCount(self):
        return 100 if self.fails == "cuDeviceGetCount" else 0, len(self.gpus)

    def cuDeviceGet(self, ordinal: int):
        return 0 if self.gpus[ordinal] else 101, ordinal

    def cuDeviceGetName(self, size: int, device: int):
        return 1 if self.fails == "cuDeviceGetName" else 0, self.gpus[device][0].ljust(size, b"\0")

    def cuDeviceGetAttribute(self, attribute: str, device: int):
        return 1 if self.fails == attribute else 0, self.gpus[device][1][("major", "minor").index(attribute)]

    def cuDeviceTotalMem(self, device: int):
        return 1 if self.fails == "cuDeviceTotalMem" else 0, self.gpus[device][2]


@pytest.mark.parametrize(
    ("machine", "found"),
    [
        (EngineError("no NVIDIA driver"), ()),
        (Machine(), ()),
        (Machine((b"A", (8, 0), 5), (b"B", (12, 1), 6 << 40)), (cuda.Gpu("A", (8, 0), 5), cuda.Gpu("B", (12, 1), 6 << 40))),
        (Machine(None, (b"B\xff", (9, 0), 6)), (cuda.Gpu("B\ufffd", (9, 0), 6),)),
        *((Machine((b"A", (8, 0), 5), fails=name), ()) for name in ("cuDeviceGetCount", "cuDeviceGetName", "major", "minor",
                                                                    "cuDeviceTotalMem")),
    ],
)  # fmt: skip
def test_every_gpu_that_can_be_queried_is_found(install, machine, found) -> None:
    install(machine)
    assert cuda.gpus() == found and [gpu.target for gpu in found] == [f"sm{a}{b}" for a, b in (gpu.capability for gpu in found)]
    reason = cuda.no_gpu()
    assert reason is None if found else ("no NVIDIA driver" if isinstance(machine, Exception) else "sees no GPU") in reason


ON_THE_HOST = """
import ctypes
import numpy as np
from runtime.core.errors import EngineError
from runtime.engine import cuda

def live():
    return ctypes.CDLL("libcuda.so.1").live_objects()

def on_host():
    gpu.to_host(staged, address)
    gpu.synchronize()
    return staged.ravel().tolist()

assert cuda.gpus() == (cuda.Gpu("Orin", (8, 7), 32 << 30),) and cuda.no_gpu() is None and cuda.driver_version() == "12.6"
gpu = cuda.Cuda()
values = np.arange(1, 5, dtype=np.float32)
address, staged = gpu.allocate(values.nbytes), gpu.host((4,), values.dtype)
gpu.to_device(address, values)
assert on_host() == [1, 2, 3, 4]
graph = gpu.capture(lambda: gpu.zero(address, 8))
assert on_host() == [1, 2, 3, 4]
gpu.replay(graph)
assert on_host() == [0, 0, 3, 4]
gpu.drop_graph(graph)
try:
    gpu.capture(lambda: gpu.allocate(1 << 60))
    raise AssertionError("allocated")
except EngineError as error:
    assert "out of memory" in str(error), error
assert live() == 3  # the stream and two buffers
gpu.close()
assert live() == 0
"""


def test_the_real_bindings_take_these_calls(tmp_path: Path) -> None:
    pytest.importorskip("cuda.bindings.driver", reason="cuda-bindings is not installed")
    if shutil.which("g++") is None:
        pytest.skip("no g++ on this machine")
    command = [
        "g++",
        "-std=c++17",
        "-shared",
        "-fPIC",
        "-Wall",
        "-Werror",
        "-Wl,-soname,libcuda.so.1",
        "-o",
        tmp_path / "libcuda.so.1",
    ]
    subprocess.run([*command, Path(__file__).with_name("memory_driver.cpp"), "-ldl"], check=True)
    variables = {"LD_LIBRARY_PATH": str(tmp_path), "PYTHONPATH": str(Path(__file__).parents[3])}
    done = subprocess.run([sys.executable, "-c", ON_THE_HOST], env=os.environ | variables, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
