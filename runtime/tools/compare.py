"""How far two outputs of one stage are apart, and how far they may be: one metric and one tolerance table for all rows of parity.

error = max |got - expected| / max |expected|, so the scale of a stage does not matter. For quantized graphs, where single values may
be off by a step of a coarse scale, root sums of squares replace both maxima.

A checkpoint may itself be sensitive to rounding: the reference's float32 error against float64 was measured at export (`rounding`).
Another correct engine is off by about as much, so a few times that is allowed, whatever the precision.

After a select stage the rows are a choice, and two correct engines may choose differently where scores tie to the last bit: each
expected row is searched among the rows near its place, and a small share may be absent.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

TOLERANCE = {"fp32": 1e-4, "fp16": 3e-2, "int8": 0.1, "int4": 0.3}  # of `error`, by the graph's precision
ABSENT_ROWS = {"fp32": 0.005, "fp16": 0.10, "int8": 0.3}  # share of a select stage's rows that may be other choices
_ROUNDINGS = 4  # an engine may be off by so many times the reference's rounding error
_MOST_FOR_ROUNDING = 0.01  # but no more than this: a graph that is wrong is further off
_QUANTIZED = ("int8", "int4")
_NEAR = 48  # rows on each side in which a select stage's row is looked for
NOT_FINITE = "values that are not finite"


@dataclass(frozen=True)
class Difference:
    """error as above; absent: share of rows that are other choices (0 for grid stages); ok: both within tolerance.

    allowed: the tolerance of `error`. max_abs: the largest absolute difference that `error` stands for, in the stage's unit.
    """

    error: float
    absent: float
    ok: bool
    allowed: float
    max_abs: float = 0.0


@dataclass(frozen=True)
class Row:
    """One stage on one backend; true where it is within tolerance.

    max_abs is in the stage's unit, `error` relative to its largest value; both are inf for a wrong shape or values that
    are not finite. For the greedy ids `error` is the share of ids that differ by more than a tie.
    """

    stage: str
    backend: str
    shape: tuple[int, ...]
    max_abs: float
    error: float
    tolerance: float
    ok: bool
    note: str = ""

    def __bool__(self) -> bool:
        return self.ok

    def as_dict(self) -> dict[str, Any]:
        values = asdict(self) | {"shape": list(self.shape)}
        return {key: None if isinstance(value, float) and not math.isfinite(value) else value for key, value in values.items()}


def row_of(stage: str, backend: str, got: np.ndarray, expected: np.ndarray, precision: str, **how: Any) -> Row:
    """The row of a stage; `how` it is compared: selected, stride and rounding of `compare`."""
    difference = compare(got, expected, precision, **how)
    note = ""
    if not np.isfinite(got).all():
        note = NOT_FINITE
    elif math.isinf(difference.error):
        note = "not the shape of torch's output"
    elif how.get("selected"):
        note = f"{difference.absent:.1%} other rows, {ABSENT_ROWS[precision]:.1%} allowed"
    return Row(stage, backend, got.shape, difference.max_abs, difference.error, difference.allowed, difference.ok, note)


def not_finite(stage: str, backend: str, shape: tuple[int, ...], precision: str, rounding: float = 0.0) -> Row:
    """The row of a stage whose engine refused what it computed."""
    return Row(stage, backend, shape, math.inf, math.inf, tolerance(precision, rounding), False, NOT_FINITE)


def tolerance(precision: str, rounding: float = 0.0) -> float:
    """The largest `error` that is allowed; rounding: the reference's float32 error against float64, as measured at export."""
    return max(TOLERANCE[precision], min(_ROUNDINGS * rounding, _MOST_FOR_ROUNDING))


def compare(
    got: np.ndarray, expected: np.ndarray, precision: str, selected: bool = False, stride: int = 1, rounding: float = 0.0
) -> Difference:
    """Compare two arrays of one shape; `selected` marks rows [N, D] that a select stage chose.

    stride: `expected` holds only every stride-th value of the flattened array, as `reference/stages.json` keeps large stages.
    rounding: as in `tolerance`.
    """
    allowed = tolerance(precision, rounding)
    thinned = got.reshape(-1)[::stride]
    fits = expected.shape == (got.shape if stride == 1 else thinned.shape)
    if not fits or not np.isfinite(got).all():
        return Difference(float("inf"), 1.0, False, allowed, float("inf"))
    got, values = got.astype(np.float32), expected.reshape(-1).astype(np.float32)
    scale = float(np.abs(values).max(initial=0.0)) or 1.0
    if not selected:
        largest = float(np.abs(thinned.astype(np.float32) - values).max(initial=0.0))
        error = relative_error(thinned, values) if precision in _QUANTIZED else largest / scale
        return Difference(error, 0.0, error <= allowed, allowed, largest)
    rows = np.array([_nearest_row(got, values, at, stride) for at in range(len(got))]) / scale
    present = rows <= allowed
    absent = 1.0 - float(present.mean())
    error = float(rows[present].max(initial=0.0))
    return Difference(error, absent, absent <= ABSENT_ROWS[precision], allowed, error * scale)


def relative_error(got: np.ndarray, expected: np.ndarray) -> float:
    """|got - expected| / |expected|, both root sums of squares."""
    scale = float(np.linalg.norm(expected.astype(np.float64)))
    return float(np.linalg.norm(got.astype(np.float64) - expected)) / (scale or 1.0)


def _nearest_row(got: np.ndarray, values: np.ndarray, at: int, stride: int) -> float:
    """Distance of expected row `at` to the nearest of the rows [N, D] around its place, over the columns that were kept of it."""
    width = got.shape[1]
    row = values[-(-at * width // stride) : -(-(at + 1) * width // stride)]
    near = got[max(0, at - _NEAR) : at + _NEAR + 1, -at * width % stride :: stride]
    return float(np.abs(near - row).max(axis=1, initial=0.0).min())
