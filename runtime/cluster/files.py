"""The videos of a batch job: files, directories, globs and lists in, absolute paths in order out."""

from __future__ import annotations

import glob
from collections.abc import Sequence
from pathlib import Path

from runtime.core.errors import UsageError

SUFFIXES = frozenset([
    ".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".flv", ".ts", ".mts", ".mpg", ".mpeg", ".wmv", ".ogv", ".3gp", ".mxf", ".gif",
])  # fmt: skip


def videos_of(arguments: Sequence[str]) -> list[str]:
    """Paths without repetitions. A directory stands for the video files below it, `@FILE` for the lines of FILE.

    UsageError for what names nothing; a file that is named itself may be missing or broken, that is its row's error.
    """
    found: dict[str, None] = {}
    for argument in arguments:
        for path in _expanded(argument):
            found.setdefault(str(path.absolute()))
    if not found:
        raise UsageError("no videos to work on; name files, directories, globs or @FILE with one path a line")
    return list(found)


def _expanded(argument: str) -> list[Path]:
    if argument.startswith("@"):
        try:
            lines = Path(argument[1:]).read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise UsageError(f"the list {argument[1:]} can't be read ({error}); expected one path a line") from None
        return [Path(line.strip()) for line in lines if line.strip()]
    path = Path(argument)
    if path.is_dir():
        inside = sorted(file for file in path.rglob("*") if file.suffix.lower() in SUFFIXES and file.is_file())
        if not inside:
            raise UsageError(f"{path} has no video files; expected some of {', '.join(sorted(SUFFIXES))}")
        return inside
    if not path.exists() and glob.has_magic(argument):
        matches = sorted(Path(match) for match in glob.glob(argument, recursive=True))
        if not matches:
            raise UsageError(f'nothing matches "{argument}"')
        return matches
    return [path]
