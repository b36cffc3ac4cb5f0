"""The binding logic of the TensorRT engines, on a stand-in for the GPU: host memory for device memory and NumPy for kernels.

What a real GPU does with these calls is not shown here; that the right address, shape and order reach it is.
"""

from __future__ import annotations

import ctypes
import gc
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from runtime.core.errors import EngineError
from runtime.engine import EngineOptions, cuda, tensorrt
from runtime.engine import trt_api as trt
from runtime.engine.tensorrt import TensorRTEngine, TensorRTRTXEngine
from runtime.engine.trt_plugin import PluginChoice

FLOAT, INT64, BF16 = "FLOAT", "INT64", "BF16"


class Module:
    """The few names of the tensorrt module that an engine reads."""

    __version__ = "10.3.0"

    class DataType:
        FLOAT, HALF, INT64, INT32, INT8, UINT8, BOOL = "FLOAT", "HALF", "INT64", "INT32", "INT8", "UINT8", "BOOL"

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


@pytest.fixture(autouse=True)
def module(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trt, "load", lambda backend: Module)
    monkeypatch.setattr(trt, "last_error", lambda backend: "broken")


def double(arrays: dict[str, np.ndarray]) -> None:
    arrays["y"][...] = 2 * arrays["x"]


def static() -> tuple[TensorRTEngine, Engine, Gpu]:
    engine, gpu = Engine({"x": ("INPUT", FLOAT, (3, 4)), "y": ("OUTPUT", FLOAT, (3, 4))}, double), Gpu()
    return TensorRTEngine(engine, gpu), engine, gpu


def dynamic() -> tuple[TensorRTEngine, Engine, Gpu]:
    tensors = {"x": ("INPUT", FLOAT, (-1, 4)), "y": ("OUTPUT", FLOAT, None)}
    engine, gpu = Engine(tensors, double, maximum={"x": (6, 4)}), Gpu()
    return TensorRTEngine(engine, gpu, {"x": ["S", 4]}), engine, gpu


def counter(aliases: dict | None = None) -> tuple[TensorRTEngine, Engine, Gpu]:
    """A cache to which every run adds x; y is the cache as it was before."""

    def step(arrays: dict[str, np.ndarray]) -> None:
        arrays["y"][...] = arrays["past"]
        arrays["present"][...] = arrays["past"] + arrays["x"]

    tensors = {name: ("INPUT", FLOAT, (2,)) for name in ("x", "past")} | {
        name: ("OUTPUT", FLOAT, (2,)) for name in ("y", "present")
    }
    engine, gpu = Engine(tensors, step, aliases=aliases), Gpu()
    return TensorRTEngine(engine, gpu), engine, gpu


def array(*shape: int) -> np.ndarray:
    return np.arange(np.prod(shape), dtype=np.float32).reshape(shape)


def test_specs_carry_the_names_of_dynamic_dimensions() -> None:
    engine, *_ = dynamic()
    assert [(spec.name, spec.dtype, spec.shape) for spec in engine.inputs] == [("x", np.dtype(np.float32), ("S", 4))]


def test_a_dtype_that_numpy_lacks_is_refused() -> None:
    with pytest.raises(EngineError, match="x is BF16"):
        TensorRTEngine(Engine({"x": ("INPUT", BF16, (1,))}, double), Gpu())


def test_results_are_right_and_buffers_are_reused() -> None:
    engine, _, gpu = static()
    first = engine.run({"x": array(3, 4)})["y"]
    buffers = set(gpu.memory)
    second = engine.run({"x": array(3, 4) + 1})["y"]
    np.testing.assert_array_equal(first, 2 * array(3, 4))  # the second run did not write into the first's result
    np.testing.assert_array_equal(second, 2 * (array(3, 4) + 1))
    assert set(gpu.memory) == buffers and len(buffers) == 2


def test_an_array_that_is_not_contiguous_is_fed_in_its_order() -> None:
    engine, *_ = static()
    transposed = array(4, 3).T
    np.testing.assert_array_equal(engine.run({"x": transposed})["y"], 2 * transposed)


def test_a_static_graph_is_captured_once_after_its_first_run() -> None:
    engine, _, gpu = static()
    for shift in range(3):
        np.testing.assert_array_equal(engine.run({"x": array(3, 4) + shift})["y"], 2 * (array(3, 4) + shift))
    assert gpu.calls == ["synchronize", "capture", "replay", "synchronize", "replay", "synchronize"]
    engine.close()
    assert gpu.calls[-1] == "drop" and not gpu.memory


def test_where_capture_fails_runs_go_on_and_it_is_said_once(capsys: pytest.CaptureFixture) -> None:
    engine, context, gpu = static()
    gpu.fails_to_capture = True
    for _ in range(3):
        np.testing.assert_array_equal(engine.run({"x": array(3, 4)})["y"], 2 * array(3, 4))
    assert gpu.calls.count("capture") == 1 and "replay" not in gpu.calls and context.runs == 3
    assert capsys.readouterr().err.count("tensorrt: no CUDA graph (cudaStreamEndCapture") == 1


def test_dynamic_shapes_use_one_buffer_of_the_largest_and_no_cuda_graph() -> None:
    engine, _, gpu = dynamic()
    for rows in (1, 6, 2):
        np.testing.assert_array_equal(engine.run({"x": array(rows, 4)})["y"], 2 * array(rows, 4))
    assert sorted(ctypes.sizeof(buffer) for buffer in gpu.memory.values()) == [96, 96]
    assert "capture" not in gpu.calls


def test_more_than_the_profile_takes_is_refused_before_the_launch() -> None:
    engine, context, _ = dynamic()
    with pytest.raises(EngineError, match=r"x has shape \[7, 4\], the engine was built for at most \[6, 4\]"):
        engine.run({"x": array(7, 4)})
    assert context.runs == 0


@pytest.mark.parametrize("feeds", [{}, {"z": array(3, 4)}, {"x": array(3, 5)}, {"x": array(3, 4).astype(np.float64)}])
def test_wrong_inputs_are_refused_before_the_launch(feeds: dict[str, np.ndarray]) -> None:
    engine, context, _ = static()
    with pytest.raises(EngineError):
        engine.run(feeds)
    assert context.runs == 0


def test_a_state_starts_at_zero_and_its_two_buffers_change_places() -> None:
    engine, context, _ = counter()
    state = engine.new_state({"past": "present"})
    seen = []
    for step in range(3):
        result = engine.run({"x": np.full(2, step + 1, np.float32)}, state)
        assert result.keys() == {"y"}
        seen.append((result["y"].tolist(), context.addresses["past"], context.addresses["present"]))
    assert [values for values, _, _ in seen] == [[0, 0], [1, 1], [3, 3]]
    assert seen[0][1:] == seen[1][2:0:-1] == seen[2][1:] and seen[0][1] != seen[0][2]


def test_a_state_is_one_buffer_where_tensorrt_declares_the_alias() -> None:
    engine, context, _ = counter(aliases={"present": "past"})
    state = engine.new_state({"past": "present"})
    results = [engine.run({"x": np.ones(2, np.float32)}, state)["y"].tolist() for _ in range(3)]
    assert results == [[0, 0], [1, 1], [2, 2]]
    assert context.addresses["past"] == context.addresses["present"]


def test_two_conversations_do_not_mix_and_a_dropped_one_is_freed() -> None:
    engine, _, gpu = counter()
    one, two = engine.new_state({"past": "present"}), engine.new_state({"past": "present"})
    engine.run({"x": np.ones(2, np.float32)}, one)
    assert engine.run({"x": np.ones(2, np.float32)}, two)["y"].tolist() == [0, 0]
    assert engine.run({"x": np.ones(2, np.float32)}, one)["y"].tolist() == [1, 1]
    before = len(gpu.memory)
    del two
    gc.collect()
    assert len(gpu.memory) == before - 2


def test_pairs_that_do_not_match_are_refused() -> None:
    engine, *_ = counter()
    with pytest.raises(EngineError, match="no pair past -> future"):
        engine.new_state({"past": "future"})


@pytest.mark.parametrize(("dtype", "shape"), [(INT64, (2,)), (FLOAT, (3,))])
def test_a_state_of_two_shapes_or_dtypes_is_refused(dtype: str, shape: tuple[int, ...]) -> None:
    tensors = {"past": ("INPUT", FLOAT, (2,)), "present": ("OUTPUT", dtype, shape)}
    engine = TensorRTEngine(Engine(tensors, double), Gpu())
    with pytest.raises(EngineError, match=rf"past \(2,\) and present \({shape[0]},\) can't share a buffer"):
        engine.new_state({"past": "present"})


def test_an_engine_without_a_context_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Engine, "create_execution_context", lambda engine: None)
    with pytest.raises(EngineError, match="tensorrt could not make an execution context: broken"):
        static()


def test_an_output_whose_shape_depends_on_values_is_refused() -> None:
    with pytest.raises(EngineError, match="the shape of output y depends on values"):
        TensorRTEngine(Engine({"x": ("INPUT", FLOAT, (3, 4)), "y": ("OUTPUT", FLOAT, (-1, 4))}, double), Gpu())


def test_a_buffer_that_is_refused_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    engine, context, _ = static()
    monkeypatch.setattr(context, "set_tensor_address", lambda name, address: name != "y")
    with pytest.raises(EngineError, match="tensorrt refused the buffer of y: broken"):
        engine.run({"x": array(3, 4)})


def test_dimensions_without_a_recorded_name_get_one_each() -> None:
    tensors = {"x": ("INPUT", FLOAT, (-1, 4)), "y": ("OUTPUT", FLOAT, None)}
    engine = TensorRTEngine(Engine(tensors, double, maximum={"x": (6, 4)}), Gpu())
    assert [spec.shape for spec in engine.inputs] == [("x.0", 4)]


def test_a_conversation_before_the_first_run_alone_has_warmed_the_engine_up() -> None:
    """What a first run allocates is there after one with a state too."""
    engine, _, gpu = counter()
    engine.run({"x": np.ones(2, np.float32)}, engine.new_state({"past": "present"}))
    engine.run({"x": np.ones(2, np.float32), "past": np.ones(2, np.float32)})
    assert gpu.calls.count("capture") == 1


class TestDeserialize:
    class Library(Module):
        """initialised: whether the library's own plugins are there when the engine is read."""

        initialised: bool

        @classmethod
        def init_libnvinfer_plugins(cls, log: object, namespace: str) -> None:
            cls.initialised = True

        class Runtime:
            def __init__(self, log: object) -> None:
                pass

            def deserialize_cuda_engine(self, content: object) -> object:
                return content[:] if content[:1] != b"-" else None

    @pytest.fixture(autouse=True)
    def library(self, monkeypatch: pytest.MonkeyPatch) -> type[Library]:
        self.Library.initialised = False
        monkeypatch.setattr(trt, "load", lambda backend: self.Library)
        monkeypatch.setattr(trt, "logger", lambda backend: None)
        return self.Library

    @pytest.mark.parametrize("backend", ["tensorrt", "tensorrt-rtx"])
    def test_the_file_is_read_and_tensorrt_has_its_own_plugins(self, backend: str, library: type[Library], tmp_path: Path) -> None:
        (tmp_path / "vision.engine").write_bytes(b"an engine")
        assert tensorrt._deserialize(backend, tmp_path / "vision.engine", tmp_path) == b"an engine"
        assert library.initialised == (backend == "tensorrt")

    def test_an_engine_that_the_library_refuses_is_built_again(self, tmp_path: Path) -> None:
        file = tmp_path / "vision.engine"
        file.write_bytes(b"-")
        with pytest.raises(EngineError) as raised:
            tensorrt._deserialize("tensorrt", file, Path("b"))
        assert str(raised.value) == (
            f"tensorrt 10.3.0 can't load {file}: broken; run `python -m runtime build b --backend tensorrt --force`"
        )


def test_a_failed_launch_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    engine, context, _ = static()
    monkeypatch.setattr(context, "execute_async_v3", lambda stream: False)
    with pytest.raises(EngineError, match="could not run the engine: broken"):
        engine.run({"x": array(3, 4)})


class TestOpen:
    """Which library an engine needs is registered before the engine is read, and a GPU that was taken is given back."""

    @pytest.fixture
    def order(self, monkeypatch: pytest.MonkeyPatch) -> list[object]:
        """What happened, on stand-ins for all that needs a GPU."""
        order: list[object] = []
        monkeypatch.setattr(TensorRTEngine, "unavailable", classmethod(lambda cls, device: None))
        monkeypatch.setattr(tensorrt, "find_engine", lambda bundle, backend, graph: Path(f"/bundle/{backend}/{graph}.engine"))
        monkeypatch.setattr(tensorrt, "plugin_library", lambda path, graph: path.parent / "plugin.so")
        monkeypatch.setattr(tensorrt, "dimension_names", lambda path, graph: {"x": ["S", 4]})
        monkeypatch.setattr(PluginChoice, "register", lambda choice, backend: order.append((choice.kind, choice.library, backend)))
        monkeypatch.setattr(cuda, "Cuda", lambda: Gpu())
        monkeypatch.setattr(Gpu, "close", lambda gpu: order.append("closed"))
        return order

    def test_the_plugin_comes_before_the_engine(self, order: list[object], monkeypatch: pytest.MonkeyPatch) -> None:
        raw = Engine({"x": ("INPUT", FLOAT, (-1, 4)), "y": ("OUTPUT", FLOAT, None)}, double, maximum={"x": (6, 4)})
        monkeypatch.setattr(tensorrt, "_deserialize", lambda backend, path, bundle: order.append((backend, path, bundle)) or raw)
        bundle = SimpleNamespace(path=Path("/bundle"))
        engine = TensorRTEngine.open(bundle, "vision", EngineOptions(device="cuda"))
        library = Path("/bundle/tensorrt/plugin.so")
        read = ("tensorrt", Path("/bundle/tensorrt/vision.engine"), Path("/bundle"))
        assert order == [("library", library, "tensorrt"), read]
        assert [(spec.name, spec.shape) for spec in engine.inputs] == [("x", ("S", 4))]

    def test_an_engine_that_cannot_be_read_gives_the_gpu_back(self, order: list[object], monkeypatch: pytest.MonkeyPatch) -> None:
        def fails(*_: object) -> None:
            raise EngineError("no engine")

        monkeypatch.setattr(tensorrt, "_deserialize", fails)
        with pytest.raises(EngineError, match="no engine"):
            TensorRTEngine.open(SimpleNamespace(path=Path("/bundle")), "vision", EngineOptions(device="cuda"))
        assert order[-1] == "closed"


class TestUnavailable:
    def test_on_a_cpu(self) -> None:
        assert TensorRTEngine.unavailable("cpu") == "TensorRT engines run on a GPU, not on cpu; pass --device cuda"

    @pytest.mark.parametrize(("engine", "extra"), [(TensorRTEngine, "gpu"), (TensorRTRTXEngine, "rtx")])
    def test_without_the_package(self, engine: type[TensorRTEngine], extra: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(trt, "installed", lambda backend: False)
        assert f'pip install "st-gridpool[{extra}]"' in (engine.unavailable("cuda") or "")

    def test_without_a_gpu(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(trt, "installed", lambda backend: True)
        monkeypatch.setattr(cuda, "gpus", lambda: ())
        assert "NVIDIA" in (TensorRTRTXEngine.unavailable("cuda") or "")

    def test_where_it_can_run(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(trt, "installed", lambda backend: True)
        monkeypatch.setattr(cuda, "gpus", lambda: (cuda.Gpu("Test GPU", (8, 9), 2**34),))
        assert TensorRTRTXEngine.unavailable("cuda") is None
