"""One run of a job's command: undisturbed, stopped after a share of its time, or stopped as it is about to change a file.

Most run in a child of this process, which has imported what they need; some are separate processes, `python -m …`.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.campaign.child import POLL, Child
from benchmarks.campaign.verdicts import ROOT, Ended

LIMIT = 300.0  # seconds for a command that is not stopped
AFTER_SIGNAL = 60.0
_CHANGES = frozenset(("open", "os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.link", "os.truncate"))
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT


class Command:
    """`python -m MODULE WORDS`; temporary files go to `folder`/tmp."""

    def __init__(self, module: str, words: list[str], folder: Path):
        self.module, self.words, self.folder = module, words, folder
        (folder / "tmp").mkdir(exist_ok=True)

    def run(self) -> Ended:
        return Child(lambda: self.main(None), self.folder).wait(LIMIT)

    def measure(self) -> tuple[Ended, int, list[str]]:
        """How it ends undisturbed, how often it changes a file below its folder, and the modules that it imports."""
        measured = self.folder / "measured.json"

        def work() -> int:
            changes = [0]
            _on_change(self.folder, lambda: changes.__setitem__(0, changes[0] + 1))
            code = self.main(None)
            measured.write_text(json.dumps([changes[0], sorted(sys.modules)]))
            return code

        ended = Child(work, self.folder).wait(LIMIT)
        changes, modules = json.loads(measured.read_text()) if measured.exists() else (0, [])
        return ended, changes, modules

    def stopped_after(self, number: int, seconds: float) -> tuple[Ended, bool]:
        """Send a signal after `seconds`; (how it ended, whether the signal came in time)."""
        reading, writing = os.pipe()
        child = Child(lambda: self.main(writing), self.folder)
        os.close(writing)
        os.read(reading, 1)  # it has begun
        os.close(reading)
        return _send(child.poll, child.signal, child.wait, number, seconds)

    def stopped_at(self, number: int, change: int) -> tuple[Ended, bool]:
        """Send a signal as it is about to change a file for the `change`-th time."""

        def work() -> int:
            left = [change]

            def count() -> None:
                left[0] -= 1
                if left[0] == 0:
                    os.kill(os.getpid(), number)

            _on_change(self.folder, count)
            return self.main(None)

        ended = Child(work, self.folder).wait(LIMIT)
        return ended, ended.code in (-number, 130)

    def process_stopped_after(self, number: int, seconds: float) -> tuple[Ended, bool]:
        """The same for a separate process, imports included, from after the interpreter's start."""
        out, err = self.folder / "child.stdout", self.folder / "child.stderr"
        code = (
            "import os, runpy, signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler); "
            f"sys.argv[0] = 'python'; os.write({{}}, b'x'); runpy.run_module({self.module!r}, run_name='__main__', alter_sys=True)"
        )
        reading, writing = os.pipe()
        began = time.monotonic()
        with out.open("wb") as stdout, err.open("wb") as stderr:
            process = subprocess.Popen(
                [sys.executable, "-c", code.format(writing), *self.words],
                stdin=subprocess.DEVNULL,
                stdout=stdout,
                stderr=stderr,
                cwd=ROOT,
                env=os.environ | {"TMPDIR": str(self.folder / "tmp"), "PYTHONPATH": str(ROOT)},
                pass_fds=(writing,),
                start_new_session=True,
            )
        os.close(writing)
        os.read(reading, 1)
        os.close(reading)

        def ended(hung: bool = False) -> Ended:
            texts = (path.read_text(errors="replace") for path in (out, err))
            return Ended(process.returncode, *texts, time.monotonic() - began, hung=hung)

        def poll() -> Ended | None:
            return None if process.poll() is None else ended()

        def wait(limit: float) -> Ended:
            try:
                process.wait(limit)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
                return ended(hung=True)
            return ended()

        return _send(poll, process.send_signal, wait, number, seconds)

    def main(self, begun: int | None) -> int:
        import tempfile

        os.environ["TMPDIR"] = str(self.folder / "tmp")
        tempfile.tempdir = None
        main = importlib.import_module(f"{self.module}.__main__").main
        if begun is not None:
            os.write(begun, b"x")
        return main(self.words)


def imported(modules: list[str]) -> None:
    """Import what a measured run imported, so that the next ones find it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name in modules:
            if name not in sys.modules and not name.startswith(("__", "pytest", "_pytest")):
                with contextlib.suppress(Exception):
                    importlib.import_module(name)


def _send(
    poll: Callable[[], Ended | None], send: Callable[[int], Any], wait: Callable[[float], Ended], number: int, seconds: float
) -> tuple[Ended, bool]:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        ended = poll()
        if ended:
            return ended, False
        time.sleep(min(POLL, max(0.0, end - time.monotonic())))
    send(number)
    ended = wait(AFTER_SIGNAL)
    return ended, ended.code != 0  # 0: it had completed when the signal was sent


def _on_change(folder: Path, each: Callable[[], None]) -> None:
    """Call `each` before every change of a file or directory below `folder`, and before every fsync, in this process."""
    prefix, busy = str(folder), [False]

    def hook(event: str, args: tuple) -> None:
        if busy[0] or event not in _CHANGES or not isinstance(args[0], str | bytes | os.PathLike):
            return
        if event == "open" and not (isinstance(args[2], int) and args[2] & _WRITING):
            return
        if os.fsdecode(args[0]).startswith(prefix):
            busy[0] = True
            try:
                each()
            finally:
                busy[0] = False

    sync = os.fsync

    def counted(file: int) -> None:
        each()
        sync(file)

    os.fsync = counted
    sys.addaudithook(hook)
