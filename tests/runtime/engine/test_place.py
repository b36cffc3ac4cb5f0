"""Which device `auto` takes, with stand-ins for the GPU and the packages that are not here."""

from __future__ import annotations

import sys
import types
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import pytest

from runtime.__main__ import main
from runtime.bundle import DECODER, VISION, VISION_COMPRESSOR, VISION_ENCODER
from runtime.core.errors import EngineError
from runtime.engine import EngineOptions, backend_class, cuda, open_engine, place
from runtime.engine import onnx as onnx_engine
from runtime.engine.open import _order

CPU, CUDA = "CPUExecutionProvider", "CUDAExecutionProvider"


@pytest.fixture
def onnxruntime(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A stand-in for the GPU wheel: `starts` says which providers a session gets, `adds` what it computes with."""
    module = types.ModuleType("onnxruntime")
    vars(module).update(__version__="1.30.0", starts=[CUDA, CPU], asked=[], adds=lambda x: x + x)

    class Session:
        def __init__(self, model: bytes, settings: object, providers: list[str]) -> None:
            module.asked.append((model, providers))

        def get_providers(self) -> list[str]:
            return module.starts

        def run(self, names: None, feeds: dict[str, np.ndarray]) -> list[np.ndarray]:
            return [module.adds(feeds["x"])]

    vars(module).update(
        get_available_providers=lambda: [CUDA, CPU],
        SessionOptions=types.SimpleNamespace,
        InferenceSession=Session,
    )
    monkeypatch.setitem(sys.modules, "onnxruntime", module)
    onnx_engine._cuda_fault.cache_clear()
    yield module
    onnx_engine._cuda_fault.cache_clear()


@pytest.fixture
def usable(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Let TensorRT backends run here, with engines of some graphs."""

    def set_usable(**graphs: tuple[str, ...]) -> None:
        named = {name.replace("_", "-"): of for name, of in graphs.items()}
        for backend in ("tensorrt", "tensorrt-rtx"):
            reason = None if backend in named else f"{backend} is not installed"
            monkeypatch.setattr(backend_class(backend), "unavailable", classmethod(lambda cls, device, reason=reason: reason))

        def find_engine(bundle: object, backend: str, graph: str) -> None:
            if graph not in named[backend]:
                raise EngineError(f"no {backend} engine for {graph}")

        monkeypatch.setattr("runtime.engine.open.find_engine", find_engine)

    return set_usable


class TestDevice:
    def test_without_a_gpu_it_is_the_cpu(self, bundle, no_gpu, onnxruntime):
        for backend in ("auto", "onnx"):
            placed = place(bundle, backend, EngineOptions(threads=2))
            assert placed.options == EngineOptions("cpu", 2)
            assert placed.note.startswith("device cpu: ") and "NVIDIA" in placed.note and "\n" not in placed.note
        assert not onnxruntime.asked  # what needs a driver is not started without one

    def test_where_there_is_no_choice_nothing_is_said(self, bundle, no_gpu, onnxruntime):
        onnxruntime.get_available_providers = lambda: [CPU]
        assert [place(bundle, backend).note for backend in ("auto", "onnx", "openvino")] == [""] * 3

    def test_a_device_that_is_named_stays(self, bundle, gpu):
        for device in ("cpu", "cuda", "gpu.1"):
            placed = place(bundle, "auto", EngineOptions(device))
            assert (placed.options.device, placed.note) == (device, "")

    def test_onnx_takes_the_gpu_where_its_provider_computes_there(self, bundle, gpu, onnxruntime):
        placed = place(bundle, "onnx")
        assert (placed.options.device, placed.note) == ("cuda", "device cuda: Orin, backend onnx")
        assert [providers for _, providers in onnxruntime.asked] == [[CUDA, CPU]]
        place(bundle, "onnx")
        assert len(onnxruntime.asked) == 1

    def test_what_is_computed_to_see_whether_it_starts_is_a_model(self, bundle, gpu, onnxruntime, monkeypatch):
        place(bundle, "onnx")
        ((model, _),) = onnxruntime.asked
        onnx.checker.check_model(model, full_check=True)
        monkeypatch.undo()
        import onnxruntime as real

        (total,) = real.InferenceSession(model, providers=[CPU]).run(None, {"x": np.array([21], np.float32)})
        assert total == [42]

    def test_cuda_of_nvidias_wheels_is_loaded_before_the_first_session_and_without_a_word(self, bundle, gpu, onnxruntime, capsys):
        sessions_before = []

        def preload_dlls():
            sessions_before.append(len(onnxruntime.asked))
            print("Failed to load libcublas.so.13: cannot open shared object file")

        onnxruntime.preload_dlls = preload_dlls
        place(bundle, "onnx")
        assert sessions_before == [0] and len(onnxruntime.asked) == 1
        assert capsys.readouterr().out == ""

    def test_a_provider_that_does_not_start_is_passed_over(self, bundle, gpu, onnxruntime):
        onnxruntime.starts = [CPU]
        placed = place(bundle, "onnx")
        assert placed.options.device == "cpu"
        assert placed.note.startswith("device cpu, not Orin: onnx: ONNX Runtime 1.30.0 falls back to the CPU")

    def test_a_provider_that_fails_on_its_first_run_is_passed_over(self, bundle, gpu, onnxruntime):
        def fail(x):
            raise RuntimeError("no kernel image is available")

        onnxruntime.adds = fail
        assert "no kernel image is available" in place(bundle, "onnx").note
        with pytest.raises(EngineError, match="no kernel image is available"):
            open_engine(bundle, VISION, "onnx", EngineOptions("cuda"))

    def test_a_cpu_wheel_on_a_gpu_is_said(self, bundle, gpu, onnxruntime, usable):
        usable()
        onnxruntime.get_available_providers = lambda: [CPU]
        placed = place(bundle)
        assert placed.options.device == "cpu"
        assert "tensorrt: tensorrt is not installed; " in placed.note and 'pip install "st-gridpool[gpu]"' in placed.note

    @pytest.mark.parametrize(
        ("engines", "expected"),
        [
            ({"tensorrt": (VISION, DECODER), "tensorrt_rtx": (VISION, DECODER)}, "device cuda: Orin, backend tensorrt"),
            ({"tensorrt": (VISION,), "tensorrt_rtx": (VISION, DECODER)}, "device cuda: Orin, backend tensorrt-rtx"),
            ({"tensorrt": (VISION,), "tensorrt_rtx": (DECODER,)}, "device cuda: Orin, backend onnx"),
            ({}, "device cuda: Orin, backend onnx"),
        ],
    )
    def test_auto_takes_the_first_that_runs_every_graph(self, bundle, gpu, onnxruntime, usable, engines, expected):
        usable(**engines)
        assert place(bundle).note == expected

    def test_engines_that_are_missing_are_said(self, bundle, gpu, onnxruntime, usable):
        usable(tensorrt=(VISION,))
        onnxruntime.starts = [CPU]
        assert f"tensorrt: no tensorrt engine for {DECODER}; " in place(bundle).note

    def test_of_a_split_bundle_its_two_graphs_count(self, split_bundle, gpu, onnxruntime, usable):
        usable(tensorrt=(VISION_ENCODER, VISION_COMPRESSOR))
        assert place(split_bundle).note == "device cuda: Orin, backend tensorrt"

    def test_tensorrt_has_no_other_device(self, bundle, gpu, monkeypatch):
        assert place(bundle, "tensorrt-rtx").options.device == "cuda"
        monkeypatch.setattr(cuda, "gpus", lambda: ())
        with pytest.raises(EngineError, match=r"backend tensorrt-rtx can't run here: .*NVIDIA"):
            place(bundle, "tensorrt-rtx")

    @pytest.mark.parametrize(("backend", "bf16"), [("openvino", False), ("auto", True)])
    def test_openvino_computes_on_the_cpu(self, bundle, gpu, backend, bf16):
        assert place(bundle, backend, EngineOptions(bf16=bf16)).options.device == "cpu"


class TestCommands:
    def test_a_gpu_wheel_without_a_driver_answers_on_the_cpu(self, bundle_path, clip, no_gpu, monkeypatch, capsys):
        import onnxruntime

        monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: [CUDA, CPU])
        assert main(["run", str(bundle_path), str(clip), "how many objects are there ?"]) == 0
        said = capsys.readouterr()
        assert said.out.strip() and said.err.count("device cpu: ") == 1
        assert main(["run", str(bundle_path), str(clip), "how many ?", "--device", "cuda", "--backend", "onnx"]) == 2
        assert "NVIDIA" in capsys.readouterr().err

    def test_a_gpu_that_fails_is_said_before_the_answer_and_once(self, bundle_path, clip, gpu, monkeypatch, capsys):
        import onnxruntime

        monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: [CUDA, CPU])
        onnx_engine._cuda_fault.cache_clear()
        assert main(["run", str(bundle_path), str(clip), "how many objects are there ?"]) == 0
        onnx_engine._cuda_fault.cache_clear()
        assert capsys.readouterr().err.count("device cpu, not Orin: ") == 1

    def test_a_device_that_is_named_is_not_said(self, bundle_path, clip, monkeypatch, capsys):
        import onnxruntime

        monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: [CUDA, CPU])
        assert main(["run", str(bundle_path), str(clip), "how many objects are there ?", "--device", "cpu"]) == 0
        assert "device" not in capsys.readouterr().err

    @pytest.mark.parametrize("words", [["bench", "--rounds", "1", "--max-new-tokens", "1"], ["parity", "--backend", "onnx"]])
    def test_tools_say_it_too(self, words, bundle_path, no_gpu, monkeypatch, capsys):
        import onnxruntime

        monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: [CUDA, CPU])
        assert main([words[0], str(bundle_path), *words[1:]]) == 0
        said = capsys.readouterr()
        assert said.err.count("device cpu: ") == 1 and said.out.strip()


@pytest.mark.parametrize(
    ("options", "backends"),
    [
        (EngineOptions(device="cpu"), ["onnx"]),  # nothing was measured in a test's cache
        (EngineOptions(device="cuda"), ["tensorrt", "tensorrt-rtx", "onnx"]),
        (EngineOptions(device="gpu"), ["openvino"]),
        (EngineOptions(device="npu"), ["openvino"]),
        (EngineOptions(device="cpu", bf16=True), ["openvino"]),
    ],
    ids=str,
)
def test_the_backends_that_auto_tries_are_those_of_the_device_fastest_first(bundle, options, backends):
    assert _order(bundle, VISION, options) == (backends, options)
