"""How far two outputs of one stage are apart, and how far they may be: one metric and one tolerance table for all.

error = max |got - expected| / max |expected|; a stage whose scale is not one is judged like any other.

After a select stage the rows are a choice, and two correct engines may choose differently where scores tie to the last
bit; there each expected row is looked for among the rows near its own place, and a small share may be absent.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

TOLERANCE = {"fp32": 5e-4, "fp16": 3e-2}  # of `error`, by the graph's precision
ABSENT_ROWS = {"fp32": 0.005, "fp16": 0.10}  # share of a select stage's rows that may be other choices
_NEAR = 48  # rows on each side in which a select stage's row is looked for


@dataclass(frozen=True)
class Difference:
    """error as above; absent: share of rows that are other choices (0 for grid stages); ok: both within tolerance."""

    error: float
    absent: float
    ok: bool


def compare(got: np.ndarray, expected: np.ndarray, precision: str, selected: bool = False) -> Difference:
    """Compare two arrays of one shape; `selected` marks rows [N, D] that a select stage chose."""
    if got.shape != expected.shape or not np.isfinite(got).all():
        return Difference(float("inf"), 1.0, False)
    got, expected = got.astype(np.float32), expected.astype(np.float32)
    scale = float(np.abs(expected).max()) or 1.0
    if not selected:
        error = float(np.abs(got - expected).max()) / scale
        return Difference(error, 0.0, error <= TOLERANCE[precision])
    rows = np.array([_nearest_row(got, row, at) for at, row in enumerate(expected)]) / scale
    present = rows <= TOLERANCE[precision]
    absent = 1.0 - float(present.mean())
    error = float(rows[present].max(initial=0.0))
    return Difference(error, absent, absent <= ABSENT_ROWS[precision])


def _nearest_row(rows: np.ndarray, row: np.ndarray, at: int) -> float:
    near = rows[max(0, at - _NEAR) : at + _NEAR + 1]
    return float(np.abs(near - row).max(axis=1).min())
