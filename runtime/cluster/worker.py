"""What a worker does with one file: hash, encode, and a row that says what came out or why nothing did.

N visual tokens, D hidden.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from runtime.bundle import Bundle
from runtime.core.errors import UserError
from runtime.core.files import sha256_of
from runtime.engine import EngineOptions
from runtime.vision.encoder import VisionEncoder


@dataclass(frozen=True)
class WorkerOptions:
    """What a worker needs to start, on whatever machine it does."""

    bundle: str
    backend: str = "auto"
    device: str = "auto"
    threads: int = 0


class Worker:
    """One loaded vision half; `row(path)` may be called from several threads."""

    def __init__(self, options: WorkerOptions):
        bundle = Bundle.open(options.bundle)
        self.encoder = VisionEncoder.open(bundle, options.backend, EngineOptions(options.device, options.threads))

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
        except (UserError, OSError) as error:  # a file that is no good stops nobody
            row["error"] = " ".join(str(error).split())
        return row

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[Any]]:
        """Ray Data's form of the same: columns in, columns out."""
        rows = [self.row(str(path)) for path in batch["path"]]
        return {name: np.array([row[name] for row in rows], dtype=object) for name in rows[0]}  # type: ignore[misc]
