"""Exact selection without sorting, against NumPy's stable sort."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from export.compress.selection import RasterIndex, TopMask


def best(scores: np.ndarray, count: int) -> np.ndarray:
    """Ascending indices of the `count` highest, the lower index first among equals."""
    return np.sort(np.argsort(-scores.ravel(), kind="stable")[:count])


def scores_of(kind: str, shape: tuple[int, ...], seed: int) -> np.ndarray:
    normal = np.random.default_rng(seed).standard_normal(shape).astype(np.float32)
    return {
        "spread": normal,
        "ties": np.round(normal * 2) / 2,
        "constant": np.zeros_like(normal),
        "tiny": normal * np.float32(1e-5),
        "offset": normal * np.float32(1e-3) + 100,
        "outlier": np.where(normal == normal.max(), np.float32(1e4), normal),
    }[kind]


kinds = st.sampled_from(["spread", "ties", "constant", "tiny", "offset", "outlier"])
shapes = st.tuples(st.integers(1, 9), st.integers(1, 9), st.integers(1, 9))


@settings(deadline=None, max_examples=150)
@given(kinds, shapes, st.floats(0, 1), st.integers(0, 999))
def test_the_clips_best_in_raster_order(kind, shape, fraction, seed):
    scores = scores_of(kind, shape, seed)
    count = max(1, round(fraction * scores.size))
    mask = TopMask(*shape)(torch.from_numpy(scores)[None], count)[0]
    assert RasterIndex(*shape, count)(mask).tolist() == best(scores, count).tolist()


@settings(deadline=None, max_examples=100)
@given(kinds, shapes, st.integers(0, 999))
def test_each_group_has_its_own_budget_none_and_all_included(kind, shape, seed):
    scores = scores_of(kind, shape, seed)
    groups, size = shape[0], shape[1] * shape[2]
    budget = np.random.default_rng(seed).integers(0, size + 1, groups)
    budget[0] = [0, size][seed % 2]
    mask = TopMask(*shape[1:])(torch.from_numpy(scores), torch.from_numpy(budget).float()[:, None])
    for group in range(groups):
        assert np.flatnonzero(mask[group].numpy()).tolist() == best(scores[group], budget[group]).tolist()


@pytest.mark.parametrize("count", [2688, 3841, 11664])
def test_counts_beyond_what_topk_takes(count):
    scores = np.random.default_rng(count).standard_normal((32, 27, 27)).astype(np.float32)
    mask = TopMask(32, 27, 27)(torch.from_numpy(scores)[None], count)[0]
    assert RasterIndex(32, 27, 27, count)(mask).tolist() == best(scores, count).tolist()


@pytest.mark.parametrize(("gap", "chosen"), [(2.0**-33, 2), (2.0**-37, 1)])
def test_scores_count_as_equal_below_the_stated_resolution_and_not_above(gap, chosen):
    """2^-35 of (range + 1), so 2^-34 for scores from 0 to 1; among equal ones the lower index wins."""
    scores = torch.tensor([[1.0, 0.0, gap]])
    assert np.flatnonzero(TopMask(1, 3)(scores.reshape(1, 1, 3), 2).numpy()).tolist() == [0, chosen]


def test_a_mask_of_too_few_never_looks_outside_the_clip():
    assert RasterIndex(2, 3, 4, 5)(torch.zeros(2, 3, 4)).max() < 24


def test_counts_before_each_token_are_exact_and_nothing_larger_than_the_clip_is_summed_for_them(monkeypatch):
    summed, plain = [], torch.Tensor.sum
    monkeypatch.setattr(torch.Tensor, "sum", lambda x, *axes, **named: summed.append(x.numel()) or plain(x, *axes, **named))
    ones = np.random.default_rng(0).integers(0, 2, (2, 4, 5, 6)).astype(np.float32)
    prefix = TopMask(4, 5, 6).prefix
    counts, (by_frame, by_row, by_column) = prefix(torch.from_numpy(ones))
    np.testing.assert_array_equal(counts, ones.reshape(2, -1).cumsum(-1).reshape(ones.shape))
    np.testing.assert_array_equal(by_frame, ones.sum((2, 3)).cumsum(1))
    np.testing.assert_array_equal(by_row, ones.sum(3).cumsum(2))
    np.testing.assert_array_equal(by_column, ones.cumsum(3))
    assert max(summed) == ones.size
