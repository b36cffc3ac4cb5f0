"""Thresholds for int8: against the squared error of the values themselves, not of their histogram."""

from __future__ import annotations

import numpy as np
import pytest

from export.quantize import ranges
from export.quantize.ranges import activation_rounded, thresholds


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


@pytest.mark.parametrize("largest", [2.0, 0.5, 1024.0])
def test_a_range_that_all_values_fill_is_kept_to_its_end(largest):
    values = np.array([largest, -largest] * 50, np.float32)
    assert thresholds([{"x": values}])["x"] == pytest.approx(largest, rel=1e-6)


def test_a_tensor_of_zeros_has_some_threshold():
    assert thresholds([{"x": np.zeros((2, 3), np.float32)}])["x"] > 0


def test_values_are_rounded_to_steps_of_which_int8_has_one_more_below():
    values = np.array([0.4, 0.6, -127.6, -200, 127.4, 300, 0.5, 1.5], np.float32)
    rounded = activation_rounded(values, 127.0)
    assert rounded.tolist() == [0, 1, -128, -128, 127, 127, 0, 2]  # halves to the even one
    np.testing.assert_allclose(activation_rounded(values / 10, 12.7), rounded / 10, rtol=1e-6)
    assert rounded.dtype == np.float32


def test_each_tensor_has_a_threshold_of_its_own_over_all_samples():
    rng = np.random.default_rng(0)
    small, large = (rng.uniform(-1, 1, (2, 5000)).astype(np.float32) * scale for scale in (1, 100))
    found = thresholds([{"small": small, "large": large[:1]}, {"large": large[1:]}])
    assert found["small"] == pytest.approx(1, rel=0.02) and found["large"] == pytest.approx(100, rel=0.02)
    assert found == thresholds([{"large": -large}, {"small": small[::-1]}])


@pytest.mark.parametrize("kind", [np.float32, np.float16])
def test_a_magnitude_is_counted_in_a_bin_that_is_a_hundredth_wide(kind):
    for value in np.array([0.0011, 0.3, 1.0, 1.1, 1.3, 1.7, -7.0, 900.0], kind):
        found = ranges._Magnitudes(np.zeros(len(ranges._CENTERS), np.int64))
        found.add(np.array([[value, 0], [-value, 0]], kind))
        (at,) = np.flatnonzero(found.counts)
        assert found.counts[at] == 2, "zeros are not counted"
        assert ranges._CENTERS[at] == pytest.approx(abs(float(value)), rel=0.0056)
        assert found.largest == abs(value) and type(found.largest) is float


def test_magnitudes_beyond_all_bins_are_counted_in_the_outermost():
    found = ranges._Magnitudes(np.zeros(len(ranges._CENTERS), np.int64))
    found.add(np.array([1e-30, 1e-20, 1e20, 1e30, 1e31], np.float32))
    assert (found.counts[0], found.counts[-1], found.counts.sum()) == (2, 3, 5)
    assert ranges._CENTERS[0] < 1e-11 and ranges._CENTERS[-1] > 1e11
    found.add(np.zeros(3, np.float32))
    assert found.largest == pytest.approx(1e31, rel=1e-6)


def test_a_threshold_is_one_of_shares_of_the_largest_magnitude_from_a_fiftieth_to_all_of_it():
    shares = ranges._GRID
    assert (shares[0], shares[-1]) == (pytest.approx(0.02), 1) and len(shares) == 126
    steps = np.diff(shares)
    np.testing.assert_allclose(steps[:45], 0.004)  # finer where a step is more of the whole
    np.testing.assert_allclose(steps[45:], 0.01)


@pytest.mark.parametrize("seed", range(40))
def test_a_threshold_has_the_least_error_over_the_bins(seed):
    """By a plain loop: a magnitude is at its bin's center, and anywhere in a step where the bin is wider than half of one."""
    rng = np.random.default_rng(seed)
    bins = 64 * 40 - rng.choice(420, 7, replace=False)  # from 1 down over six and a half octaves
    found = ranges._Magnitudes(np.zeros(len(ranges._CENTERS), np.int64), 1.0)
    found.counts[bins] = rng.integers(1, 30, 7) * 10 ** rng.integers(0, 3, 7)
    best = None
    for limit in [*(0.02 + 0.004 * n for n in range(46)), *(0.2 + 0.01 * n for n in range(1, 81))]:
        step, error = limit / 127, 0.0
        for at in bins:
            lower = 2.0 ** ((at - 64 * 40) / 64)
            center, width = lower * 2 ** (1 / 128), lower * 2 ** (1 / 128) * (2 ** (1 / 64) - 1)
            off = min(round(center / step), 127) * step - center
            error += found.counts[at] * (step**2 / 12 if width > step / 2 and center <= limit else off**2)
        if best is None or error < best[0] * (1 - 1e-9):
            best = error, limit
    assert found.threshold() == pytest.approx(best[1], rel=1e-6)
