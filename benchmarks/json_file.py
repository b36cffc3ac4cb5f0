"""Files of results, each replaced at once: a run that is killed leaves the last complete one."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from runtime.core.files import atomic_file


def write_text(path: Path, text: str) -> None:
    with atomic_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path | None, data: Any) -> None:
    """Do nothing without a path; values JSON cannot represent are written as text."""
    if path is not None:
        write_text(path, json.dumps(data, indent=1, default=str) + "\n")
