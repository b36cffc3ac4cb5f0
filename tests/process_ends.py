"""Waiting for what takes moments on an idle machine and may take long on a busy one: a condition, the end of a process."""

from __future__ import annotations

import time
from collections.abc import Callable

import psutil

LONG = 120.0  # seconds


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + LONG
    while not condition():
        assert time.monotonic() < deadline, "not within two minutes"
        time.sleep(0.05)


def assert_ends(pid: int) -> None:
    """A zombie that nobody has waited for yet has ended."""

    def ended() -> bool:
        try:
            return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return True

    wait_until(ended)
