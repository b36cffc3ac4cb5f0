"""Files of results, written beside their place and renamed into it: a run that is killed leaves the last complete one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def write_text(path: Path, text: str) -> None:
    partial = path.with_name(f"{path.name}.partial")
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)


def write_json(path: Path | None, data: Any) -> None:
    """Nothing where there is no path; what JSON does not know is written as its text."""
    if path is not None:
        write_text(path, json.dumps(data, indent=1, default=str) + "\n")
