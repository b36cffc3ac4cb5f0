"""What every refusal of a command line looks like: exit code 2 and one line on stderr, nothing on stdout, no traceback."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest


def refused(capsys: pytest.CaptureFixture, main: Callable[[list[str]], int], *args: str | Path) -> str:
    """Run a CLI in this process; return its one error line without "error: "."""
    capsys.readouterr()
    code = main([str(arg) for arg in args])
    out, err = capsys.readouterr()
    assert (code, out) == (2, ""), err
    return error_line(err)


def error_line(stderr: str) -> str:
    """The one line that says what was wrong, which is the last one."""
    assert "Traceback" not in stderr
    lines = [line for line in stderr.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1, stderr
    assert stderr.splitlines()[-1] == lines[0]
    return lines[0].removeprefix("error: ")


def naming(*things: object) -> re.Pattern[str]:
    """One line that names all of these, in any order and in any words; for `match` of pytest.raises too."""
    patterns = (rf"(?<!\w)(?<!\d\.){re.escape(str(thing))}(?!\w|\.\d)" for thing in things)
    return re.compile(r"\A" + "".join(f"(?=.*{pattern})" for pattern in patterns) + r".+\Z")


def names_under(directory: Path) -> list[str]:
    """Every name under a directory, hidden ones too: what a failed command must leave as it was."""
    return sorted(path.relative_to(directory).as_posix() for path in directory.rglob("*"))


def change_json(file: Path, **values: object) -> None:
    """Set top-level keys of a JSON file."""
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


def change_config(checkpoint: Path, part: str | None = None, **values: object) -> None:
    """Set keys of a checkpoint's config.json, or of one of its parts."""
    config = json.loads((checkpoint / "config.json").read_text())
    (config if part is None else config[part]).update(values)
    (checkpoint / "config.json").write_text(json.dumps(config))
