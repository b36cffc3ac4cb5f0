"""Errors that a user can cause: their root, and those that the op and its kernel raise. Standard library only.

Every message is one line: what was got, what was expected, what to do. The runtime adds its own kinds in `runtime/core/errors.py`,
where a command line also prints them.
"""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Iterable
from importlib import metadata
from typing import Any


class UserError(Exception):
    """Root of the errors that a user can fix; `str(error)` is one line."""


class SpecError(UserError):
    """A compression spec, preset or option that does not exist or does not fit the grid."""


class EngineError(UserError):
    """An engine or a kernel that can't be built, loaded or run here."""


class MissingPackageError(UserError, ImportError):
    """An optional dependency that is not installed; an ImportError too, for a caller that can do without."""


def nearest(name: str, known: Iterable[str]) -> str:
    """'; did you mean "x"?' for a misspelt name, or the list of known names where none is close."""
    known = sorted(set(known))
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f'; did you mean "{close[0]}"?' if close else f"; known: {', '.join(known)}"


def install_command(extras: str) -> str:
    """The pip command for extras of this package, e.g. "runtime" or "export,runtime".

    "runtime" installs ONNX Runtime's CPU wheel, which can't be installed beside the GPU wheel: where that is installed, "gpu" replaces it.
    """
    try:
        metadata.version("onnxruntime-gpu")
        extras = ",".join("gpu" if extra == "runtime" else extra for extra in extras.split(","))
    except metadata.PackageNotFoundError:
        pass
    return f'pip install "st-gridpool[{extras}]"'


def missing_package(package: str, needed_for: str, extras: str) -> MissingPackageError:
    """The error for an optional dependency that is not installed: what needs it and the command that installs it."""
    return MissingPackageError(f'{needed_for} needs the package "{package}", which is not installed: {install_command(extras)}')


def import_package(module: str, needed_for: str, extras: str, package: str = "") -> Any:
    """The module of an optional dependency, or the error of `missing_package`; package: its name in pip, where that is another."""
    try:
        return importlib.import_module(module)
    except ImportError:
        raise missing_package(package or module, needed_for, extras) from None
