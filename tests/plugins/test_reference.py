"""The NumPy truth where its numbers can be worked out by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from plugins.op import StGridPool
from plugins.reference import area_resize, norm_pool, st_gridpool, temporal_grid
from runtime.core.errors import SpecError


@pytest.mark.parametrize(("order", "scale"), [(math.inf, 1.0), (1.0, 2.0), (2.0, 2**0.5), (3.0, 2 ** (1 / 3))])
@pytest.mark.parametrize(("temperature", "weight"), [(0.0, 1 / 4), (1.0, 5 / 8), (2.0, 25 / 28)])
def test_a_token_weighs_e_to_its_norm(order: float, scale: float, temperature: float, weight: float):
    """Three zeros and one token of norm ln 5, the mean over D taken under the root: e^(ln 5) = 5 of 8."""
    x = np.zeros((2, 2, 4, 2))
    x[0, 0, 1, 1] = x[1, 1, 2, 0] = scale * math.log(5)
    got = norm_pool(x, StGridPool((), (), order=order, temperature=temperature))
    expected = np.zeros((2, 1, 2, 2))
    expected[0, 0, 0, 1] = expected[1, 0, 1, 0] = weight * scale * math.log(5)
    np.testing.assert_allclose(got, expected, rtol=1e-12)


def test_norms_far_apart_do_not_overflow():
    x = np.zeros((1, 2, 2, 1))
    x[0, 0, 0] = 1000
    assert norm_pool(x, StGridPool((), ())).tolist() == [[[[1000.0]]]]


def test_a_ring_of_zeros_takes_part_in_the_softmax_and_what_is_left_over_does_not():
    x = np.zeros((1, 2, 5, 1))
    x[0, 0, 0] = math.log(5)
    x[0, :, 2:] = 7.0
    got = norm_pool(x, StGridPool((), (), window=3, padding=1))
    assert got.shape == (1, 1, 2, 1)  # 4x7 with the ring: the last row and column fill no window
    np.testing.assert_allclose(got[0, 0, 0, 0], 5 / 13 * math.log(5), rtol=1e-12)
    np.testing.assert_allclose(got[0, 0, 1, 0], 7 * 6 * math.exp(7) / (6 * math.exp(7) + 3), rtol=1e-12)


def test_cells_of_a_smaller_grid_are_means_of_all_that_they_touch():
    frame = np.array([[0.0, 1, 2], [10, 11, 12], [20, 21, 22]])[..., None]
    assert area_resize(frame, 2, 3)[..., 0].tolist() == [[5, 6, 7], [15, 16, 17]]
    assert area_resize(frame, 1, 2)[..., 0].tolist() == [[10.5, 11.5]]


def test_summaries_are_tiled_row_by_row_and_cut_to_the_frame():
    frames = np.arange(1.0, 7)[:, None, None, None] * np.ones((6, 5, 3, 1), np.float32)
    got = temporal_grid(frames, StGridPool((6,), (1,)))  # three rows of two tiles, 2x2 each
    assert got[5, ..., 0].tolist() == [[1, 1, 2], [1, 1, 2], [3, 3, 4], [3, 3, 4], [5, 5, 6]]
    assert got.dtype == np.float64
    np.testing.assert_array_equal(got[:5], frames[:5])


def test_a_level_reads_what_was_there_before_it():
    x = np.arange(1.0, 5)[:, None, None, None] * np.ones((4, 1, 1, 1))
    assert temporal_grid(x, StGridPool((1, 1), (2, 1))).ravel().tolist() == [1, 2, 3, 4]
    x = x * np.ones((4, 2, 1, 1))
    got = temporal_grid(x, StGridPool((2, 2), (2, 1)))  # 2 over 4 replaces 4; then 1 over 2, and 3 over the mean of that
    assert got[..., 0, 0].tolist() == [[1, 1], [1, 2], [3, 3], [3, 3]]


def test_what_does_not_fit_is_refused():
    with pytest.raises(SpecError, match="window 9"):
        st_gridpool(np.zeros((1, 8, 10, 8)), StGridPool((), (), window=9))
