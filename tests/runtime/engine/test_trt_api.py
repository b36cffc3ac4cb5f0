"""What stands between this project and TensorRT's own packages."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from refusal import naming

from runtime.core.errors import EngineError
from runtime.engine import trt_api as trt


def test_what_c_prints_on_stdout_goes_to_stderr(capfd: pytest.CaptureFixture) -> None:
    with trt.stdout_to_stderr():
        os.write(1, b"from C++")
    os.write(1, b"after")
    assert capfd.readouterr() == ("after", "from C++")


def test_a_package_that_is_there_and_does_not_load_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "tensorrt.py").write_text("raise ImportError('no libnvinfer.so.10')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "tensorrt", raising=False)
    assert trt.installed("tensorrt") and "tensorrt" not in sys.modules
    with pytest.raises(EngineError, match=naming("tensorrt", "no libnvinfer.so.10", '--force-reinstall "st-gridpool[gpu]"')):
        trt.load("tensorrt")
    monkeypatch.setitem(trt._PACKAGES, "tensorrt", ("no_such_package", "gpu"))
    assert not trt.installed("tensorrt")


def test_what_the_builder_raises_reaches_who_asked_for_the_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    def build_serialized_network(network: object, config: object) -> None:
        raise MemoryError("no room for the network")

    monkeypatch.setattr(trt, "logger", lambda backend: type("Logger", (), {})())
    monkeypatch.setattr(trt, "_monitor", lambda backend, progress: None)
    builder = SimpleNamespace(build_serialized_network=build_serialized_network)
    with pytest.raises(MemoryError, match="no room for the network"):
        trt.serialize("tensorrt", builder, None, SimpleNamespace(), lambda *step: None)


class TestMonitor:
    @pytest.fixture
    def steps(self) -> list[tuple[str, int, int]]:
        """(phase, steps done, of how many) as they were told."""
        return []

    @pytest.fixture
    def monitor(self, steps: list[tuple[str, int, int]], monkeypatch: pytest.MonkeyPatch) -> object:
        interface = type("IProgressMonitor", (), {})
        monkeypatch.setattr(trt, "load", lambda backend: SimpleNamespace(IProgressMonitor=interface))
        monitor = trt._monitor("tensorrt", lambda *step: steps.append(step))
        assert isinstance(monitor, interface)
        return monitor

    def test_steps_of_the_build_and_of_the_phases_right_under_it_are_told(self, monitor, steps) -> None:
        monitor.phase_start("Build", None, 2)
        monitor.phase_start("Tactics", "Build", 3)
        monitor.phase_start("Kernel", "Tactics", 9)
        assert all(monitor.step_complete(*step) for step in (("Kernel", 0), ("Tactics", 0), ("Tactics", 2), ("Build", 1)))
        assert steps == [("Tactics", 1, 3), ("Tactics", 3, 3), ("Build", 2, 2)]
        monitor.phase_finish("Kernel")
        monitor.phase_finish("Tactics")
        monitor.step_complete("Tactics", 0)
        assert len(steps) == 3

    def test_a_build_that_is_told_to_stop_ends_at_its_next_step(self, monitor) -> None:
        monitor.phase_start("Build", None, 2)
        assert monitor.step_complete("Build", 0) is True
        monitor.stop()
        assert monitor.step_complete("Build", 1) is False
