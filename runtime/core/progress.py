"""Progress on stderr: a live bar on a terminal, plain lines elsewhere; results stay alone on stdout."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from runtime.core.interrupts import raise_if_interrupted


def log(message: str) -> None:
    """One line of log on stderr."""
    print(message, file=sys.stderr, flush=True)


@contextmanager
def step(title: str) -> Iterator[None]:
    """Show that a long step runs and, when it ends, how long it took in seconds.

    KeyboardInterrupt at either end where Ctrl-C was pressed and nobody heard it.
    """
    raise_if_interrupted()
    start = time.perf_counter()
    if sys.stderr.isatty():
        from rich.console import Console

        with Console(stderr=True).status(title):
            yield
    else:
        yield
    raise_if_interrupted()
    log(f"{title}: {time.perf_counter() - start:.1f} s")
