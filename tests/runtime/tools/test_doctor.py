"""The doctor on this machine, and on machines that are made to look like others."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import sys
import types
from pathlib import Path

import numpy as np
import pytest
from refusal import naming

from runtime.__main__ import main
from runtime.core.errors import EngineError
from runtime.engine import cuda
from runtime.engine import trt_api as trt
from runtime.tools import doctor
from runtime.tools.doctor import Check, report, text


def named(name: str) -> Check:
    return next(check for check in report() if check.name == name)


@pytest.fixture
def without(monkeypatch: pytest.MonkeyPatch):
    """Make a module look as if it was not installed."""
    real = importlib.util.find_spec

    def hide(*modules: str) -> None:
        monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name in modules else real(name, *rest))

    return hide


@pytest.fixture
def wheels(monkeypatch: pytest.MonkeyPatch):
    """Say which versions of distributions are installed."""
    real = importlib.metadata.version

    def install(**versions: str | None) -> None:
        def version(name: str) -> str:
            key = name.replace("-", "_")
            if key not in versions:
                return real(name)
            if versions[key] is None:
                raise importlib.metadata.PackageNotFoundError(name)
            return versions[key]

        monkeypatch.setattr(importlib.metadata, "version", version)

    return install


def test_what_is_installed_is_named_with_its_version() -> None:
    check = named("numpy")
    assert check.ok and check.found == np.__version__


def test_the_report_is_json_and_the_text_has_one_line_each() -> None:
    checks = report()
    assert json.loads(json.dumps([check.as_dict() for check in checks]))[0].keys() == {"name", "ok", "found", "gives"}
    assert len(text(checks).splitlines()) == len(checks) + 2
    assert len({check.name for check in checks}) == len(checks)


def test_everything_is_looked_at_in_the_order_in_which_data_travels() -> None:
    checks = {check.name.removesuffix("-gpu"): check for check in report()}
    assert list(checks) == [
        "python", "processor", "disk", "numpy", "av", "pillow", "tokenizers", "jinja2", "onnxruntime", "openvino", "onnx", "polygraphy",
        "matplotlib", "gpu", "cuda-bindings", "tensorrt", "tensorrt-rtx", "plugin library",
    ]  # fmt: skip
    assert all(checks[name].ok for name in ("python", "processor", "disk", "numpy", "av", "pillow"))
    assert checks["av"].found.rpartition("libavcodec ")[2].count(".") == 2
    assert str(Path.cwd()) in checks["disk"].found and "CPU" in checks["onnxruntime"].found


def test_the_command_prints_the_report(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    checks = [Check("av", True, "17.0.1", "decoding video"), Check("gpu", False, "no driver", "engines")]
    monkeypatch.setattr(doctor, "report", lambda: checks)
    assert main(["doctor", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == [
        {"name": "av", "ok": True, "found": "17.0.1", "gives": "decoding video"},
        {"name": "gpu", "ok": False, "found": "no driver", "gives": "engines"},
    ]
    assert main(["doctor"]) == 0
    assert capsys.readouterr().out == text(checks) + "\n"


def test_a_missing_package_says_what_it_gives_and_the_command(without) -> None:
    without("av")
    check = named("av")
    assert not check.ok and naming("video", 'pip install "st-gridpool[runtime]"').match(check.gives)


def test_a_broken_package_is_reported_in_its_own_words(monkeypatch: pytest.MonkeyPatch) -> None:
    def import_module(name: str) -> types.ModuleType:
        raise OSError("libavcodec.so.62:\n cannot open shared object file")

    monkeypatch.setattr(doctor.importlib, "import_module", import_module)
    check = doctor._package("av", "decoding video", "pip install x")
    assert not check.ok and naming("broken", "libavcodec.so.62: cannot open shared object file").match(check.found)
    assert "pip install x --force-reinstall" in check.gives


def test_both_onnxruntime_wheels_exclude_each_other(wheels) -> None:
    wheels(onnxruntime="1.31.0", onnxruntime_gpu="1.30.0")
    check = named("onnxruntime")
    assert not check.ok and naming("onnxruntime 1.31.0", "onnxruntime-gpu 1.30.0").match(check.found)
    assert "pip uninstall -y onnxruntime onnxruntime-gpu" in check.gives


def test_the_gpu_wheel_alone_is_found_and_shows_its_providers(wheels, monkeypatch: pytest.MonkeyPatch) -> None:
    wheels(onnxruntime=None, onnxruntime_gpu="1.30.0")
    module = types.ModuleType("onnxruntime")
    module.get_available_providers = lambda: ["CUDAExecutionProvider", "CPUExecutionProvider"]  # type: ignore[attr-defined]
    module.__spec__ = importlib.util.spec_from_loader("onnxruntime", None)
    monkeypatch.setitem(sys.modules, "onnxruntime", module)
    assert naming("1.30.0", "CUDAExecutionProvider", "CPUExecutionProvider").match(named("onnxruntime-gpu").found)


def test_the_cpu_wheel_on_a_gpu_says_how_to_change(wheels, monkeypatch: pytest.MonkeyPatch) -> None:
    wheels(onnxruntime="1.31.0", onnxruntime_gpu=None)
    module = types.ModuleType("onnxruntime")
    module.get_available_providers = lambda: ["CPUExecutionProvider"]  # type: ignore[attr-defined]
    module.__spec__ = importlib.util.spec_from_loader("onnxruntime", None)
    monkeypatch.setitem(sys.modules, "onnxruntime", module)
    monkeypatch.setattr(cuda, "gpus", lambda: (cuda.Gpu("Orin", (8, 7), 2**33),))
    check = named("onnxruntime")
    assert check.ok and naming("pip uninstall -y onnxruntime", 'pip install "st-gridpool[gpu]"').match(check.gives)


@pytest.mark.parametrize(
    ("providers", "gpus"),
    [(["CUDAExecutionProvider", "CPUExecutionProvider"], (cuda.Gpu("Orin", (8, 7), 2**33),)), (["CPUExecutionProvider"], ())],
    ids=["the GPU wheel on a GPU", "the CPU wheel without one"],
)
def test_the_wheel_that_fits_needs_no_advice(wheels, monkeypatch: pytest.MonkeyPatch, providers: list[str], gpus: tuple) -> None:
    wheels(onnxruntime="1.31.0", onnxruntime_gpu=None)
    module = types.ModuleType("onnxruntime")
    module.get_available_providers = lambda: providers  # type: ignore[attr-defined]
    module.__spec__ = importlib.util.spec_from_loader("onnxruntime", None)
    monkeypatch.setitem(sys.modules, "onnxruntime", module)
    monkeypatch.setattr(cuda, "gpus", lambda: gpus)
    check = named("onnxruntime")
    assert check.ok and naming("1.31.0", *providers).match(check.found) and "pip" not in check.gives


@pytest.mark.parametrize(("version", "ok"), [((3, 9, 20), False), ((3, 10, 0), True), ((3, 13, 1), True)])
def test_python_must_be_new_enough(monkeypatch: pytest.MonkeyPatch, version: tuple[int, ...], ok: bool) -> None:
    monkeypatch.setattr(doctor, "sys", types.SimpleNamespace(version_info=version))
    assert named("python").ok is ok


def test_the_processor_is_told_with_its_cores_and_its_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "cores", lambda: 3)
    monkeypatch.setattr(doctor, "total_memory", lambda: 8_192_000_000)
    for free, told in ((2_048_000_000, ("2.0 GB", "8.2 GB")), (None, ("unknown",))):
        monkeypatch.setattr(doctor, "available_memory", lambda free=free: free)
        assert naming("3 cores", *told).match(named("processor").found)


@pytest.mark.parametrize("folder", ["plugins/build", "build/plugins"])
def test_a_plugin_library_is_found_where_cmake_puts_it(tmp_path, monkeypatch: pytest.MonkeyPatch, folder: str) -> None:
    monkeypatch.setattr(doctor, "__file__", str(tmp_path / "runtime" / "tools" / "doctor.py"))
    missing = doctor._plugin()
    assert not missing.ok and "cmake -S plugins -B build/plugins" in missing.found
    (tmp_path / folder).mkdir(parents=True)
    library = tmp_path / folder / doctor.PLUGIN_LIBRARY
    library.write_bytes(b"")
    found = doctor._plugin()
    assert (found.ok, found.found) == (True, str(library))
    assert "`build --plugin`" in found.gives


def test_a_package_has_its_distribution_s_version_and_details(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.metadata, "version", {"pillow": "12.1", "numpy": "2.0"}.__getitem__)
    found = doctor._package("PIL", "pictures", "install", lambda module: module.__name__, "pillow")
    assert (found.name, found.ok, found.gives) == ("pillow", True, "pictures") and naming("12.1", "PIL").match(found.found)
    assert doctor._package("numpy", "arrays", "install") == Check("numpy", True, "2.0", "arrays")
    monkeypatch.setattr(importlib.metadata, "version", lambda name: 1 / 0)
    broken = doctor._package("numpy", "arrays", "install")
    assert (
        not broken.ok
        and naming("broken", "division by zero").match(broken.found)
        and naming("arrays", "install").match(broken.gives)
    )
    missing = doctor._package("gridpool_none", "pictures", "install", None, "pillow")
    assert (missing.name, missing.ok) == ("pillow", False) and naming("pictures", "install").match(missing.gives)


def test_no_onnxruntime_at_all_is_the_cpu_wheel_that_is_missing(wheels, without) -> None:
    wheels(onnxruntime=None, onnxruntime_gpu=None)
    without("onnxruntime")
    check = named("onnxruntime")
    assert not check.ok and 'pip install "st-gridpool[runtime]"' in check.gives


def test_a_cpu_wheel_that_is_broken_gets_no_advice_for_the_gpu(wheels, monkeypatch: pytest.MonkeyPatch) -> None:
    wheels(onnxruntime="1.31.0", onnxruntime_gpu=None)
    module = types.ModuleType("onnxruntime")
    module.__spec__ = importlib.util.spec_from_loader("onnxruntime", None)
    monkeypatch.setitem(sys.modules, "onnxruntime", module)  # which has no get_available_providers
    monkeypatch.setattr(cuda, "gpus", lambda: (cuda.Gpu("Orin", (8, 7), 2**33),))
    check = named("onnxruntime")
    assert not check.ok and check.found.startswith("broken") and "st-gridpool[gpu]" not in check.gives


def test_an_error_is_one_line_and_without_words_its_name() -> None:
    assert doctor._one_line(ValueError("a\n  b")) == "a b" and doctor._one_line(KeyError()) == "KeyError"
    assert doctor._version("gridpool-none") is None and doctor._version("numpy") == np.__version__


class TestGpu:
    @pytest.mark.parametrize("version", ["13.0.1", None])
    def test_cuda_bindings_have_their_version_or_the_command_that_installs_them(self, monkeypatch, version) -> None:
        monkeypatch.setattr(doctor, "_version", lambda distribution: version if distribution == "cuda-bindings" else None)
        check = named("cuda-bindings")
        assert (check.ok, check.found == version) == (version is not None, version is not None)
        assert ("pip install" in check.gives) is (version is None)

    def test_none(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(cuda, "gpus", lambda: ())
        check = named("gpu")
        assert not check.ok and "NVIDIA" in check.found and ";" not in check.found

    def test_one_with_its_compute_capability(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(cuda, "gpus", lambda: (cuda.Gpu("Orin", (8, 7), 8_000_000_000),))
        monkeypatch.setattr(cuda, "driver_version", lambda: "12.6")
        check = named("gpu")
        assert check.ok and naming("Orin", "sm87", "8.0 GB", "CUDA 12.6").match(check.found)


class TestTensorRT:
    def test_missing(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(trt, "installed", lambda backend: False)
        for backend, extra in (("tensorrt", "gpu"), ("tensorrt-rtx", "rtx")):
            check = named(backend)
            assert not check.ok and f'pip install "st-gridpool[{extra}]"' in check.gives

    @pytest.mark.parametrize(("backend", "usable"), [("tensorrt", False), ("tensorrt-rtx", True)])
    def test_without_a_gpu_only_rtx_is_of_use(self, backend: str, usable: bool, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(cuda, "gpus", lambda: ())
        monkeypatch.setattr(trt, "installed", lambda backend: True)
        monkeypatch.setattr(trt, "load", lambda backend: types.SimpleNamespace(__version__="10.3.0"))
        check = named(backend)
        assert check.ok is usable and naming("10.3.0", "builds", "GPU").match(check.found)

    @pytest.mark.parametrize("backend", ["tensorrt", "tensorrt-rtx"])
    def test_on_a_gpu_both_build_and_run(self, backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(cuda, "gpus", lambda: (cuda.Gpu("Orin", (8, 7), 2**33),))
        monkeypatch.setattr(trt, "installed", lambda backend: True)
        monkeypatch.setattr(trt, "load", lambda backend: types.SimpleNamespace(__version__="10.3.0"))
        check = named(backend)
        assert check.ok and naming("10.3.0", "builds", "runs").match(check.found)

    def test_an_installation_that_does_not_load(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def broken(backend: str) -> None:
            raise EngineError("tensorrt is installed but does not load (libnvinfer.so.10)")

        monkeypatch.setattr(trt, "installed", lambda backend: True)
        monkeypatch.setattr(trt, "load", broken)
        for backend in ("tensorrt", "tensorrt-rtx"):
            check = named(backend)
            assert not check.ok and "libnvinfer.so.10" in check.found
