"""What a worker does with one file: hash it, encode it, and return a row with the tokens or the error.

N visual tokens, D hidden.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np

from runtime.bundle import Bundle
from runtime.core.errors import UserError
from runtime.core.files import sha256_of
from runtime.engine import EngineOptions
from runtime.vision.encoder import VisionEncoder


class Worker:
    """One loaded vision encoder; `row(path)` may be called from several threads."""

    def __init__(self, bundle: str, backend: str, engine: EngineOptions):
        self.encoder = VisionEncoder.open(Bundle.open(bundle), backend, engine)

    def row(self, path: str) -> dict[str, Any]:
        """{"path", "size", "mtime_ns", "sha256", "tokens": bytes of float16 [N, D] or None, "error": text or None}."""
        row: dict[str, Any] = {"path": path, "size": None, "mtime_ns": None, "sha256": None, "tokens": None, "error": None}
        try:
            stat = os.stat(path)
            row |= {"size": stat.st_size, "mtime_ns": stat.st_mtime_ns}
            if Path(path).is_file():
                row["sha256"] = sha256_of(Path(path))
            with np.errstate(over="ignore"):
                tokens = self.encoder.encode(path).tokens.astype(np.float16)
            if not np.isfinite(tokens).all():
                raise UserError("the tokens are out of float16's range")
            row["tokens"] = tokens.tobytes()
        except (UserError, OSError) as error:  # a bad file does not stop the job
            row["error"] = " ".join(str(error).split())
        return row

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[Any]]:
        """Ray Data's form of the same: columns in, columns out."""
        rows = [self.row(str(path)) for path in batch["path"]]
        return {name: np.array([row[name] for row in rows], dtype=object) for name in rows[0]}  # type: ignore[misc]
