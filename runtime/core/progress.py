"""Progress on stderr: a live bar on a terminal, plain lines elsewhere; results stay alone on stdout."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

from runtime.core.interrupts import raise_if_interrupted


def log(message: str) -> None:
    """Print one line of log on stderr."""
    print(message, file=sys.stderr, flush=True)


@contextmanager
def step(title: str) -> Iterator[None]:
    """Show that a long step runs and, when it ends, how long it took in seconds.

    KeyboardInterrupt at either end if Ctrl-C was pressed and the exception was lost.
    """
    raise_if_interrupted()
    start = time.perf_counter()
    with ExitStack() as shown:
        if sys.stderr.isatty():
            from rich.console import Console

            shown.enter_context(Console(stderr=True).status(title))
        yield
    raise_if_interrupted()
    log(f"{title}: {time.perf_counter() - start:.1f} s")


@contextmanager
def phases(title: str) -> Iterator[Callable[[str, int, int], None]]:
    """A function to call with (phase, done, steps): shows a bar for the current phase, or logs a line for each; then the total time."""
    start = time.perf_counter()
    if sys.stderr.isatty():
        from rich.console import Console
        from rich.progress import Progress

        with Progress(console=Console(stderr=True), transient=True) as bars:
            bar = bars.add_task(title, total=None)

            def show(phase: str, done: int, steps: int) -> None:
                bars.update(bar, description=f"{title}: {phase.lower()}", completed=done, total=steps)

            yield show
    else:
        logged: set[str] = set()

        def log_phase(phase: str, done: int, steps: int) -> None:
            if phase not in logged:
                logged.add(phase)
                log(f"{title}: {phase.lower()}")

        yield log_phase
    log(f"{title}: {time.perf_counter() - start:.1f} s")
