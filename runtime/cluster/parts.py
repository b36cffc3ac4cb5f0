"""The output of a batch job: a directory of Parquet parts, each written under a temporary name and then renamed.

    path string · sha256 string · bundle string · spec string · tokens float16 [N, D] · error string · size, mtime_ns int64

One row per file; `tokens` is null where `error` is not. Only the job's process writes, under a lock, so a row is in exactly one
part whichever process dies at whatever time. Rows of finished parts are done. A row whose file has changed, or that is to be tried
again, is removed from its part before the file is encoded.

N visual tokens, D hidden.
"""

from __future__ import annotations

import fcntl
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from runtime.bundle import VISION, Bundle
from runtime.core.errors import OutputError, missing_package
from runtime.core.files import atomic_file, require_writable, sweep

_PART = re.compile(r"part-(\d{6})\.parquet")


class Parts:
    """The parts below `out` for one bundle."""

    def __init__(self, out: Path, bundle: Bundle):
        try:
            import pyarrow
            import pyarrow.parquet
        except ImportError:
            raise missing_package("pyarrow", "the batch job", "batch") from None
        self.arrow, self.parquet = pyarrow, pyarrow.parquet
        manifest = bundle.manifest
        self.out = out
        self.identity, self.spec = bundle.sha256(VISION), manifest.compression.spec
        self.tokens = pyarrow.fixed_shape_tensor(pyarrow.float16(), (manifest.tokens_per_clip, manifest.hidden_size))
        kinds = dict.fromkeys(("path", "sha256", "bundle", "spec"), pyarrow.string())
        kinds |= {"tokens": self.tokens, "error": pyarrow.string(), "size": pyarrow.int64(), "mtime_ns": pyarrow.int64()}
        self.schema = pyarrow.schema(kinds)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """OutputError if another job writes there, or nobody can."""
        if self.out.exists() and not self.out.is_dir():
            raise OutputError(f"{self.out} is a file; choose a directory for the output")
        require_writable(self.out)
        self.out.mkdir(parents=True, exist_ok=True)
        with open(self.out / ".lock", "w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise OutputError(f"another job writes to {self.out}; wait for it or choose another directory") from None
            for part in self._files():
                sweep(part)
            for leftover in self.out.glob(".part-*.tmp-*"):
                leftover.unlink(missing_ok=True)
            yield

    def done(self, retry_errors: bool = False) -> set[str]:
        """Paths that have a valid row for this bundle. Rows of files that have changed, and errors to retry, are removed."""
        found: set[str] = set()
        for part in self._files():
            rows = self._read(part, ["path", "bundle", "error", "size", "mtime_ns"])
            valid = [self._is_valid(row, retry_errors) for row in rows]
            found |= {row["path"] for row, good in zip(rows, valid, strict=True) if good and row["bundle"] == self.identity}
            if any(valid) and not all(valid):
                with self._reading(part):
                    kept = self.parquet.read_table(part).filter(self.arrow.array(valid))
                self._store(part, kept)
            elif not all(valid):
                part.unlink()
        return found

    def write(self, rows: Sequence[dict[str, Any]]) -> Path:
        """Write the next part."""
        numbers = [int(match[1]) for part in self._files() if (match := _PART.fullmatch(part.name))]
        file = self.out / f"part-{max(numbers, default=-1) + 1:06d}.parquet"
        self._store(file, self._table(rows))
        return file

    def _table(self, rows: Sequence[dict[str, Any]]) -> Any:
        values = [None if row["tokens"] is None else np.frombuffer(row["tokens"], np.float16) for row in rows]
        columns: dict[str, Any] = {name: [row[name] for row in rows] for name in ("path", "sha256", "error", "size", "mtime_ns")}
        columns |= {"bundle": [self.identity] * len(rows), "spec": [self.spec] * len(rows)}
        columns["tokens"] = self.arrow.ExtensionArray.from_storage(self.tokens, self.arrow.array(values, self.tokens.storage_type))
        return self.arrow.table(columns, schema=self.schema)

    def _is_valid(self, row: dict[str, Any], retry_errors: bool) -> bool:
        if row["bundle"] != self.identity:
            return True  # this job leaves the rows of other bundles alone
        if row["error"] is not None and retry_errors:
            return False
        try:
            stat = os.stat(row["path"])
        except OSError:
            return True  # the file has been removed since, or is still missing
        return (stat.st_size, stat.st_mtime_ns) == (row["size"], row["mtime_ns"])

    def _store(self, file: Path, table: Any) -> None:
        with atomic_file(file) as temporary:
            self.parquet.write_table(table, temporary, compression="zstd")

    def _read(self, part: Path, columns: list[str]) -> list[dict[str, Any]]:
        with self._reading(part):
            rows = self.parquet.read_table(part, columns=columns).to_pylist()
            if any(type(row["path"]) is not str or "\0" in row["path"] or type(row["bundle"]) is not str for row in rows):
                raise ValueError("a row without a path or a bundle")
            return rows

    @contextmanager
    def _reading(self, part: Path) -> Iterator[None]:
        """OutputError if `part` turns out not to be a part of a batch job."""
        try:
            yield
        except (OSError, KeyError, ValueError, MemoryError, self.arrow.ArrowException) as error:
            reason = " ".join(str(error).split())
            raise OutputError(f"{part} is not a part of a batch job ({reason}); move it away or choose another directory") from None

    def _files(self) -> list[Path]:
        return sorted(path for path in self.out.glob("part-*.parquet") if _PART.fullmatch(path.name))
