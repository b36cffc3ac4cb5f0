"""Writing files and directories so that nobody ever sees half of one.

Everything is written under a temporary name beside its goal and renamed at the end. A directory that replaces another
is exchanged with it in one system call where the kernel has it (Linux `renameat2`), so that even `kill -9` between two
instructions leaves either the old directory or the new one.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_TEMPORARY = re.compile(r"\.(?P<name>.+)\.tmp-(?P<pid>\d+)$")


@contextmanager
def atomic_file(goal: Path) -> Iterator[Path]:
    """Yield a temporary path beside `goal`; on success it is flushed to disk and renamed to `goal`, else removed."""
    goal = Path(goal)
    goal.parent.mkdir(parents=True, exist_ok=True)
    temporary = _temporary(goal)
    try:
        yield temporary
        _sync(temporary)
        os.replace(temporary, goal)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def atomic_directory(goal: Path) -> Iterator[Path]:
    """Yield a temporary directory beside `goal`; on success it takes `goal`'s name, else it is removed.

    An existing `goal` stays as it was until the new directory is complete. Leftovers of killed runs are swept first.
    """
    goal = Path(goal)
    goal.parent.mkdir(parents=True, exist_ok=True)
    sweep(goal)
    temporary = _temporary(goal)
    temporary.mkdir()
    try:
        yield temporary
        for file in temporary.rglob("*"):
            if file.is_file():
                _sync(file)
        if goal.exists():
            _exchange(temporary, goal)
        else:
            os.rename(temporary, goal)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def sweep(goal: Path) -> None:
    """Remove the temporary names that killed runs (processes that are gone) left beside `goal`."""
    for path in goal.parent.glob(f".{goal.name}.tmp-*"):
        match = _TEMPORARY.match(path.name)
        if match and not _alive(int(match["pid"])):
            shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)


def sha256_of(path: Path) -> str:
    """Hex SHA-256 of a file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest() if hasattr(hashlib, "file_digest") else _digest(file)


def _digest(file) -> str:  # Python 3.10
    digest = hashlib.sha256()
    while chunk := file.read(1 << 20):
        digest.update(chunk)
    return digest.hexdigest()


def _temporary(goal: Path) -> Path:
    return goal.parent / f".{goal.name}.tmp-{os.getpid()}"


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _sync(path: Path) -> None:
    with open(path, "rb") as file:
        os.fsync(file.fileno())


def _exchange(new: Path, goal: Path) -> None:
    """Swap two directories; afterwards `new` holds the old content."""
    at_cwd, exchange = -100, 2  # AT_FDCWD, RENAME_EXCHANGE of linux/fs.h
    renameat2 = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if renameat2 is not None and renameat2(at_cwd, os.fsencode(new), at_cwd, os.fsencode(goal), exchange) == 0:
        return
    # No such call on this system or file system: two renames, with the old content back in place if the second fails.
    aside = goal.parent / f".{goal.name}.old-{os.getpid()}"
    os.rename(goal, aside)
    try:
        os.rename(new, goal)
    except BaseException:
        os.rename(aside, goal)
        raise
    os.rename(aside, new)
