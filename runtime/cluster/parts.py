"""The output of a batch job: a directory of Parquet parts, each written under a temporary name and then renamed.

    path string · sha256 string · bundle string · spec string · tokens float16 [N, D] · error string · size, mtime_ns int64

One row a file; `tokens` is null where `error` is not. Only the job's process writes, under a lock, so a row is in exactly one part
whatever dies when. Rows of finished parts are done; a row whose file has changed since, or that is to be tried again, is removed from
its part before the file is encoded.

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
        self.out, self.shape = out, (manifest.tokens_per_clip, manifest.hidden_size)
        self.identity, self.spec = bundle.sha256(VISION), manifest.compression.spec
        text = pyarrow.string()
        self.schema = pyarrow.schema(
            [
                ("path", text),
                ("sha256", text),
                ("bundle", text),
                ("spec", text),
                ("tokens", pyarrow.fixed_shape_tensor(pyarrow.float16(), self.shape)),
                ("error", text),
                ("size", pyarrow.int64()),
                ("mtime_ns", pyarrow.int64()),
            ]
        )

    @contextmanager
    def locked(self) -> Iterator[None]:
        """OutputError where another job writes there, or nobody can."""
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
        """Paths whose rows stand, for this bundle. Rows of files that have changed, and errors to retry, are removed."""
        found: set[str] = set()
        for part in self._files():
            rows = self._read(part, ["path", "bundle", "error", "size", "mtime_ns"])
            stands = [self._stands(row, retry_errors) for row in rows]
            found |= {row["path"] for row, good in zip(rows, stands, strict=True) if good and row["bundle"] == self.identity}
            if not all(stands):
                self._keep(part, stands)
        return found

    def write(self, rows: Sequence[dict[str, Any]]) -> Path:
        """The next part."""
        numbers = [int(match[1]) for part in self._files() if (match := _PART.fullmatch(part.name))]
        file = self.out / f"part-{max(numbers, default=-1) + 1:06d}.parquet"
        self._store(file, self._table(rows))
        return file

    def _table(self, rows: Sequence[dict[str, Any]]) -> Any:
        arrow, count, size = self.arrow, len(rows), int(np.prod(self.shape))
        values = np.zeros((count, size), np.float16)
        for index, row in enumerate(rows):
            if row["tokens"] is not None:
                values[index] = np.frombuffer(row["tokens"], np.float16)
        missing = arrow.array([row["tokens"] is None for row in rows])
        flat = arrow.FixedSizeListArray.from_arrays(arrow.array(values.reshape(-1)), size, mask=missing)
        tensor = arrow.ExtensionArray.from_storage(self.schema.field("tokens").type, flat)
        columns = {
            "path": [row["path"] for row in rows],
            "sha256": [row["sha256"] for row in rows],
            "bundle": [self.identity] * count,
            "spec": [self.spec] * count,
            "tokens": tensor,
            "error": [row["error"] for row in rows],
            "size": [row["size"] for row in rows],
            "mtime_ns": [row["mtime_ns"] for row in rows],
        }
        return arrow.table(columns, schema=self.schema)

    def _stands(self, row: dict[str, Any], retry_errors: bool) -> bool:
        if row["bundle"] != self.identity:
            return True  # another bundle's row is none of this job's business
        if row["error"] is not None and retry_errors:
            return False
        try:
            stat = os.stat(row["path"])
        except OSError:
            return True  # it was worked on when it was there, or is missing still
        return (stat.st_size, stat.st_mtime_ns) == (row["size"], row["mtime_ns"])

    def _keep(self, part: Path, stands: list[bool]) -> None:
        if not any(stands):
            part.unlink()
            return
        with self._understanding(part):
            kept = self.parquet.read_table(part).filter(self.arrow.array(stands))
        self._store(part, kept)

    def _store(self, file: Path, table: Any) -> None:
        with atomic_file(file) as temporary:
            self.parquet.write_table(table, temporary, compression="zstd")

    def _read(self, part: Path, columns: list[str]) -> list[dict[str, Any]]:
        with self._understanding(part):
            rows = self.parquet.read_table(part, columns=columns).to_pylist()
            if any(type(row["path"]) is not str or "\0" in row["path"] or type(row["bundle"]) is not str for row in rows):
                raise ValueError("a row without a path or a bundle")
            return rows

    @contextmanager
    def _understanding(self, part: Path) -> Iterator[None]:
        """OutputError if what is read within is not a part of a batch job."""
        try:
            yield
        except (OSError, KeyError, ValueError, MemoryError, self.arrow.ArrowException) as error:
            reason = " ".join(str(error).split())
            raise OutputError(f"{part} is not a part of a batch job ({reason}); move it away or choose another directory") from None

    def _files(self) -> list[Path]:
        return sorted(path for path in self.out.glob("part-*.parquet") if _PART.fullmatch(path.name))
