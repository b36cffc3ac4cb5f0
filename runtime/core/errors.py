"""Errors that a user can cause and fix, and the one place where a command line prints them.

The root and what the kernel raises come from `plugins/errors.py`. Every message is one line: what was got, what was expected,
what to do. The CLIs print it and exit with 2; anything that is not a `UserError` is a bug and keeps its traceback.
"""

from __future__ import annotations

import contextlib
import errno
import os
import sys
from collections.abc import Callable

from plugins.errors import EngineError as EngineError
from plugins.errors import SpecError as SpecError
from plugins.errors import UserError as UserError
from plugins.errors import import_package as import_package
from plugins.errors import install_command as install_command
from plugins.errors import missing_package as missing_package
from plugins.errors import nearest as nearest
from runtime.core.interrupts import INTERRUPTED, noting_ctrl_c


class CheckpointError(UserError):
    """A checkpoint directory that can't be read as the family says."""


class ExportError(UserError):
    """An export that can't be made, or a graph that does not compute what torch computed."""


class BundleError(UserError):
    """A bundle that is missing, altered, incomplete or of a newer schema."""


class VideoError(UserError):
    """A file that can't be decoded to the frames that were asked for."""


class OutputError(UserError, OSError):
    """A file or directory that can't be written where it was asked for; an OSError too, for a caller that can do without the file."""


class UsageError(UserError):
    """A command line with an option, argument or value that the command does not have."""


class NonFiniteError(EngineError):
    """An engine that returned infinities or NaN."""


class PromptError(UserError):
    """A question, or a context length, that the LLM can't take."""


class ContextError(PromptError):
    """A prompt, or an answer's length, that the LLM's context can't hold."""


def exit_code(command: Callable[[], int | None]) -> int:
    """Run a CLI command: a `UserError` becomes one line on stderr and exit code 2, Ctrl-C 130, a full disk 2."""
    try:
        with noting_ctrl_c():
            code = command() or 0
            if sys.stdout is not None:
                sys.stdout.flush()  # here a full disk is still an error of the command; at exit it would be too late
            return code
    except UserError as error:
        _print(error)
        return 2
    except KeyboardInterrupt:
        _print(INTERRUPTED)
        return 130
    except BrokenPipeError:
        _discard_stdout()  # the reader of our output went away (`| head`)
        return 0
    except OSError as error:
        if error.errno not in _FIXABLE:
            raise
        _discard_stdout()
        _print(
            f"{error.filename or 'output'}: {error.strerror}; {_FIXABLE[error.errno]}, nothing that was there before has been changed"
        )
        return 2


_FIXABLE = {
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT), "free some space or choose another disk"),
    errno.EFBIG: "choose a file system (or a ulimit -f) that takes files of that size",
    **dict.fromkeys((errno.EACCES, errno.EPERM, errno.EROFS), "choose another path or change its permissions"),
    **dict.fromkeys((errno.ENAMETOOLONG, errno.ENOTDIR, errno.EISDIR, errno.ELOOP), "choose another path"),
    errno.EIO: "check the disk",
}


def _discard_stdout() -> None:
    """Send what stdout still buffers nowhere, so that the interpreter does not try to write it again, and complain, at exit."""
    with contextlib.suppress(AttributeError, OSError, ValueError):
        sink = os.open(os.devnull, os.O_WRONLY)
        os.dup2(sink, sys.stdout.fileno())
        os.close(sink)


def _print(message: object) -> None:
    print("error: " + " ".join(str(message).split()), file=sys.stderr)
