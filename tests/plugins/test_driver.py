"""How the CUDA driver is loaded and called, on stand-ins for cuda-bindings: what is missing is named, a failure is in CUDA's words."""

from __future__ import annotations

import sys
from types import ModuleType, SimpleNamespace

import pytest

import plugins.driver
from plugins.errors import EngineError


class Status(int):
    name = "CUDA_ERROR_NO_DEVICE"


def no_library(flags: int):
    raise RuntimeError("Failed to dlopen libcuda.so.1")


@pytest.fixture
def bindings(monkeypatch: pytest.MonkeyPatch):
    """bindings(driver): let `cuda.bindings` have this driver module, or none."""

    def put(**modules: object) -> None:
        package = ModuleType("cuda.bindings")
        vars(package).update(modules)
        monkeypatch.setitem(sys.modules, "cuda.bindings", package)
        monkeypatch.delitem(sys.modules, "cuda.bindings.driver", raising=False)
        plugins.driver.driver.cache_clear()

    yield put
    plugins.driver.driver.cache_clear()


def test_the_driver_is_initialised_once(bindings):
    initialised = []
    good = SimpleNamespace(cuInit=lambda flags: initialised.append(flags) or (0,))
    bindings(driver=good)
    assert plugins.driver.driver() is plugins.driver.driver() is good and initialised == [0]


@pytest.mark.parametrize(
    ("modules", "named"),
    [
        ({}, "cuda-bindings"),
        ({"driver": SimpleNamespace(cuInit=no_library)}, r"libcuda\.so\.1"),
        ({"driver": SimpleNamespace(cuInit=lambda flags: (Status(100),))}, "CUDA_ERROR_NO_DEVICE"),
    ],
    ids=["package", "library", "device"],
)
def test_what_is_missing_is_named(bindings, modules, named):
    bindings(**modules)
    with pytest.raises(EngineError, match=named):
        plugins.driver.driver()


def test_a_call_returns_its_value_or_fails_in_cudas_words(bindings):
    answers = {"cuOne": (0, 7), "cuTwo": (0, 7, 8), "cuNone": (0,), "cuFails": (2, None)}
    functions = {name: lambda *arguments, name=name: answers[name] for name in answers}
    bindings(driver=SimpleNamespace(cuInit=lambda flags: (0,), cuGetErrorString=lambda status: (0, b"out of memory"), **functions))
    assert [plugins.driver.call_driver(name) for name in ("cuOne", "cuTwo", "cuNone")] == [7, 7, None]
    with pytest.raises(EngineError, match=r"^cuFails: .*out of memory.*2"):
        plugins.driver.call_driver("cuFails")
    with pytest.raises(EngineError, match=r"^allocating: .*out of memory.*2"):
        plugins.driver.call_driver("cuFails", doing="allocating")
