from __future__ import annotations

import numpy as np
import pytest

from runtime.tools.compare import compare, relative_error, tolerance


def test_error_is_the_largest_difference_over_the_largest_value():
    expected = np.array([[1.0, -200.0], [3.0, 4.0]], np.float32)
    got = expected + np.array([[0.0, 0.0], [0.02, 0.0]], np.float32)
    difference = compare(got, expected, "fp32")
    assert difference.error == pytest.approx(0.02 / 200, rel=1e-3)
    assert difference.max_abs == pytest.approx(0.02, rel=1e-3)
    assert difference.ok


@pytest.mark.parametrize("factor, ok", [(0.9, True), (1.1, False)])
@pytest.mark.parametrize(("precision", "limit"), [("fp32", 1e-4), ("fp16", 0.03), ("int8", 0.1), ("int4", 0.3)])
def test_the_tolerance_is_a_limit(precision, limit, factor, ok):
    expected = np.ones(8, np.float32)
    difference = compare(expected + factor * limit, expected, precision)
    assert difference.ok is ok and difference.allowed == limit


@pytest.mark.parametrize(
    ("precision", "rounding", "limit"),
    [("fp32", 2e-5, 1e-4), ("fp32", 1e-4, 4e-4), ("fp32", 0.1, 0.01), ("fp16", 1e-4, 0.03), ("int8", 0.1, 0.1)],
)
def test_four_times_the_references_own_rounding_is_allowed_up_to_a_hundredth(precision, rounding, limit):
    expected = np.ones(8, np.float32)
    for factor, ok in ((0.9, True), (1.1, False)):
        assert compare(expected + factor * limit, expected, precision, rounding=rounding).ok is ok


@pytest.mark.parametrize(
    ("precision", "absent", "ok"), [("fp32", 1, True), ("fp32", 3, False), ("fp16", 39, True), ("fp16", 41, False)]
)
def test_the_share_of_other_rows_is_a_limit(precision, absent, ok):
    expected = np.random.default_rng(0).normal(size=(400, 6)).astype(np.float32)
    got = expected.copy()
    got[:absent] += 10
    assert compare(got, expected, precision, selected=True).ok is ok


@pytest.mark.parametrize("scale", [0.01, 200.0])
def test_rows_that_were_chosen_are_judged_by_the_largest_value_too(scale):
    unit = np.random.default_rng(0).uniform(-1, 1, (60, 6)).astype(np.float32)
    unit[7, 3] = 1
    near = compare((unit + np.float32(0.02)) * scale, unit * scale, "fp16", selected=True)
    assert (near.error, near.max_abs) == pytest.approx((0.02, 0.02 * scale), rel=1e-3)
    assert near.ok and near.absent == 0
    far = compare((unit + np.float32(0.04)) * scale, unit * scale, "fp16", selected=True)  # 0.03 is allowed
    assert (far.ok, far.absent, far.error) == (False, 1, 0)


def test_a_choice_with_a_row_that_is_not_finite_differs():
    expected = np.random.default_rng(0).normal(size=(400, 6)).astype(np.float32)
    for value in (np.nan, np.inf):
        got = expected.copy()
        got[7] = value
        assert not compare(got, expected, "fp16", selected=True).ok


@pytest.mark.parametrize(("places", "ok"), [(40, True), (60, False)])
def test_a_row_is_looked_for_within_48_places(places, ok):
    expected = np.random.default_rng(0).normal(size=(400, 6)).astype(np.float32)
    got = np.concatenate([np.full((places, 6), 9, np.float32), expected[:-places]])
    difference = compare(got, expected, "fp16", selected=True)
    assert difference.absent == pytest.approx(places / 400 if ok else 1.0)


def test_another_shape_or_a_value_that_is_not_finite_differs():
    expected = np.ones((2, 3), np.float32)
    assert not compare(np.ones((3, 2), np.float32), expected, "fp32").ok
    assert not compare(np.full((2, 3), np.nan, np.float32), expected, "fp16").ok
    assert not compare(np.ones((2, 3), np.float32), np.ones(3, np.float32), "fp32", stride=3).ok


@pytest.mark.parametrize("every", [1, 2, 3, 5, 7])
def test_a_thinned_reference_sees_exactly_the_values_that_it_kept(every):
    rng = np.random.default_rng(every)
    array = rng.normal(size=(5, 4)).astype(np.float32)
    kept = array.reshape(-1)[::every] if every > 1 else array
    for position in range(array.size):
        got = array.copy()
        got.reshape(-1)[position] += 1
        assert compare(got, kept, "fp32", stride=every).ok is (position % every != 0)


@pytest.mark.parametrize("every", [1, 3, 4])
def test_rows_that_were_chosen_are_found_one_place_further(every):
    rng = np.random.default_rng(0)
    expected = rng.normal(size=(400, 6)).astype(np.float32)
    kept = expected.reshape(-1)[::every] if every > 1 else expected
    got = np.concatenate([expected[:100], expected[101:], rng.normal(size=(1, 6)).astype(np.float32)])  # row 100 was not chosen
    difference = compare(got, kept, "fp32", selected=True, stride=every)
    assert difference.ok
    assert difference.absent == pytest.approx(1 / 400)
    assert not compare(got, kept, "fp32", stride=every).ok
    got[::20] += 1
    assert not compare(got, kept, "fp32", selected=True, stride=every).ok


@pytest.mark.parametrize("precision", ["int8", "int4"])
def test_quantised_errors_are_sums_of_squares(precision):
    expected = np.float32([3, 0, 4, 0])
    got = expected + np.float32([0, 0.3, 0, 0.4])  # 0.5 of 5
    difference = compare(got, expected, precision)
    assert (difference.error, difference.max_abs) == pytest.approx((0.1, 0.4), rel=1e-5)
    assert relative_error(got, expected) == pytest.approx(0.1, rel=1e-5)
    assert relative_error(np.float32([3, 4]), np.zeros(2, np.float32)) == 5  # nothing to compare with


def test_an_error_at_the_tolerance_is_allowed_and_nothing_is_compared_with_zeros():
    expected = np.float32([1, 1])
    assert compare(expected + np.float32([0, 0.25]), expected, "int4", rounding=0).ok
    assert tolerance("fp16") == 0.03 and tolerance("fp32", 1e-3) == pytest.approx(4e-3) and tolerance("fp32", 0.0025) == 0.01
    zeros = compare(np.float32([0.5, 0]), np.zeros(2, np.float32), "fp32")
    assert (zeros.error, zeros.max_abs, zeros.absent, zeros.ok) == (0.5, 0.5, 0.0, False)
    nothing = compare(np.zeros((0, 2), np.float32), np.zeros((0, 2), np.float32), "fp32")
    assert (nothing.error, nothing.ok) == (0.0, True)


def test_what_can_t_be_compared_is_infinitely_far():
    difference = compare(np.ones(3, np.float32), np.ones(2, np.float32), "fp16")
    infinite = float("inf")
    assert (difference.error, difference.absent, difference.ok, difference.allowed, difference.max_abs) == (
        infinite,
        1,
        False,
        0.03,
        infinite,
    )


@pytest.mark.parametrize(("places", "found"), [(48, True), (49, False)])
def test_a_row_is_looked_for_48_places_before_and_after(places, found):
    expected = np.arange(200, dtype=np.float32)[:, None] + 1
    for got in (np.roll(expected, places, 0), np.roll(expected, -places, 0)):
        assert compare(got, expected, "fp32", selected=True).absent == pytest.approx((places / 200) if found else 1)
