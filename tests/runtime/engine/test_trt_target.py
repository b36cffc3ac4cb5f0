"""Which TensorRT builds here and for which GPUs, on stand-ins for the packages and the GPU."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from refusal import naming
from trt_bundle import HERE, ORIN

from runtime.bundle import Bundle
from runtime.core.errors import EngineError, UserError
from runtime.engine import cuda, trt_build
from runtime.engine import trt_api as facade
from runtime.engine.trt_build import BuildOptions, build
from runtime.engine.trt_target import backend_that_builds, resolved_target, runs_on, set_target


@pytest.mark.parametrize(
    ("target", "capability", "runs"),
    [
        ("any", (8, 0), True),
        ("any", (7, 5), False),
        ("ampere-plus", (9, 0), True),
        ("sm86,sm120", (12, 0), True),
        ("sm87", (8, 6), False),
    ],
)
def test_which_gpus_a_target_runs_on(target: str, capability: tuple[int, int], runs: bool) -> None:
    assert runs_on(target, capability) is runs


class Configuration:
    """What an IBuilderConfig is told."""

    def __init__(self) -> None:
        self.capabilities = {}

    def set_compute_capability(self, capability: str, index: int) -> None:
        self.capabilities[index] = capability


class Library:
    __version__ = "10.3.0"
    HardwareCompatibilityLevel = SimpleNamespace(AMPERE_PLUS="AMPERE_PLUS")
    ComputeCapability = SimpleNamespace(SM86="86", SM120="120", __members__={"NONE": "", "SM86": "86", "SM120": "120"})


class TestConfiguration:
    @pytest.fixture(autouse=True)
    def library(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(facade, "load", lambda backend: Library)

    @pytest.mark.parametrize(
        ("backend", "target", "expected"),
        [
            ("tensorrt", "sm87", {}),
            ("tensorrt", "ampere-plus", {"hardware_compatibility_level": "AMPERE_PLUS"}),
            ("tensorrt-rtx", "any", {}),
            ("tensorrt-rtx", "sm86,sm120", {"capabilities": {0: "86", 1: "120"}, "num_compute_capabilities": 2}),
        ],
    )
    def test_a_build_is_told_its_gpus(self, backend, target, expected) -> None:
        configuration = Configuration()
        set_target(backend, configuration, target)
        assert vars(configuration) == {"capabilities": {}} | expected

    @pytest.mark.parametrize(
        ("backend", "asked", "target"),
        [
            ("tensorrt", None, "sm89"),
            ("tensorrt", "current", "sm89"),
            ("tensorrt", "sm89", "sm89"),
            ("tensorrt", "ampere-plus", "ampere-plus"),
            ("tensorrt-rtx", None, "any"),
            ("tensorrt-rtx", "current", "sm89"),
            ("tensorrt-rtx", "sm86,sm120,sm86", "sm86,sm120"),
        ],
    )
    def test_the_target_that_is_recorded(self, backend: str, asked: str | None, target: str, monkeypatch) -> None:
        monkeypatch.setattr(cuda, "gpus", lambda: (HERE,))
        assert resolved_target(backend, asked) == target

    def test_tensorrt_builds_for_no_other_gpu(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(cuda, "gpus", lambda: (HERE,))
        with pytest.raises(EngineError, match=r'sm89.*"ampere-plus".*"sm87"'):
            resolved_target("tensorrt", "sm87")


class TestBuildBackend:
    @pytest.fixture
    def installed(self, monkeypatch: pytest.MonkeyPatch):
        """installed({backend: version, or what is wrong with it}, no_gpu)"""

        def make(packages: dict[str, object], no_gpu: str | None) -> None:
            def load(backend: str) -> SimpleNamespace:
                if not isinstance(packages.get(backend), str):
                    raise packages.get(backend) or UserError(f"{backend} is not installed")
                return SimpleNamespace(__version__=packages[backend])

            monkeypatch.setattr(facade, "installed", lambda backend: backend in packages)
            monkeypatch.setattr(facade, "load", load)
            monkeypatch.setattr(cuda, "gpus", lambda: () if no_gpu else (ORIN,))
            monkeypatch.setattr(cuda, "no_gpu", lambda: no_gpu)

        return make

    @pytest.mark.parametrize("choice", ["aot", "a.so"])
    def test_a_plugin_is_for_tensorrt(self, installed, choice):
        installed({}, "no GPU")
        assert backend_that_builds(True) == ("tensorrt", "backend tensorrt: only it takes a plugin")

    @pytest.mark.parametrize(
        ("packages", "no_gpu", "backend", "line"),
        [
            ({"tensorrt": "10.3", "tensorrt-rtx": "1.7"}, None, "tensorrt", "backend tensorrt: 10.3, for Orin"),
            ({"tensorrt-rtx": "1.7"}, None, "tensorrt-rtx", "backend tensorrt-rtx, not tensorrt: tensorrt is not installed"),
            ({"tensorrt-rtx": "1.7"}, "no GPU", "tensorrt-rtx", "backend tensorrt-rtx, not tensorrt: tensorrt is not installed"),
            ({"tensorrt": UserError("no libnvinfer"), "tensorrt-rtx": "1"}, None, "tensorrt-rtx",
             "backend tensorrt-rtx, not tensorrt: no libnvinfer"),
            ({"tensorrt": "10.3", "tensorrt-rtx": "1.7"}, "no GPU; buy one; soon", "tensorrt-rtx",
             "backend tensorrt-rtx, not tensorrt: tensorrt builds on the GPU that it builds for, and no GPU"),
        ],
    )  # fmt: skip
    def test_tensorrt_where_it_can_build_else_rtx(self, installed, packages, no_gpu, backend, line):
        installed(packages, no_gpu)
        assert backend_that_builds(False) == (backend, line)

    def test_where_none_builds_both_reasons_are_said(self, installed):
        installed({}, None)
        with pytest.raises(EngineError, match=naming("tensorrt is not installed", "tensorrt-rtx is not installed")):
            backend_that_builds(False)


class TestBuild:
    """The backend that `build` takes, as far as its first check."""

    @pytest.fixture
    def bundle(self, bundle: Bundle, tmp_path: Path) -> Bundle:
        """One of this test's own: a build leaves a directory."""
        return Bundle.open(shutil.copytree(bundle.path, tmp_path / "bundle"))

    @pytest.fixture
    def installed(self, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
        def install(**versions: str) -> None:
            named = {name.replace("_", "-"): version for name, version in versions.items()}

            def load(backend: str) -> SimpleNamespace:
                if backend not in named:
                    raise EngineError(f"{backend} is not installed: pip install it")
                return SimpleNamespace(__version__=named[backend], ComputeCapability=SimpleNamespace(__members__={}))

            monkeypatch.setattr(facade, "installed", lambda backend: backend in named)
            monkeypatch.setattr(facade, "load", load)

        return install

    @pytest.fixture
    def made(self, bundle, monkeypatch: pytest.MonkeyPatch) -> list[str]:
        """The backends that graphs were built with; nothing is built."""
        backends: list[str] = []

        def build_graph(bundle, graph, options, target, plugin, goal):
            backends.append(options.backend)
            raise EngineError("stop")

        monkeypatch.setattr(trt_build, "_build_graph", build_graph)
        return backends

    def built(self, bundle, made: list[str], **options: Any) -> str:
        with pytest.raises(EngineError, match="stop"):
            build(bundle, BuildOptions(force=True, **options))
        return made[-1]

    def test_tensorrt_on_a_jetson(self, bundle, gpu, installed, made, capsys):
        installed(tensorrt="10.3.0", tensorrt_rtx="1.7")
        assert self.built(bundle, made) == "tensorrt"
        assert "backend tensorrt: 10.3.0, for Orin\n" in capsys.readouterr().err

    def test_rtx_where_tensorrt_is_not(self, bundle, gpu, installed, made, capsys):
        installed(tensorrt_rtx="1.7")
        assert self.built(bundle, made) == "tensorrt-rtx"
        assert "backend tensorrt-rtx, not tensorrt: tensorrt is not installed" in capsys.readouterr().err

    def test_rtx_where_there_is_no_gpu(self, bundle, no_gpu, installed, made, capsys):
        installed(tensorrt="10.3.0", tensorrt_rtx="1.7")
        assert self.built(bundle, made) == "tensorrt-rtx"
        assert "backend tensorrt-rtx, not tensorrt: tensorrt builds on the GPU" in capsys.readouterr().err

    def test_a_backend_that_is_named_stays(self, bundle, gpu, installed, made, capsys):
        installed(tensorrt="10.3.0", tensorrt_rtx="1.7")
        assert self.built(bundle, made, backend="tensorrt-rtx") == "tensorrt-rtx"
        assert "backend" not in capsys.readouterr().err

    def test_a_plugin_asks_for_tensorrt(self, bundle, no_gpu, installed):
        installed(tensorrt_rtx="1.7")
        with pytest.raises(EngineError, match="tensorrt is not installed"):
            build(bundle, BuildOptions(plugin="aot"))

    def test_nothing_installed_says_what_to_install(self, bundle, no_gpu, installed):
        installed()
        with pytest.raises(EngineError, match=naming("tensorrt is not installed", "tensorrt-rtx is not installed")):
            build(bundle, BuildOptions())
