"""The table of the LLM's word embeddings on disk, memory-mapped: only the rows that are asked for are read.

    llm/embed_tokens.npy    [V, D] float32, float16, or int8 with
    llm/embed_scales.npy    [V] float32, the scale of each row

V vocabulary, D hidden.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from runtime.bundle import Bundle
from runtime.bundle.files import FLOATS, read_array
from runtime.core.errors import BundleError

ROWS, SCALES = "llm/embed_tokens.npy", "llm/embed_scales.npy"


class Embeddings:
    """`table[ids]` is [n, D] float32, or float16 where the table is."""

    def __init__(self, bundle: Bundle):
        self._path = bundle.file(ROWS)
        self._rows = read_array(self._path, 2, (*FLOATS, "int8"))
        quantized = self._rows.dtype == np.int8
        self._scales = np.asarray(read_array(bundle.file(SCALES), 1, ("float32",))) if quantized else None
        self.shape: tuple[int, int] = self._rows.shape
        self.dtype = np.dtype(np.float32) if quantized else self._rows.dtype
        if self._scales is not None and self._scales.shape != (len(self._rows),):
            raise BundleError(
                f"{SCALES} has the shape {self._scales.shape}, expected one scale for each of the {len(self._rows)} rows; export the bundle again"
            )
        if self.shape[1] != bundle.manifest.hidden_size:
            raise BundleError(
                f"{self._path} has rows of {self.shape[1]} values, expected {bundle.manifest.hidden_size} (hidden_size); export the bundle again"
            )

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, ids: Sequence[int]) -> np.ndarray:
        chosen = np.asarray(ids, np.int64)
        if chosen.size and not 0 <= chosen.min() <= chosen.max() < len(self):
            raise BundleError(
                f"{self._path} has {len(self)} rows and none for token {chosen.max() if chosen.min() >= 0 else chosen.min()}; "
                "export the bundle again"
            )
        rows = self._rows[chosen]
        return rows if self._scales is None else rows * self._scales[chosen, None]
