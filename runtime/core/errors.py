"""Errors that a user can cause and mend, and the one place where a command line prints them.

Every message is one line: what was got, what was expected, what to do. The CLIs print it and exit with 2;
anything that is not a `UserError` is a bug and keeps its traceback.
"""

from __future__ import annotations

import contextlib
import difflib
import errno
import os
import sys
from collections.abc import Callable, Iterable
from importlib import metadata

from runtime.core.interrupts import INTERRUPTED, noting_ctrl_c


class UserError(Exception):
    """Root of the errors that a user can mend; `str(error)` is one line."""


class SpecError(UserError):
    """A compression spec, preset or option that does not exist or does not fit the grid."""


class CheckpointError(UserError):
    """A checkpoint directory that can't be read as the family says."""


class ExportError(UserError):
    """An export that can't be made, or a graph that does not compute what torch computed."""


class BundleError(UserError):
    """A bundle that is missing, altered, incomplete or of a newer schema."""


class VideoError(UserError):
    """A file that can't be decoded to the frames that were asked for."""


class OutputError(UserError, OSError):
    """A file or directory that can't be written where it was asked for; an OSError too, for who can do without the file."""


class UsageError(UserError):
    """A command line with an option, argument or value that the command does not have."""


class EngineError(UserError):
    """An engine that can't be built, loaded or fed here."""


class NonFiniteError(EngineError):
    """An engine that returned infinities or NaN."""


class PromptError(UserError):
    """A question, or a context length, that the LLM half can't take."""


class ContextError(PromptError):
    """A prompt, or an answer's length, that the LLM's context can't hold."""


def nearest(name: str, known: Iterable[str]) -> str:
    """A ' (did you mean "x"?)' for a misspelt name, or the list of known ones where nothing is near."""
    known = sorted(set(known))
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f'; did you mean "{close[0]}"?' if close else f"; known: {', '.join(known)}"


def install_command(extras: str) -> str:
    """The pip command for extras of this package, e.g. "runtime" or "export,runtime".

    "runtime" brings ONNX Runtime's wheel for CPUs, which excludes the one for GPUs: where that is installed, "gpu" stands instead.
    """
    try:
        metadata.version("onnxruntime-gpu")
        extras = ",".join("gpu" if extra == "runtime" else extra for extra in extras.split(","))
    except metadata.PackageNotFoundError:
        pass
    return f'pip install "st-gridpool[{extras}]"'


def missing_package(package: str, needed_for: str, extras: str) -> UserError:
    """The error for an optional dependency that is not installed: what needs it and the command that brings it."""
    return UserError(f'{needed_for} needs the package "{package}", which is not installed: {install_command(extras)}')


def exit_code(command: Callable[[], int | None]) -> int:
    """Run a CLI command: a `UserError` becomes one line on stderr and exit code 2, Ctrl-C 130, a full disk 2."""
    try:
        with noting_ctrl_c():
            code = command() or 0
            if sys.stdout is not None:
                sys.stdout.flush()  # what is buffered is a result too: the interpreter would find the disk full when it is too late
            return code
    except UserError as error:
        _say(error)
        return 2
    except KeyboardInterrupt:
        _say(INTERRUPTED)
        return 130
    except BrokenPipeError:
        _discard_stdout()  # the reader of our output went away (`| head`)
        return 0
    except OSError as error:
        if error.errno not in _MENDABLE:
            raise
        _discard_stdout()
        _say(
            f"{error.filename or 'output'}: {error.strerror}; {_MENDABLE[error.errno]}, nothing that was there before has been changed"
        )
        return 2


_MENDABLE = {
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT), "free some space or choose another disk"),
    errno.EFBIG: "choose a file system (or a ulimit -f) that takes files of that size",
    **dict.fromkeys((errno.EACCES, errno.EPERM, errno.EROFS), "choose another path or change its permissions"),
    **dict.fromkeys((errno.ENAMETOOLONG, errno.ENOTDIR, errno.EISDIR, errno.ELOOP), "choose another path"),
    errno.EIO: "check the disk",
}


def _discard_stdout() -> None:
    """What stdout still holds goes nowhere, so that the interpreter does not try again, and complain, as it ends."""
    with contextlib.suppress(AttributeError, OSError, ValueError):
        sink = os.open(os.devnull, os.O_WRONLY)
        os.dup2(sink, sys.stdout.fileno())
        os.close(sink)


def _say(message: object) -> None:
    print("error: " + " ".join(str(message).split()), file=sys.stderr)
