"""What a process is told of its machine, on stand-ins for the kernel's files and calls."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from runtime.core import machine


@pytest.fixture
def system(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """{file: its text} of all files that there are."""
    files: dict[str, str] = {}

    def read_text(path: Path) -> str:
        if str(path) not in files:
            raise FileNotFoundError(path)
        return files[str(path)]

    monkeypatch.setattr(Path, "read_text", read_text)
    return files


@pytest.mark.parametrize(("affinity", "count", "cores"), [({1, 5, 6}, 8, 3), (None, 8, 8), (None, None, 1)])
def test_cores_are_those_that_this_process_may_use(monkeypatch, affinity, count, cores):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: affinity if pid == 0 else {0}, raising=False)
    if affinity is None:
        monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: count)
    assert machine.cores() == cores


def test_the_cpu_is_called_as_the_kernel_calls_it(system):
    system["/proc/device-tree/model"] = "Board"
    system["/proc/cpuinfo"] = "processor\t: 0\nmodel\t\t: 85\nmodel name\t: A  CPU : 3.0\tGHz\nmodel name\t: Another\n"
    assert machine.cpu_model() == "A CPU : 3.0 GHz"


def test_a_board_has_a_name_where_its_cpu_has_none(system):
    system["/proc/cpuinfo"] = "processor\t: 0\nBogoMIPS\t: 62.50\n"
    system["/proc/device-tree/model"] = "NVIDIA Jetson Orin\n\0"
    assert machine.cpu_model() == "NVIDIA Jetson Orin"


def test_without_either_it_is_what_python_says(system, monkeypatch):
    monkeypatch.setattr("platform.processor", lambda: "")
    monkeypatch.setattr("platform.machine", lambda: "riscv64")
    assert machine.cpu_model() == "riscv64"


def test_memory_is_what_the_kernel_says_is_there_and_available(system, monkeypatch):
    monkeypatch.setattr(os, "sysconf", {"SC_PHYS_PAGES": 2_000_000, "SC_PAGE_SIZE": 4096}.__getitem__)
    assert machine.total_memory() == 8_192_000_000
    system["/proc/meminfo"] = "MemTotal: 9 kB\nMemFree: 7 kB\nMemAvailable: 2000000 kB\n"
    assert machine.available_memory() == 2_048_000_000
    system["/proc/meminfo"] = "MemTotal: 9 kB\n"
    assert machine.available_memory() is None
    system.clear()
    assert machine.available_memory() is None


def test_caches_are_below_the_users_cache_directory(monkeypatch, tmp_path):
    monkeypatch.setattr(Path, "home", lambda: tmp_path / "home")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert machine.cache_directory("tuning") == tmp_path / "xdg" / "st-gridpool" / "tuning"
    for unset in ("", None):
        monkeypatch.setenv("XDG_CACHE_HOME", "") if unset == "" else monkeypatch.delenv("XDG_CACHE_HOME")
        assert machine.cache_directory("tuning") == tmp_path / "home" / ".cache" / "st-gridpool" / "tuning"
