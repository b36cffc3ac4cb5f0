"""Processes that end with everything that they started, and none of which outlives this one.

    with none_left():                         in main(): SIGTERM and Ctrl-C raise SystemExit, and at the end everything is ended
        process = start(command, ...)         in a new session
        status = wait(process, seconds)       exit status, None after the time limit; nothing of the session is left

A signal that comes while a process is being started waits until the process is registered. A session inside a session is not
reached from outside: a script that starts processes here and is itself ended must get `grace` to end them.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

_POLL = 0.02  # seconds
_GONE = 5.0  # seconds for the kernel to end what was killed
_running: dict[int, subprocess.Popen] = {}
_lock = threading.RLock()  # held from before a process is started until it is registered
_closed = False
_starting = 0  # in the main thread, where signals are handled
_asked: int | None = None  # a signal that waits


@contextlib.contextmanager
def none_left(grace: float = 0.0) -> Iterator[None]:
    """For a main(). grace: seconds between SIGTERM and SIGKILL."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _leave)
    try:
        yield
    finally:
        end_all(grace)


def start(command: Sequence[str | Path], **options: Any) -> subprocess.Popen:
    """As subprocess.Popen; RuntimeError after `end_all`."""
    with _signals_wait(), _lock:
        if _closed:
            raise RuntimeError(f"not started, because everything is being ended: {command[0]}")
        process = subprocess.Popen([str(word) for word in command], start_new_session=True, **options)
        _running[process.pid] = process
    return process


def wait(process: subprocess.Popen, seconds: float, grace: float = 0.0) -> int | None:
    """grace: seconds between SIGTERM and SIGKILL after the time limit."""
    done = False
    try:
        done = _ended(process, time.monotonic() + seconds)
    finally:  # also where a signal ends the wait
        end(process, 0.0 if done else grace)
    return process.returncode if done else None


def end(process: subprocess.Popen, grace: float = 0.0) -> None:
    """SIGTERM if there is a grace period, then SIGKILL to all of the session, even if its first process is gone."""
    if process.returncode is None:  # not reaped yet: its number can't be another's
        if grace:
            _signal(process, signal.SIGTERM)
            _ended(process, time.monotonic() + grace)
        _signal(process, signal.SIGKILL)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(_GONE)
    _running.pop(process.pid, None)


def end_all(grace: float = 0.0) -> None:
    """End what runs; nothing can be started afterwards."""
    global _closed
    with _lock:
        _closed = True
        left = list(_running.values())
    for process in left if grace else ():
        _signal(process, signal.SIGTERM)
    deadline = time.monotonic() + grace
    for process in left:
        end(process, max(0.0, deadline - time.monotonic()))


def run(command: Sequence[str | Path], seconds: float, **options: Any) -> tuple[str, int | None]:
    """(what it printed, exit status or None after the time limit)."""
    with tempfile.TemporaryFile() as file:
        status = wait(start(command, stdout=file, stderr=subprocess.STDOUT, **options), seconds)
        file.seek(0)
        return file.read().decode(errors="replace"), status


def _ended(process: subprocess.Popen, deadline: float) -> bool:
    """Whether it ended by the deadline. It is not reaped: until then its number stands for its session and no other."""
    while process.returncode is None:
        if os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT | os.WNOHANG) is not None:
            return True
        if time.monotonic() >= deadline:
            return False
        time.sleep(_POLL)
    return True


def _signal(process: subprocess.Popen, number: int) -> None:
    if process.returncode is None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number)


def _leave(number: int, frame: object) -> None:
    global _asked
    _asked = number
    if not _starting:
        _raise_asked()


def _raise_asked() -> None:
    global _asked
    number, _asked = _asked, None
    if number is not None:
        for other in (signal.SIGTERM, signal.SIGINT):
            signal.signal(other, signal.SIG_IGN)  # what ends here must not be cut short by another
        raise SystemExit(128 + number)


@contextlib.contextmanager
def _signals_wait() -> Iterator[None]:
    global _starting
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    _starting += 1
    try:
        yield
    finally:
        _starting -= 1
        if not _starting:
            _raise_asked()
