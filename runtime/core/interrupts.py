"""Ctrl-C that is never lost.

Python raises KeyboardInterrupt wherever the main thread happens to be. In a destructor, a weak reference's callback or a
callback from C nobody catches it: the exception is printed and dropped, and the command would run to its end. So commands
record the signal as well, and check for it before they make a result final or begin a long step.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

INTERRUPTED = "interrupted; nothing that was there before has been changed"

_pressed = threading.Event()


@contextmanager
def noting_ctrl_c() -> Iterator[None]:
    """Inside, SIGINT is recorded before KeyboardInterrupt is raised, and Python does not print one that it dropped.

    After `leave_on_ctrl_c`, when the process has nothing else to do, SIGINT is ignored from then on: the exit code stands.
    Nothing changes where another handler is installed or the signal is ignored, nor in threads other than the main one.
    """
    main, before = threading.current_thread() is threading.main_thread(), signal.getsignal(signal.SIGINT)
    if not main or before not in (signal.default_int_handler, _leave):
        yield
        return
    # Python removes its handler while it shuts down, and the signal would kill the process
    after = signal.SIG_IGN if before is _leave else signal.default_int_handler
    unraisable = sys.unraisablehook

    def dropped(error: sys.UnraisableHookArgs) -> None:
        if not issubclass(error.exc_type, KeyboardInterrupt):
            unraisable(error)

    _pressed.clear()
    sys.unraisablehook = dropped
    signal.signal(signal.SIGINT, _note)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, after)
        sys.unraisablehook = unraisable
        _pressed.clear()


def leave_on_ctrl_c() -> None:
    """Until `noting_ctrl_c`, SIGINT ends this process at once, with its one line: a command that still imports has done nothing.

    For `__main__`, before it imports anything that takes time. Nothing changes where somebody else handles the signal.
    """
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _leave)


def raise_if_interrupted() -> None:
    """Raise KeyboardInterrupt, again, if Ctrl-C was pressed since the command began."""
    if _pressed.is_set():
        raise KeyboardInterrupt


@contextmanager
def postponing_ctrl_c() -> Iterator[None]:
    """Inside, SIGINT is recorded but not raised: for changes that must be made together or not at all.

    Afterwards a command line goes on until it asks (`raise_if_interrupted`): what came to its end is no longer interrupted. Elsewhere,
    under Python's own handler, KeyboardInterrupt is raised then. Nothing changes under other handlers and in other threads.
    """
    before, caught = signal.getsignal(signal.SIGINT), []
    if threading.current_thread() is not threading.main_thread() or before not in (_note, signal.default_int_handler):
        yield
        return

    def later(*_: object) -> None:
        if before is _note:
            _pressed.set()
        else:
            caught.append(True)

    signal.signal(signal.SIGINT, later)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
    if caught:
        raise KeyboardInterrupt


def _leave(number: int, frame: FrameType | None) -> None:
    os.write(2, f"error: {INTERRUPTED}\n".encode())
    os._exit(130)


def _note(number: int, frame: FrameType | None) -> None:
    _pressed.set()
    signal.default_int_handler(number, frame)
