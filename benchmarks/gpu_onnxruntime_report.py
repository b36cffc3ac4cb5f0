"""What a step on a borrowed GPU leaves behind: sections printed as they come, numbers in a file that is whole after each of them.

A part is a function of the arguments and a `Report`; it runs in a process of its own, because a CUDA error that sticks, or a crash,
ends the process that meets it and must not end the parts that follow.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from harness import say


class Report:
    """Markdown to stdout; {section: numbers} to a JSON file, written anew with every section."""

    def __init__(self, path: Path | None):
        self.path = path
        self.numbers: dict[str, Any] = {}

    def section(self, title: str, text: str, numbers: Any) -> None:
        print(f"### {title}\n\n{text.strip()}\n", flush=True)
        self.add(title, numbers)

    def add(self, title: str, numbers: Any) -> None:
        self.numbers[title] = numbers
        if self.path is not None:
            partial = self.path.with_suffix(".partial")
            partial.write_text(json.dumps(self.numbers, indent=1, default=str) + "\n", encoding="utf-8")
            partial.replace(self.path)

    def attempt(self, title: str, run: Callable[[], Any]) -> Any:
        """What `run` returns; None, and why in one line, where it raises: the attempts that follow are not its business."""
        try:
            return run()
        except Exception as error:  # whatever a GPU's libraries raise
            self.failed(title, f"{type(error).__name__}: {error}")
            return None

    def failed(self, title: str, reason: str) -> None:
        line = " ".join(reason.split())[:600]
        print(f"**{title}** failed: {line}\n", flush=True)
        self.add(title, {"failed": line})


def run_apart(title: str, command: Sequence[str], report: Report, part_json: Path, seconds: float) -> None:
    """Run a part in a process of its own, which prints its sections itself; its numbers join `report`."""
    say(f"part {title}")
    start = time.perf_counter()
    reason = ""
    try:
        done = subprocess.run([sys.executable, *command], timeout=seconds, check=False)
        if done.returncode:
            reason = f"its process ended with {done.returncode}"
    except subprocess.TimeoutExpired:
        reason = f"it did not end within {seconds:g} s"
    numbers = json.loads(part_json.read_text(encoding="utf-8")) if part_json.exists() else {}
    report.add(title, numbers | {"seconds": round(time.perf_counter() - start, 2)})
    if reason:
        report.failed(f"{title}, unfinished", reason)
