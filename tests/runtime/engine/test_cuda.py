"""What is asked of CUDA, on stand-ins for its two libraries: which calls, in which order, and what a failure leaves behind.

The numbers are those of NVIDIA's headers, read from cuda-bindings.
"""

from __future__ import annotations

import ctypes
import glob
from pathlib import Path

import numpy as np
import pytest

from runtime.core.errors import EngineError
from runtime.engine import cuda

SUCCESS, NOT_SUPPORTED = 0, 801


class Runtime:
    """libcudart in host memory. calls: names in order; failing: names that return NOT_SUPPORTED."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.failing: set[str] = set()
        self.memory: dict[int, ctypes.Array] = {}
        self.kinds: list[int] = []
        self.capturing = False

    def __getattr__(self, name: str):
        def call(*arguments):
            self.calls.append(name)
            if name in self.failing:
                return NOT_SUPPORTED
            return getattr(self, f"_{name}", lambda *_: SUCCESS)(*arguments)

        if name.startswith("_"):
            raise AttributeError(name)
        return call

    def _cudaGetErrorString(self, status: int) -> bytes:
        assert status == NOT_SUPPORTED
        return b"operation not supported"

    def _cudaStreamCreateWithFlags(self, stream, flags: int) -> int:
        stream._obj.value = 7
        return SUCCESS

    def _cudaMalloc(self, pointer, size: ctypes.c_size_t) -> int:
        buffer = (ctypes.c_char * size.value)()
        self.memory[ctypes.addressof(buffer)] = buffer
        pointer._obj.value = ctypes.addressof(buffer)
        return SUCCESS

    _cudaMallocHost = _cudaMalloc

    def _cudaFree(self, pointer: ctypes.c_void_p) -> int:
        del self.memory[pointer.value]
        return SUCCESS

    _cudaFreeHost = _cudaFree

    def _cudaMemcpyAsync(self, to, source, size, kind: int, stream) -> int:
        self.kinds.append(kind)
        ctypes.memmove(to.value, source.value, size.value)
        return SUCCESS

    def _cudaMemsetAsync(self, address, value: int, size, stream) -> int:
        ctypes.memset(address.value, value, size.value)
        return SUCCESS

    def _cudaStreamBeginCapture(self, stream, mode: int) -> int:
        self.capturing = True
        return SUCCESS

    def _cudaStreamEndCapture(self, stream, graph) -> int:
        self.capturing = False
        graph._obj.value = 11
        return SUCCESS

    def _cudaGraphInstantiateWithFlags(self, executable, graph, flags) -> int:
        assert graph.value == 11
        executable._obj.value = 13
        return SUCCESS


class Driver:
    """libcuda of a machine with one GPU."""

    def __init__(self, attributes: dict[int, int]):
        self.attributes = attributes

    def cuInit(self, flags: int) -> int:
        return SUCCESS

    def cuDeviceGetCount(self, count) -> int:
        count._obj.value = 1
        return SUCCESS

    def cuDeviceGet(self, device, ordinal: int) -> int:
        device._obj.value = ordinal
        return SUCCESS

    def cuDeviceGetName(self, name, size: int, device) -> int:
        name.value = b"Orin"
        return SUCCESS

    def cuDeviceGetAttribute(self, value, attribute: int, device) -> int:
        value._obj.value = self.attributes[attribute]
        return SUCCESS

    def cuDeviceTotalMem_v2(self, memory, device) -> int:
        memory._obj.value = 32 << 30
        return SUCCESS

    def cuDriverGetVersion(self, version) -> int:
        version._obj.value = 12060
        return SUCCESS


@pytest.fixture
def library(monkeypatch: pytest.MonkeyPatch) -> Runtime:
    library = Runtime()
    monkeypatch.setattr(cuda, "_runtime", lambda: library)
    return library


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch):
    numbers = pytest.importorskip("cuda.bindings.driver", reason="cuda-bindings is not installed").CUdevice_attribute
    major, minor = (getattr(numbers, f"CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_{part}") for part in ("MAJOR", "MINOR"))
    driver = Driver({int(major): 8, int(minor): 7})
    monkeypatch.setattr(cuda, "_driver", lambda: driver)
    cuda.gpus.cache_clear()
    yield driver
    cuda.gpus.cache_clear()


def test_a_gpu_is_named_by_its_compute_capability(driver: Driver) -> None:
    (gpu,) = cuda.gpus()
    assert gpu == cuda.Gpu("Orin", (8, 7), 32 << 30) and gpu.target == "sm87"
    assert cuda.no_gpu() is None
    assert cuda.driver_version() == "12.6"


def test_a_driver_without_a_device_and_no_driver_are_told_apart(driver: Driver, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(driver, "cuDeviceGetCount", lambda count: 100)  # CUDA_ERROR_NO_DEVICE
    assert cuda.gpus() == () and "sees no GPU" in (cuda.no_gpu() or "")
    monkeypatch.setattr(cuda, "_driver", lambda: None)
    assert "libcuda.so.1 is not installed" in (cuda.no_gpu() or "") and cuda.driver_version() is None


def test_what_is_copied_to_the_device_comes_back(library: Runtime) -> None:
    kinds = pytest.importorskip("cuda.bindings.runtime", reason="cuda-bindings is not installed").cudaMemcpyKind
    gpu = cuda.Cuda()
    values = np.arange(6, dtype=np.float32).reshape(2, 3)
    address = gpu.allocate(values.nbytes)
    back = gpu.host((2, 3), values.dtype)
    gpu.to_device(address, values)
    gpu.to_host(back, address)
    np.testing.assert_array_equal(back, values)
    assert library.kinds == [int(kinds.cudaMemcpyHostToDevice), int(kinds.cudaMemcpyDeviceToHost)]
    gpu.zero(address + 4, 8)
    gpu.to_host(back, address)
    assert back.ravel().tolist() == [0, 0, 0, 3, 4, 5]


def test_everything_is_freed_once(library: Runtime) -> None:
    gpu = cuda.Cuda()
    first = gpu.allocate(16)
    gpu.allocate(0)
    gpu.host((3,), np.dtype(np.int64))
    gpu.free(first)
    gpu.free(first)
    assert len(library.memory) == 2
    gpu.close()
    gpu.close()
    assert not library.memory and library.calls.count("cudaStreamDestroy") == 1
    assert (library.calls.count("cudaFree"), library.calls.count("cudaFreeHost")) == (2, 1)


def test_a_failed_call_is_an_error_in_cudas_words_and_the_next_one_does_not_inherit_it(library: Runtime) -> None:
    gpu = cuda.Cuda()
    library.failing = {"cudaMalloc"}
    with pytest.raises(EngineError, match=r"allocating 2 MiB on the GPU: CUDA says operation not supported \(error 801\)"):
        gpu.allocate(2 << 20)
    assert "cudaGetLastError" in library.calls


class TestCapture:
    def test_a_launch_is_recorded_between_begin_and_end(self, library: Runtime) -> None:
        gpu = cuda.Cuda()
        during: list[bool] = []
        library.calls.clear()
        graph = gpu.capture(lambda: during.append(library.capturing))
        assert during == [True] and not library.capturing and graph == 13
        assert library.calls == [
            "cudaStreamBeginCapture", "cudaStreamEndCapture", "cudaGraphInstantiateWithFlags", "cudaGraphDestroy",
        ]  # fmt: skip
        gpu.replay(graph)
        gpu.drop_graph(graph)
        assert library.calls[-2:] == ["cudaGraphLaunch", "cudaGraphExecDestroy"]

    def test_a_launch_that_fails_does_not_leave_the_stream_in_capture_mode(self, library: Runtime) -> None:
        gpu = cuda.Cuda()

        def launch() -> None:
            raise EngineError("no")

        with pytest.raises(EngineError, match="no"):
            gpu.capture(launch)
        assert not library.capturing and "cudaGraphInstantiateWithFlags" not in library.calls
        assert library.calls[-2:] == ["cudaGraphDestroy", "cudaGetLastError"]  # nothing of the capture is left

    @pytest.mark.parametrize("name", ["cudaStreamBeginCapture", "cudaStreamEndCapture", "cudaGraphInstantiateWithFlags"])
    def test_what_cannot_be_captured_is_an_error(self, library: Runtime, name: str) -> None:
        gpu = cuda.Cuda()
        library.failing = {name}
        with pytest.raises(EngineError, match=f"{name}: CUDA says operation not supported"):
            gpu.capture(lambda: None)
        assert ("cudaGraphDestroy" in library.calls) == (name == "cudaGraphInstantiateWithFlags")


def test_without_libcudart_the_error_says_what_brings_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> None:
        raise OSError(f"{name}: cannot open shared object file")

    monkeypatch.setattr(ctypes, "CDLL", absent)
    cuda._runtime.cache_clear()
    with pytest.raises(EngineError, match="pip install nvidia-cuda-runtime"):
        cuda.Cuda()


def test_the_newest_library_of_a_toolkit_is_tried_first_and_lib64_before_lib(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    toolkit, older = tmp_path / "toolkit", tmp_path / "older"
    files = [
        toolkit / "lib64/libcudart.so.13",
        toolkit / "lib64/libcudart.so.12",
        toolkit / "lib/libcudart.so",
        older / "lib/libcudart.so.11",
    ]
    for file in [*files, toolkit / "lib64/libcublas.so.13"]:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
    monkeypatch.setenv("CUDA_HOME", str(toolkit))
    monkeypatch.setenv("CUDA_PATH", str(older))
    assert cuda._runtime_files()[:4] == [str(file) for file in files]


def test_nvidia_s_wheels_are_looked_into(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "nvidia/cu13/lib/libcudart.so.13"
    file.parent.mkdir(parents=True)
    file.touch()
    for name in ("CUDA_HOME", "CUDA_PATH"):
        monkeypatch.delenv(name, raising=False)
    looked_at: list[str] = []
    real = glob.glob
    monkeypatch.setattr(glob, "glob", lambda pattern: looked_at.append(pattern) or real(pattern))
    monkeypatch.setattr(
        "importlib.util.find_spec", lambda name: type("Spec", (), {"submodule_search_locations": [str(file.parents[2])]})
    )
    assert str(file) in cuda._runtime_files()
    assert not [pattern for pattern in looked_at if pattern.startswith("/lib")]  # of a variable that is not set
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert str(file) not in cuda._runtime_files()


def test_the_first_library_that_loads_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[str] = []

    class Library:
        def __init__(self, name: str) -> None:
            tried.append(name)
            if name != "/toolkit/libcudart.so.12":
                raise OSError(name)
            self.cudaGetErrorString = type("Function", (), {})()

    monkeypatch.setattr(ctypes, "CDLL", Library)
    monkeypatch.setattr(cuda, "_runtime_files", lambda: ["/toolkit/libcudart.so.12", "/toolkit/libcudart.so"])
    cuda._runtime.cache_clear()
    assert cuda._runtime().cudaGetErrorString.restype is ctypes.c_char_p
    assert tried == ["libcudart.so.13", "libcudart.so.12", "libcudart.so", "/toolkit/libcudart.so.12"]
    cuda._runtime.cache_clear()
