"""The files of a bundle beside its manifest: listed when it is written, checked when it is opened; and reading its arrays.

Sizes are checked at every load. Hashes are checked at the first load of a path, after any change of a file's size or time, and by
`inspect --verify`: what was verified is remembered in the user's cache, so a bundle of 2 GB that was seen before starts at once.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np

from runtime.bundle.manifest import SCHEMA_VERSION, FileEntry, Manifest, written
from runtime.core.errors import BundleError
from runtime.core.files import atomic_file, sha256_of
from runtime.core.machine import cache_directory

MANIFEST = "manifest.json"
FLOATS = ("float32", "float16")


def write_manifest(directory: Path, manifest: Manifest) -> Manifest:
    """Size and hash every file under `directory` into the manifest and write it there; return what was written."""
    listed = {}
    for file in sorted(file for file in directory.rglob("*") if file.is_file() and file.name != MANIFEST):
        name = file.relative_to(directory)
        if name.parts[0] != "engines":
            listed[name.as_posix()] = FileEntry(file.stat().st_size, sha256_of(file))
    manifest = replace(manifest, files=listed)
    values = {"schema_version": SCHEMA_VERSION} | written(manifest)
    (directory / MANIFEST).write_text(json.dumps(values, indent=1) + "\n")
    return manifest


def foreign_files(directory: Path) -> list[str]:
    """Files in a bundle's directory that neither its manifest lists nor a build wrote; all of them where it is not a bundle.

    A manifest of any schema will do: what matters is which files the export wrote.
    """
    values = _read_json(directory / MANIFEST)
    ours = isinstance(values, dict) and type(values.get("schema_version")) is int and isinstance(values.get("files"), dict)
    known = {MANIFEST, *values["files"]} if ours else set()
    files = sorted(path.relative_to(directory) for path in directory.rglob("*") if path.is_symlink() or not path.is_dir())
    return [file.as_posix() for file in files if file.as_posix() not in known and not (ours and file.parts[0] == "engines")]


def check_files(path: Path, manifest: Manifest, verify: bool, progress: Callable[[str], None] | None) -> None:
    """BundleError, naming the file, where one is missing or has another size or hash than `manifest` says.

    verify: hash every file even where size and time are those of an earlier check.
    """
    root = path.resolve()
    stamps: dict[str, list[int]] = {}
    for name, entry in manifest.files.items():
        file = path / name
        if "\0" in name or not file.resolve().is_relative_to(root):
            raise BundleError(f"{path / MANIFEST} lists {name!r}, which is outside the bundle; export the bundle again")
        if not file.is_file():
            raise BundleError(f"{file} is missing; copy the whole bundle directory or export it again")
        stat = file.stat()
        if stat.st_size != entry.size:
            raise BundleError(
                f"{file} has {stat.st_size} bytes, the manifest says {entry.size}: it is truncated or altered; copy or export it again"
            )
        stamps[name] = [stat.st_size, stat.st_mtime_ns]
    seen = _verified_file(root)
    identity = {"manifest": sha256_of(path / MANIFEST), "stamps": stamps}
    if not verify and seen is not None and _read_json(seen) == identity:
        return
    for name, entry in manifest.files.items():
        if progress:
            progress(f"checking {name}")
        try:
            digest = sha256_of(path / name)
        except OSError as error:
            raise BundleError(f"{path / name} can't be read: {error.strerror}; copy or export it again") from None
        if digest != entry.sha256:
            raise BundleError(f"{path / name} was altered: its SHA-256 is not the manifest's; copy or export it again")
    if seen is None:
        return
    try:
        with atomic_file(seen) as temporary:
            temporary.write_text(json.dumps(identity))
    except OSError:
        pass  # no writable cache: the next load hashes again


def read_array(path: Path, axes: int, dtypes: tuple[str, ...] = FLOATS) -> np.ndarray:
    """The array in the .npy file `path`, with `axes` axes and one of `dtypes`; BundleError for anything else.

    Memory-mapped: only what is indexed is read, and a header alone never makes this process allocate what it claims.
    """
    try:
        array = np.load(path, mmap_mode="r")
    except Exception as error:  # NumPy parses the header with Python's own tokenizer, whose errors have no common class
        raise BundleError(f"{path} is not a .npy file ({' '.join(str(error).split())}); export the bundle again") from None
    if not isinstance(array, np.ndarray) or array.ndim != axes or str(array.dtype) not in dtypes:
        found = f"{array.dtype} {list(array.shape)}" if isinstance(array, np.ndarray) else "an archive"
        raise BundleError(f"{path} holds {found}; expected {' or '.join(dtypes)} with {axes} axes, export the bundle again")
    return array


def _verified_file(root: Path) -> Path | None:
    """Where an earlier check of the bundle at `root` is remembered; None for a user without a home directory."""
    try:
        return cache_directory("verified") / f"{sha256(os.fsencode(root)).hexdigest()[:32]}.json"
    except RuntimeError:
        return None


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError):
        return None
