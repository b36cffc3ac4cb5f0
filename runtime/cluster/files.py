"""The videos of a batch job: files, directories, globs and lists in, ordered absolute paths out."""

from __future__ import annotations

import glob
from collections.abc import Sequence
from pathlib import Path

from runtime.core.errors import UsageError

SUFFIXES = frozenset([
    ".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".flv", ".ts", ".mts", ".mpg", ".mpeg", ".wmv", ".ogv", ".3gp", ".mxf", ".gif",
])  # fmt: skip


def videos_of(arguments: Sequence[str]) -> list[str]:
    """Unique paths. A directory stands for the video files below it, `@FILE` for the lines of FILE.

    UsageError for an argument that stands for nothing. A file that is named directly may be missing or broken; its row will say so.
    """
    found = dict.fromkeys(str(path.absolute()) for argument in arguments for path in _expanded(argument))
    if not found:
        raise UsageError("no videos to encode; name files, directories, globs or @FILE with one path per line")
    return list(found)


def _expanded(argument: str) -> list[Path]:
    if argument.startswith("@"):
        try:
            lines = Path(argument[1:]).read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise UsageError(f"the list {argument[1:]} can't be read ({error}); expected one path per line") from None
        return [Path(line.strip()) for line in lines if line.strip()]
    path = Path(argument)
    if path.is_dir():
        inside = sorted(file for file in path.rglob("*") if file.suffix.lower() in SUFFIXES and file.is_file())
        if not inside:
            raise UsageError(f"{path} has no video files; expected any of {', '.join(sorted(SUFFIXES))}")
        return inside
    if not path.exists() and glob.has_magic(argument):
        matches = sorted(Path(match) for match in glob.glob(argument, recursive=True))
        if not matches:
            raise UsageError(f'nothing matches "{argument}"')
        return matches
    return [path]
