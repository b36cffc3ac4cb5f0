"""How a TensorRT engine is opened: when it is unavailable, which file is read, and what is registered before."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
from refusal import naming
from tensorrt_on_host import FLOAT, Engine, Gpu, Module, double

from runtime.core.errors import EngineError
from runtime.engine import EngineOptions, cuda, tensorrt
from runtime.engine import trt_api as trt
from runtime.engine.tensorrt import TensorRTEngine, TensorRTRTXEngine

REAL_LOAD = trt.load


@pytest.fixture(autouse=True)
def module(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trt, "load", lambda backend: Module)
    monkeypatch.setattr(trt, "last_error", lambda backend: "broken")


class TestDeserialize:
    class Library(Module):
        """initialised: whether the library's plugins are there when the engine is read."""

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
    def test_the_file_is_read_and_tensorrt_has_its_plugins(self, backend: str, library: type[Library], tmp_path: Path) -> None:
        (tmp_path / "vision.engine").write_bytes(b"an engine")
        assert tensorrt._deserialize(backend, tmp_path / "vision.engine", tmp_path) == b"an engine"
        assert library.initialised == (backend == "tensorrt")

    def test_an_engine_that_the_library_refuses_is_built_again(self, tmp_path: Path) -> None:
        file = tmp_path / "vision.engine"
        file.write_bytes(b"-")
        with pytest.raises(EngineError, match=naming(file, "broken", "`python -m runtime build b --backend tensorrt --force`")):
            tensorrt._deserialize("tensorrt", file, Path("b"))


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
        monkeypatch.setattr(tensorrt, "load_library", lambda module, library: order.append((module, library)))
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
        assert order == [(Module, library), read]
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
        assert "--device cuda" in (TensorRTEngine.unavailable("cpu") or "")

    @pytest.mark.parametrize(("engine", "extra"), [(TensorRTEngine, "gpu"), (TensorRTRTXEngine, "rtx")])
    def test_without_the_package(self, engine: type[TensorRTEngine], extra: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(trt, "installed", lambda backend: False)
        monkeypatch.setattr(trt, "load", REAL_LOAD)
        assert f'pip install "st-gridpool[{extra}]"' in (engine.unavailable("cuda") or "")

    def test_without_a_gpu(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(trt, "installed", lambda backend: True)
        monkeypatch.setattr(cuda, "gpus", lambda: ())
        assert "NVIDIA" in (TensorRTRTXEngine.unavailable("cuda") or "")

    def test_where_it_can_run(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(trt, "installed", lambda backend: True)
        monkeypatch.setattr(cuda, "gpus", lambda: (cuda.Gpu("Test GPU", (8, 9), 2**34),))
        assert TensorRTRTXEngine.unavailable("cuda") is None
