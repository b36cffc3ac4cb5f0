"""Thresholds for int8: against the squared error of the values themselves, not of their histogram."""

from __future__ import annotations

import numpy as np
import pytest

from export.quantize.ranges import thresholds


def squared_error(values: np.ndarray, threshold: float) -> float:
    step = threshold / 127
    return float(((np.clip(np.rint(values / step), -128, 127) * step - values) ** 2).mean())


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("spread", ["normal", "laplace", "uniform", "outliers"])
def test_no_threshold_rounds_much_better_than_the_chosen_one(spread, seed):
    rng = np.random.default_rng(seed)
    values = {
        "normal": lambda: rng.normal(size=40_000),
        "laplace": lambda: rng.laplace(size=40_000),
        "uniform": lambda: rng.uniform(-3, 3, 40_000),
        "outliers": lambda: np.concatenate([rng.normal(size=40_000), rng.normal(size=8) * 20]),
    }[spread]().astype(np.float32)
    chosen = thresholds({"x": part} for part in np.array_split(values, 4))["x"]
    best = min(squared_error(values, float(limit)) for limit in np.linspace(0.02, 1, 400) * np.abs(values).max())
    assert squared_error(values, chosen) < 1.06 * best


def test_a_rare_outlier_is_cut_and_a_range_that_is_used_is_kept():
    rng = np.random.default_rng(0)
    body = rng.normal(size=1_000_000).astype(np.float32)
    (cut,) = thresholds([{"x": np.append(body, np.float32(60))}]).values()
    assert 3 < cut < 30
    (kept,) = thresholds([{"x": rng.uniform(-2, 2, 100_000).astype(np.float32)}]).values()
    assert kept == pytest.approx(2, rel=0.02)


def test_a_tensor_of_zeros_has_some_threshold():
    assert thresholds([{"x": np.zeros((2, 3), np.float32)}])["x"] > 0
