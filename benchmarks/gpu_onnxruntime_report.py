"""What a step leaves behind: sections printed as they come, numbers in a file that is complete after each of them, and a verdict.

A part is a function of the arguments and a `Report`; it runs in its own process, because a sticky CUDA error, or a crash,
ends the process that meets it and must not end the parts that follow.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import processes
from harness import ROOT, log
from json_file import write_json

FAILED = 3  # exit status of a part that completed and recorded a failure; an exception's is 1


class Report:
    """Markdown to stdout; {section: numbers} to a JSON file, written anew with every section. ok: whether nothing failed so far."""

    def __init__(self, path: Path | None):
        self.path = path
        self.ok = True
        self.numbers: dict[str, Any] = {}

    def section(self, title: str, text: str, numbers: Any) -> None:
        print(f"### {title}\n\n{text.strip()}\n", flush=True)
        self.add(title, numbers)

    def add(self, title: str, numbers: Any) -> None:
        self.numbers[title] = numbers
        write_json(self.path, self.numbers)

    def attempt(self, title: str, run: Callable[[], Any]) -> Any:
        """What `run` returns; None, and why in one line, where it raises: the attempts that follow are not its business."""
        try:
            return run()
        except Exception as error:  # whatever a GPU's libraries raise
            self.failed(title, f"{type(error).__name__}: {error}")
            return None

    def failed(self, title: str, reason: str) -> None:
        self.ok = False
        line = " ".join(reason.split())[:600]
        print(f"**{title}** failed: {line}\n", flush=True)
        self.add(title, {"failed": line})


def run_apart(title: str, command: Sequence[str], report: Report, part_json: Path, seconds: float) -> None:
    """Run a part in its own process, which prints its sections; its numbers join `report`, even if it is stopped."""
    log(f"part {title}")
    start = time.perf_counter()
    process = processes.start([sys.executable, *command], cwd=ROOT)
    try:
        status = processes.wait(process, seconds)
    finally:
        numbers = json.loads(part_json.read_text(encoding="utf-8")) if part_json.exists() else {}
        report.add(title, numbers | {"seconds": round(time.perf_counter() - start, 2)})
        part_json.unlink(missing_ok=True)
    report.ok &= status == 0
    if status is None:
        report.failed(f"{title}, unfinished", f"it did not end within {seconds:g} s")
    elif status not in (0, FAILED):
        report.failed(f"{title}, unfinished", f"its process ended with {status}")
