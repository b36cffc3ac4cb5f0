"""TensorRT engines' specs, buffers and launches, asked one by one on an engine that computes nothing."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
from refusal import naming

from runtime.core.errors import EngineError, UserError
from runtime.engine import EngineOptions, cuda, tensorrt
from runtime.engine import trt_api as trt
from runtime.engine.tensorrt import TensorRTEngine, TensorRTRTXEngine

REAL_LOAD = trt.load
KINDS = {"FLOAT": "f4", "HALF": "f2", "INT64": "i8", "INT32": "i4", "INT8": "i1", "UINT8": "u1", "BOOL": "?"}
MODULE = SimpleNamespace(nptype=KINDS.__getitem__, TensorIOMode=SimpleNamespace(INPUT="in"))


class Gpu:
    """Addresses count up from 1000; `calls`: what was asked, in order."""

    stream = 7

    def __init__(self) -> None:
        self.calls: list[tuple] = []
        self.next = 1000

    def allocate(self, nbytes: int) -> int:
        self.next += 1
        self.calls.append(("allocate", nbytes, self.next))
        return self.next

    def host(self, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
        self.calls.append(("host", shape, dtype))
        return np.zeros(shape, dtype)

    def to_host(self, array: np.ndarray, address: int) -> None:
        self.calls.append(("to_host", array.shape, address))
        array[...] = 5

    def capture(self, enqueue) -> int:
        enqueue()
        self.calls.append(("capture",))
        return 0  # a handle like any other

    def to_device(self, address: int, array: np.ndarray) -> None:
        self.calls.append(("to_device", address, array.tolist()))

    def __getattr__(self, name: str):
        return lambda *arguments: self.calls.append((name, *arguments))


class Engine:
    """An ICudaEngine and its context. tensors: {name: (mode, kind, shape)}, -1 for what is open; largest: {name: profile's end}."""

    def __init__(self, tensors: dict, largest: dict | None = None) -> None:
        self.tensors, self.largest, self.asked = tensors, largest or {}, []
        self.shapes = {name: shape for name, (_, _, shape) in tensors.items()}
        self.num_io_tensors, self.addresses = len(tensors), {}
        self.create_execution_context = lambda: self
        self.get_tensor_name = list(tensors).__getitem__
        self.get_tensor_mode = lambda name: tensors[name][0]
        self.get_tensor_dtype = lambda name: tensors[name][1]
        self.set_tensor_address = lambda name, address: self.addresses.update({name: address}) or True
        self.execute_async_v3 = lambda stream: self.asked.append(("run", stream, dict(self.addresses))) or True

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        first = self.shapes["x"][0] if "x" in self.shapes else 0
        return tuple(first if size == "x" else size for size in self.shapes[name])  # "x": as many as the input has

    def get_tensor_profile_shape(self, name: str, profile: int) -> tuple[tuple[int, ...], ...]:
        self.asked.append(("profile", name, profile))
        return ((1, 1), (2, 2), self.largest[name])

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> None:
        self.asked.append(("shape", name, shape))
        self.shapes[name] = shape


@pytest.fixture(autouse=True)
def library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trt, "load", lambda backend: MODULE)
    monkeypatch.setattr(trt, "last_error", lambda backend: "broken")


def opened(tensors: dict, largest: dict | None = None, names: dict | None = None) -> tuple[TensorRTEngine, Engine, Gpu]:
    engine, gpu = Engine(tensors, largest), Gpu()
    return TensorRTEngine(engine, gpu, names), engine, gpu


@pytest.mark.parametrize(("kind", "dtype"), KINDS.items())
def test_each_type_of_tensorrt_s_is_numpy_s(kind: str, dtype: str) -> None:
    engine, _, _ = opened({"x": ("in", kind, (2,)), "y": ("out", kind, (3, 4))})
    assert [(spec.name, spec.dtype, spec.shape) for spec in engine.inputs] == [("x", np.dtype(dtype), (2,))]
    assert [(spec.name, spec.dtype, spec.shape) for spec in engine.outputs] == [("y", np.dtype(dtype), (3, 4))]
    assert tensorrt._nbytes((3, 4), np.dtype(dtype)) == 12 * np.dtype(dtype).itemsize
    assert tensorrt._nbytes((), np.dtype(dtype)) == np.dtype(dtype).itemsize
    assert tensorrt._nbytes((1 << 20, 1 << 20), np.dtype(dtype)) == np.dtype(dtype).itemsize << 40


def test_open_dimensions_are_named_and_as_large_as_the_profile_says() -> None:
    tensors = {
        "x": ("in", "FLOAT", (-1, -1)),
        "z": ("in", "FLOAT", (0, 4)),
        "y": ("out", "FLOAT", ("x", 2)),
        "s": ("out", "FLOAT", ()),
    }
    engine, raw, _ = opened(tensors, {"x": (6, 8)}, {"x": ["S", "P"]})
    assert [spec.shape for spec in engine.inputs] == [("S", "P"), (0, 4)]
    assert raw.asked == [("profile", "x", 0), ("shape", "x", (6, 8))]
    assert engine._largest == {"x": (6, 8), "z": (0, 4), "y": (6, 2), "s": ()}
    assert not engine._may_capture


def test_memory_is_taken_once_and_as_large_as_the_largest() -> None:
    engine, raw, gpu = opened({"x": ("in", "HALF", (-1, 4)), "y": ("out", "FLOAT", ("x", 2))}, {"x": (6, 4)})
    for rows in (2, 6):
        got = engine.run({"x": np.full((rows, 4), rows, np.float16)})
        assert got["y"].shape == (rows, 2) and (got["y"] == 5).all()
    fed = [[2.0] * 4] * 2, [[6.0] * 4] * 6
    assert gpu.calls == [
        ("host", (24,), np.float16), ("allocate", 48, 1001), ("to_device", 1001, fed[0]), ("allocate", 48, 1002),
        ("host", (12,), np.float32), ("to_host", (2, 2), 1002), ("synchronize",),
        ("to_device", 1001, fed[1]), ("to_host", (6, 2), 1002), ("synchronize",),
    ]  # fmt: skip
    assert raw.asked[2:] == [
        ("shape", "x", (2, 4)), ("run", 7, {"x": 1001, "y": 1002}), ("shape", "x", (6, 4)), ("run", 7, {"x": 1001, "y": 1002}),
    ]  # fmt: skip
    engine.close()
    assert gpu.calls[-1] == ("close",) and ("drop_graph", 0) not in gpu.calls


def test_a_captured_graph_is_replayed_and_dropped_whatever_its_handle() -> None:
    engine, raw, gpu = opened({"x": ("in", "FLOAT", (1,)), "y": ("out", "FLOAT", (1,))})
    for _ in range(3):
        engine.run({"x": np.ones(1, np.float32)})
    kinds = [call[0] for call in gpu.calls]
    assert (kinds.count("capture"), kinds.count("replay")) == (1, 2) and ("replay", 0) in gpu.calls
    assert [asked[0] for asked in raw.asked] == ["run", "run"]  # the first run, and what was captured
    engine.close()
    assert gpu.calls[-2:] == [("drop_graph", 0), ("close",)]


def cache(**changed: tuple) -> dict:
    tensors = {
        "x": ("in", "FLOAT", (1,)),
        "past": ("in", "HALF", (2, 3)),
        "y": ("out", "FLOAT", (1,)),
        "present": ("out", "HALF", (2, 3)),
    }
    return tensors | changed


@pytest.mark.parametrize("alias", [None, "past", "another"])
def test_a_state_is_two_buffers_or_one_where_tensorrt_says_so(alias) -> None:
    engine, raw, gpu = opened(cache())
    if alias:
        raw.get_aliased_input_tensor = {"present": alias}.get
    state = engine.new_state({"past": "present"})
    read, write = state.reads["past"], state.writes["past"]
    assert state.pairs == {"past": "present"} and (read == write) is (alias == "past")
    assert gpu.calls[:2] == [("allocate", 12, read), ("zero", read, 12)]
    assert gpu.calls[2:] == ([] if alias == "past" else [("allocate", 12, write)])
    assert set(engine.run({"x": np.ones(1, np.float32)}, state)) == {"y"}
    assert (raw.asked[-1][2]["past"], raw.asked[-1][2]["present"]) == (read, write)
    assert (state.reads, state.writes) == ({"past": write}, {"past": read})
    del state
    assert gpu.calls[-1][0] == "free" and sorted(gpu.calls[-1][1:]) == sorted({read, write})


@pytest.mark.parametrize("present", [("out", "FLOAT", (2, 3)), ("out", "HALF", (3, 2)), ("out", "HALF", (2, 4))])
def test_a_pair_is_of_one_shape_and_type(present) -> None:
    engine, _, gpu = opened(cache(present=present))
    with pytest.raises(EngineError, match="can't share a buffer"):
        engine.new_state({"past": "present"})
    assert not gpu.calls


@pytest.mark.parametrize(("rows", "columns", "fits"), [(6, 8, True), (7, 8, False), (6, 9, False), (1, 1, True)])
def test_an_input_may_be_as_large_as_the_profile(rows, columns, fits) -> None:
    engine, raw, _ = opened({"x": ("in", "FLOAT", (-1, -1)), "y": ("out", "FLOAT", (1,))}, {"x": (6, 8)})
    feed = {"x": np.zeros((rows, columns), np.float32)}
    if fits:
        assert engine.run(feed)["y"].tolist() == [5]
        return
    with pytest.raises(EngineError, match=rf"^x .*\[{rows}, {columns}\].*\[6, 8\]$"):
        engine.run(feed)
    assert not [asked for asked in raw.asked if asked[0] == "run"]


@pytest.mark.parametrize(
    ("engine", "backend", "package"),
    [(TensorRTEngine, "tensorrt", "tensorrt"), (TensorRTRTXEngine, "tensorrt-rtx", "tensorrt_rtx")],
)
def test_why_it_can_t_run_is_the_first_reason_of_four(monkeypatch, engine, backend, package) -> None:
    assert (engine.backend, engine.device, engine.takes_bf16) == (backend, "cuda", False)

    def broken(name: str) -> None:
        raise UserError(f"{name} does not load")

    monkeypatch.setattr(cuda, "no_gpu", lambda: "no GPU")
    assert naming("TensorRT", "cpu", "--device cuda").match(engine.unavailable("cpu"))
    monkeypatch.setattr(trt, "installed", lambda name: False)
    monkeypatch.setattr(trt, "load", REAL_LOAD)
    assert naming(f"backend {backend}", f'"{package}"').match(engine.unavailable("cuda"))
    monkeypatch.setattr(trt, "load", broken)
    assert engine.unavailable("cuda") == f"{backend} does not load"
    monkeypatch.setattr(trt, "load", lambda name: MODULE)
    assert engine.unavailable("cuda") == "no GPU"
    monkeypatch.setattr(cuda, "no_gpu", lambda: None)
    assert engine.unavailable("cuda") is None


def test_without_a_plugin_library_none_is_registered(monkeypatch, tmp_path) -> None:
    asked = []
    monkeypatch.setattr(tensorrt, "find_engine", lambda bundle, backend, graph: asked.append((backend, graph)) or tmp_path / "e")
    monkeypatch.setattr(tensorrt, "plugin_library", lambda path, graph: None)
    monkeypatch.setattr(tensorrt, "load_library", lambda *_: asked.append("registered"))
    monkeypatch.setattr(tensorrt, "dimension_names", lambda path, graph: {})
    monkeypatch.setattr(tensorrt, "_deserialize", lambda backend, path, bundle: Engine({"x": ("in", "FLOAT", (1,))}))
    monkeypatch.setattr(cuda, "Cuda", Gpu)
    engine = TensorRTEngine.open(SimpleNamespace(path=tmp_path), "vision", EngineOptions("cuda"))
    assert asked == [("tensorrt", "vision")] and not engine._gpu.calls
