"""A forked child with its output in files, a time limit, and its peak memory.

The parent has imported what the child needs, so that a child starts in milliseconds; it must have no threads when it forks.
"""

from __future__ import annotations

import contextlib
import faulthandler
import os
import pickle
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.campaign.verdicts import Ended

POLL = 0.005  # seconds between looks at a child


class Child:
    """`function` in a forked process whose exit code is what it returns; an exception is printed and exits with 70."""

    def __init__(self, function: Callable[[], int | None], folder: Path, name: str = "child"):
        self.out, self.err = folder / f"{name}.stdout", folder / f"{name}.stderr"
        self.out.write_bytes(b""), self.err.write_bytes(b"")
        self.started, self.base = time.monotonic(), memory_of(os.getpid())
        sys.stdout.flush(), sys.stderr.flush()
        self.ended: Ended | None = None
        self.pid = os.fork()
        if self.pid == 0:
            os._exit(self._be(function))

    def _be(self, function: Callable[[], int | None]) -> int:
        try:
            os.setsid()
            for number, path, flags in ((0, "/dev/null", os.O_RDONLY), (1, self.out, os.O_WRONLY), (2, self.err, os.O_WRONLY)):
                os.dup2(os.open(path, flags | os.O_APPEND), number)
            sys.stdin = os.fdopen(0, closefd=False)
            sys.stdout, sys.stderr = (
                os.fdopen(1, "w", closefd=False),
                os.fdopen(2, "w", 1, errors="backslashreplace", closefd=False),
            )
            signal.signal(signal.SIGINT, signal.default_int_handler)
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            faulthandler.enable(2)
            faulthandler.register(signal.SIGUSR1, 2, all_threads=True)
            code = function() or 0
        except SystemExit as error:
            code = error.code if isinstance(error.code, int) else int(error.code is not None)
        except BaseException:
            traceback.print_exc()
            code = 70
        with contextlib.suppress(Exception):
            sys.stdout.flush(), sys.stderr.flush()
        return code & 255

    def poll(self) -> Ended | None:
        """How it ended, None while it runs."""
        if self.ended:
            return self.ended
        pid, status, usage = os.wait4(self.pid, os.WNOHANG)
        return self._ended(status, usage.ru_maxrss * 1024) if pid else None

    def wait(self, limit: float) -> Ended:
        """Wait for its end; past `limit` seconds it is killed, and its stderr then ends with the stacks of its threads."""
        end = time.monotonic() + limit
        while time.monotonic() < end:
            ended = self.poll()
            if ended:
                return ended
            time.sleep(POLL)
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGUSR1)
            time.sleep(0.2)
        return self.kill(hung=True)

    def kill(self, hung: bool = False) -> Ended:
        if self.ended:
            return self.ended
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)
        _, status, usage = os.wait4(self.pid, 0)
        return self._ended(status, usage.ru_maxrss * 1024, hung)

    def signal(self, number: int) -> None:
        if self.ended:
            return
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, number)

    def _ended(self, status: int, peak: int, hung: bool = False) -> Ended:
        out, err = (path.read_text(errors="replace") for path in (self.out, self.err))
        code = os.waitstatus_to_exitcode(status)
        self.ended = Ended(code, out, err, time.monotonic() - self.started, max(0, peak - self.base), hung)
        return self.ended


def in_child(function: Callable[..., Any], *args: Any, folder: Path, limit: float = 300) -> Any:
    """The value of `function(*args)`, computed in a forked child; RuntimeError with its stderr where it has none."""
    result = folder / f"result-{os.getpid()}"

    def work() -> int:
        result.write_bytes(pickle.dumps(function(*args)))
        return 0

    ended = Child(work, folder, "in-child").wait(limit)
    if ended.code or ended.hung:
        raise RuntimeError(f"{getattr(function, '__name__', function)} failed in a child: {ended.stderr[-3000:]}")
    value = pickle.loads(result.read_bytes())
    result.unlink()
    return value


def memory_of(pid: int, field: str = "VmRSS") -> int:
    """Bytes of a process's memory as /proc says them; 0 where it is gone."""
    try:
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith(field + ":"):
                return int(line.split()[1]) * 1024
    except (OSError, ValueError):
        pass
    return 0


def reset_peak(pid: int) -> None:
    """Begin VmHWM of a process anew."""
    with contextlib.suppress(OSError):
        Path(f"/proc/{pid}/clear_refs").write_text("5")


def cpu_seconds(pid: int) -> float:
    """Processor time of a process; 0 where it is gone."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
