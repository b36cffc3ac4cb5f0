from __future__ import annotations

import numpy as np
import pytest

from runtime.tools.compare import TOLERANCE, compare


def test_error_is_the_largest_difference_over_the_largest_value():
    expected = np.array([[1.0, -200.0], [3.0, 4.0]], np.float32)
    got = expected + np.array([[0.0, 0.0], [0.02, 0.0]], np.float32)
    difference = compare(got, expected, "fp32")
    assert difference.error == pytest.approx(0.02 / 200, rel=1e-3)
    assert difference.max_abs == pytest.approx(0.02, rel=1e-3)
    assert difference.ok


@pytest.mark.parametrize("factor, ok", [(0.9, True), (1.1, False)])
@pytest.mark.parametrize("precision", TOLERANCE)
def test_the_tolerance_is_a_limit(precision, factor, ok):
    expected = np.ones(8, np.float32)
    assert compare(expected + factor * TOLERANCE[precision], expected, precision).ok is ok


def test_another_shape_or_a_value_that_is_not_finite_differs():
    expected = np.ones((2, 3), np.float32)
    assert not compare(np.ones((3, 2), np.float32), expected, "fp32").ok
    assert not compare(np.full((2, 3), np.nan, np.float32), expected, "fp16").ok
    assert not compare(np.ones((2, 3), np.float32), np.ones(3, np.float32), "fp32", every=3).ok


@pytest.mark.parametrize("every", [1, 2, 3, 5, 7])
def test_a_thinned_reference_sees_exactly_the_values_that_it_kept(every):
    rng = np.random.default_rng(every)
    array = rng.normal(size=(5, 4)).astype(np.float32)
    kept = array.reshape(-1)[::every] if every > 1 else array
    for position in range(array.size):
        got = array.copy()
        got.reshape(-1)[position] += 1
        assert compare(got, kept, "fp32", every=every).ok is (position % every != 0)


@pytest.mark.parametrize("every", [1, 3, 4])
def test_rows_that_were_chosen_are_found_one_place_further(every):
    rng = np.random.default_rng(0)
    expected = rng.normal(size=(400, 6)).astype(np.float32)
    kept = expected.reshape(-1)[::every] if every > 1 else expected
    got = np.concatenate([expected[:100], expected[101:], rng.normal(size=(1, 6)).astype(np.float32)])  # row 100 was not chosen
    difference = compare(got, kept, "fp32", selected=True, every=every)
    assert difference.ok
    assert difference.absent == pytest.approx(1 / 400)
    assert not compare(got, kept, "fp32", every=every).ok
    got[::20] += 1
    assert not compare(got, kept, "fp32", selected=True, every=every).ok
