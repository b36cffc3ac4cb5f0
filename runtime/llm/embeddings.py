"""The table of the LLM's word embeddings on disk, memory-mapped: only the rows that are asked for are read.

    llm/embed_tokens.npy    [V, D] float32, float16, or int8 with
    llm/embed_scales.npy    [V] float32, what a step of each row is worth

V vocabulary, D hidden.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from runtime.bundle import Bundle
from runtime.errors import BundleError

ROWS, SCALES = "llm/embed_tokens.npy", "llm/embed_scales.npy"


class Embeddings:
    """`table[ids]` is [n, D] float32, or float16 where the table is."""

    def __init__(self, bundle: Bundle):
        self._rows = np.load(bundle.file(ROWS), mmap_mode="r")
        whole = self._rows.dtype != np.int8
        self._scales = None if whole else np.load(bundle.file(SCALES))
        self.shape: tuple[int, int] = self._rows.shape
        self.dtype = self._rows.dtype if whole else np.dtype(np.float32)
        if self._scales is not None and self._scales.shape != (len(self._rows),):
            raise BundleError(
                f"{SCALES} has the shape {self._scales.shape}, {ROWS} {len(self._rows)} rows; export the bundle again"
            )

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, ids: Sequence[int]) -> np.ndarray:
        chosen = np.asarray(ids, np.int64)
        rows = self._rows[chosen]
        return rows if self._scales is None else rows * self._scales[chosen, None]
