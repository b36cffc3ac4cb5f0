"""A row of the parity table: one stage on one backend, and how far it is from torch."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from runtime.tools.compare import ABSENT_ROWS, Difference

NOT_FINITE = "values that are not finite"


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


def row_of(stage: str, backend: str, got: np.ndarray, difference: Difference, selected: str | None = None) -> Row:
    """selected: the precision, where the rows of `got` are a choice."""
    note = ""
    if not np.isfinite(got).all():
        note = NOT_FINITE
    elif math.isinf(difference.error):
        note = "not the shape of torch's output"
    elif selected:
        note = f"{difference.absent:.1%} other rows, {ABSENT_ROWS[selected]:.1%} allowed"
    return Row(stage, backend, got.shape, difference.max_abs, difference.error, difference.allowed, difference.ok, note)
