"""Writing files and directories so that nobody ever sees half of one.

Everything is written under a temporary name beside its goal and renamed at the end. A directory that replaces another
is exchanged with it in one system call where the kernel has it (Linux `renameat2`), so that even `kill -9` between two
instructions leaves either the old directory or the new one. Elsewhere two renames do it, and a run that is killed between
them leaves the old directory under a name from which the next `sweep` brings it back.

A goal that is a symbolic link stays one: what it points to is replaced.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import hashlib
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from runtime.core.errors import OutputError, UserError
from runtime.core.interrupts import postponing_ctrl_c, raise_if_interrupted

_LEFTOVER = re.compile(r"\.(?P<name>.+)\.(?P<kind>tmp|old)-(?P<pid>\d+)", re.DOTALL)


@contextmanager
def atomic_file(goal: Path) -> Iterator[Path]:
    """Yield a temporary path beside `goal`; on success it is flushed to disk and renamed to `goal`, else removed.

    Leftovers of killed runs are swept first.
    OutputError, before anything is done, where `goal` can't be written.
    """
    goal = Path(goal).resolve()
    sweep(goal)
    if os.path.exists(goal) and not goal.is_file():  # Path.exists raises for a name that is too long
        raise OutputError(f"{goal} is {'a directory' if goal.is_dir() else 'no regular file'}; choose another name for the output")
    temporary = _beside(goal, "tmp")
    try:
        with _refusing(goal):
            temporary.touch()
        with _naming(goal):
            yield temporary
            _sync(temporary)
            with postponing_ctrl_c():
                raise_if_interrupted()
                os.replace(temporary, goal)
    finally:
        with postponing_ctrl_c(), contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


@contextmanager
def atomic_directory(goal: Path) -> Iterator[Path]:
    """Yield a temporary directory beside `goal`; on success it takes `goal`'s name, else it is removed.

    An existing `goal` stays as it was until the new directory is complete. Leftovers of killed runs are swept first.
    OutputError, before anything is done, where `goal` can't be written.
    """
    goal = Path(goal).resolve()
    if os.path.exists(goal) and not goal.is_dir():
        raise OutputError(f"{goal} is a file; choose another directory for the output")
    temporary, made = _beside(goal, "tmp"), False
    try:
        with _refusing(goal):
            sweep(goal)
            with postponing_ctrl_c():
                temporary.mkdir()
                made = True
        with _naming(goal):
            yield temporary
            for file in temporary.rglob("*"):
                if file.is_file():
                    _sync(file)
            with postponing_ctrl_c():
                raise_if_interrupted()
                if goal.exists():
                    _exchange(temporary, goal)
                else:
                    os.rename(temporary, goal)
    finally:  # what was written, or the older content
        with postponing_ctrl_c():
            if made:
                shutil.rmtree(temporary, ignore_errors=True)


def require_writable(goal: Path) -> None:
    """OutputError where `goal` can't be created or replaced, found without creating anything."""
    parent = Path(goal).resolve().parent
    existing = next(folder for folder in (parent, *parent.parents) if os.path.lexists(folder))
    if not existing.is_dir():
        raise OutputError(f"{goal} can't be written: {existing} is not a directory; choose another path")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise OutputError(f"{goal} can't be written: no permission to write in {existing}; choose another path")


def sweep(goal: Path) -> None:
    """Remove the temporary names that killed runs (processes that are gone) left beside `goal`.

    Where `goal` itself is missing because its replacement was cut off half-way, the old content gets its name back.
    What can't be listed or removed, such as another user's file in /tmp, stays.
    """
    goal, names = Path(goal), []
    with contextlib.suppress(OSError):
        names = os.listdir(goal.parent)
    for name in names:
        match = _LEFTOVER.fullmatch(name)
        if match and match["name"] == goal.name and not _alive(int(match["pid"])):
            with contextlib.suppress(OSError):
                _remove_or_restore(goal.parent / name, goal, match["kind"])


def sha256_of(path: Path) -> str:
    """Hex SHA-256 of a file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest() if hasattr(hashlib, "file_digest") else _digest(file)


def _remove_or_restore(leftover: Path, goal: Path, kind: str) -> None:
    if kind == "old" and not os.path.lexists(goal):
        os.rename(leftover, goal)
    elif leftover.is_dir() and not leftover.is_symlink():
        shutil.rmtree(leftover, ignore_errors=True)
    else:
        leftover.unlink(missing_ok=True)


def _digest(file) -> str:  # Python 3.10
    digest = hashlib.sha256()
    while chunk := file.read(1 << 20):
        digest.update(chunk)
    return digest.hexdigest()


@contextmanager
def _refusing(goal: Path) -> Iterator[None]:
    """Make `goal`'s parent and let the caller make the temporary name; OutputError where the file system allows neither."""
    require_writable(goal)
    try:
        goal.parent.mkdir(parents=True, exist_ok=True)
        yield
    except OSError as error:
        raise OutputError(f"{goal} can't be written: {error.strerror}; choose another path") from None


@contextmanager
def _naming(goal: Path) -> Iterator[None]:
    """Errors of writing say what was being written: a full disk does not name a file, and NumPy not even the reason."""
    try:
        yield
    except UserError:
        raise
    except OSError as error:
        if error.errno is None:
            raise OutputError(f"{goal} could not be written in full ({error}); free some space or choose another disk") from None
        error.filename = error.filename or str(goal)
        raise


def _beside(goal: Path, kind: str) -> Path:
    return goal.parent / f".{goal.name}.{kind}-{os.getpid()}"


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return True


def _sync(path: Path) -> None:
    with open(path, "rb") as file:
        os.fsync(file.fileno())


def _exchange(new: Path, goal: Path) -> None:
    """Swap two directories; afterwards `new` holds the old content."""
    if _exchange_at_once(new, goal):
        return
    aside = _beside(goal, "old")
    os.rename(goal, aside)
    try:
        os.rename(new, goal)
    except BaseException:
        os.rename(aside, goal)
        raise
    os.rename(aside, new)


def _exchange_at_once(new: Path, goal: Path) -> bool:
    """One system call, False where this system or file system has none."""
    at_cwd, exchange = -100, 2  # AT_FDCWD, RENAME_EXCHANGE of linux/fs.h
    renameat2 = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if renameat2 is None:
        return False
    if renameat2(at_cwd, os.fsencode(new), at_cwd, os.fsencode(goal), exchange) == 0:
        return True
    number = ctypes.get_errno()
    if number in (errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP):
        return False
    raise OSError(number, os.strerror(number), str(goal))
