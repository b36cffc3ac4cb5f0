"""Writing files and directories so that nobody ever sees an incomplete one.

Everything is written under a temporary name beside its target and renamed at the end. A directory that replaces another
is exchanged with it in one system call where the kernel has it (Linux `renameat2`), so that even `kill -9` between two
instructions leaves either the old directory or the new one. Elsewhere two renames do it, and a run that is killed between
them leaves the old directory under a name from which the next `sweep` brings it back.

A target that is a symbolic link stays one: the file it points to is replaced.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import hashlib
import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from runtime.core.errors import OutputError, UserError
from runtime.core.interrupts import postponing_ctrl_c, raise_if_interrupted

_LEFTOVER = re.compile(r"\.(?P<name>.+)\.(?P<kind>tmp|old)-(?P<pid>\d+)", re.DOTALL)


@contextmanager
def atomic_file(target: Path) -> Iterator[Path]:
    """Yield a temporary path beside `target`; on success it is flushed to disk and renamed to `target`, else removed.

    Leftovers of killed runs are swept first.
    OutputError, before anything is done, where `target` can't be written.
    """
    target = Path(target).resolve()
    if os.path.exists(target) and not target.is_file():  # Path.exists raises for a name that is too long
        kind = "a directory" if target.is_dir() else "not a regular file"
        raise OutputError(f"{target} is {kind}; choose another name for the output")
    with _replacement(target, Path.touch) as temporary:
        yield temporary


@contextmanager
def atomic_directory(target: Path) -> Iterator[Path]:
    """Yield a temporary directory beside `target`; on success it takes `target`'s name, else it is removed.

    An existing `target` stays as it was until the new directory is complete. Leftovers of killed runs are swept first.
    OutputError, before anything is done, where `target` can't be written.
    """
    target = Path(target).resolve()
    if os.path.exists(target) and not target.is_dir():
        raise OutputError(f"{target} is a file; choose another directory for the output")
    with _replacement(target, Path.mkdir) as temporary:
        yield temporary


def require_writable(target: Path) -> None:
    """OutputError where `target` can't be created or replaced; nothing is created to find out."""
    parent = Path(target).resolve().parent
    existing = next(folder for folder in (parent, *parent.parents) if os.path.lexists(folder))
    if not existing.is_dir():
        raise OutputError(f"{target} can't be written: {existing} is not a directory; choose another path")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise OutputError(f"{target} can't be written: no permission to write in {existing}; choose another path")


def sweep(target: Path) -> None:
    """Remove the temporary names that killed runs (processes that are gone) left beside `target`.

    Where `target` itself is missing because its replacement was cut off half-way, the old content gets its name back.
    What can't be listed or removed, such as another user's file in /tmp, is left alone.
    """
    target, names = Path(target), []
    with contextlib.suppress(OSError):
        names = os.listdir(target.parent)
    for name in names:
        match = _LEFTOVER.fullmatch(name)
        if match and match["name"] == target.name and not _alive(int(match["pid"])):
            with contextlib.suppress(OSError):
                if match["kind"] == "old" and not os.path.lexists(target):
                    os.rename(target.parent / name, target)
                else:
                    _remove(target.parent / name)


def sha256_of(path: Path) -> str:
    """Hex SHA-256 of a file."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


@contextmanager
def _replacement(target: Path, make: Callable[[Path], None]) -> Iterator[Path]:
    """Yield what `make` makes beside `target`, to be filled; on success it takes `target`'s name, else it is removed."""
    temporary, made = _beside(target, "tmp"), False
    try:
        with _refusing(target):
            sweep(target)
            with postponing_ctrl_c():
                make(temporary)
                made = True
        with _naming(target):
            yield temporary
            for file in (temporary, *temporary.rglob("*")):
                if file.is_file():
                    _sync(file)
            with postponing_ctrl_c():
                raise_if_interrupted()
                if temporary.is_dir() and target.exists():
                    _exchange(temporary, target)
                else:
                    os.replace(temporary, target)
    finally:  # what was written, or the older directory
        with postponing_ctrl_c(), contextlib.suppress(OSError):
            if made:
                _remove(temporary)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


@contextmanager
def _refusing(target: Path) -> Iterator[None]:
    """Create `target`'s parent and let the caller create the temporary file; OutputError where either fails."""
    require_writable(target)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        yield
    except OSError as error:
        raise OutputError(f"{target} can't be written: {error.strerror}; choose another path") from None


@contextmanager
def _naming(target: Path) -> Iterator[None]:
    """Name the file in errors of writing: those of a full disk do not, and NumPy's do not even give the reason."""
    try:
        yield
    except UserError:
        raise
    except OSError as error:
        if error.errno is None:
            raise OutputError(f"{target} could not be written in full ({error}); free some space or choose another disk") from None
        error.filename = error.filename or str(target)
        raise


def _beside(target: Path, kind: str) -> Path:
    return target.parent / f".{target.name}.{kind}-{os.getpid()}"


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


def _exchange(new: Path, target: Path) -> None:
    """Swap two directories; afterwards `new` holds the old content."""
    if _exchange_at_once(new, target):
        return
    aside = _beside(target, "old")
    os.rename(target, aside)
    try:
        os.rename(new, target)
    except BaseException:
        os.rename(aside, target)
        raise
    os.rename(aside, new)


def _exchange_at_once(new: Path, target: Path) -> bool:
    """Swap with one system call; False where this system or file system has none."""
    at_cwd, exchange = -100, 2  # AT_FDCWD, RENAME_EXCHANGE of linux/fs.h
    renameat2 = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if renameat2 is None:
        return False
    if renameat2(at_cwd, os.fsencode(new), at_cwd, os.fsencode(target), exchange) == 0:
        return True
    number = ctypes.get_errno()
    if number in (errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP):
        return False
    raise OSError(number, os.strerror(number), str(target))
