"""This machine: its processor, the cores and the memory that a process may use, and a directory for caches."""

from __future__ import annotations

import contextlib
import os
import platform
from pathlib import Path


def cores() -> int:
    """Cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def cpu_model() -> str:
    """The CPU's name; Arm kernels put none into cpuinfo, but the device tree names the board."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.lower().startswith("model name"):
                return " ".join(line.split(":", 1)[1].split())
    with contextlib.suppress(OSError):
        return Path("/proc/device-tree/model").read_text().strip("\0 \n")
    return platform.processor() or platform.machine()


def total_memory() -> int | None:
    """Bytes of RAM; None where the system does not say."""
    if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return None


def available_memory() -> int | None:
    """Bytes of RAM that a process could have now (Linux); None where the system does not say."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))
    except (OSError, ValueError, StopIteration):
        return None


def cache_directory(name: str) -> Path:
    """Where this user's cached files of one kind go, below XDG_CACHE_HOME or ~/.cache; RuntimeError for a user without a home directory."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "st-gridpool" / name
