"""Segment means over time against a NumPy loop over segments."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from export.compress import make, segmean


def segments(frames: int, levels: int) -> list[tuple[int, int]]:
    found = [(min(start + 1, frames - 1), 0, start) for start in range(0, frames, 2)]
    for level in range(1, levels):
        span = 2 ** (level + 1)
        found += [(start + span - 1, level, start) for start in range(0, frames, 2 * span) if start + span <= frames]
    return [(start, last) for last, _, start in sorted(found)]


def reference(x: np.ndarray, levels: int) -> np.ndarray:
    x = x.astype(np.float64)
    norm = np.sqrt((x**2).mean(-1, keepdims=True))
    return np.stack([(x[a : b + 1] * norm[a : b + 1]).sum(0) / norm[a : b + 1].sum(0) for a, b in segments(len(x), levels)])


@pytest.mark.parametrize(
    ("frames", "levels"), [(2, 1), (3, 1), (4, 2), (5, 2), (7, 2), (8, 3), (9, 3), (13, 3), (16, 4), (31, 3), (32, 2), (32, 5)]
)
def test_any_clip_equals_the_reference(frames, levels):
    x = np.random.default_rng(frames).standard_normal((frames, 3, 4, 5)).astype(np.float32)
    module = make(f"segmean:levels={levels}", frames, 3, 4)
    assert module.stages[0][1].spans == segments(frames, levels)
    expected = reference(x, levels).reshape(-1, 5)
    np.testing.assert_allclose(module(torch.from_numpy(x)).numpy(), expected, rtol=1e-5, atol=1e-5)


def test_coarse_grids_follow_the_fine_ones_that_they_cover():
    spans = make("segmean:levels=3", 16, 1, 1).stages[0][1].spans
    assert spans == [(0, 1), (2, 3), (0, 3), (4, 5), (6, 7), (0, 7), (8, 9), (10, 11), (8, 11), (12, 13), (14, 15)]


def test_zero_tokens_have_a_zero_mean():
    assert make("segmean:levels=1", 4, 2, 2)(torch.zeros(4, 2, 2, 3)).eq(0).all()


@pytest.mark.parametrize("frames", [9, 10, 11, 17, 18, 21])
def test_an_odd_number_of_pairs_leaves_its_last_one_out_of_the_next_level(frames):
    x = np.random.default_rng(frames).standard_normal((frames, 1, 2, 3)).astype(np.float32)
    result = make("segmean:levels=2", frames, 1, 2)(torch.from_numpy(x))
    np.testing.assert_allclose(result.numpy(), reference(x, 2).reshape(-1, 3), rtol=1e-5, atol=1e-5)


def test_the_mean_of_tokens_next_to_zero_is_between_them():
    """Its weights are norms, which may be as small as what keeps 0 / 0 from happening."""
    x = torch.tensor([1.5e-12, 0.5e-12]).reshape(2, 1, 1, 1)
    assert 0.5e-12 < make("segmean:levels=1", 2, 1, 1)(x).item() < 1.5e-12


def test_every_level_is_summed_once_from_the_one_before(monkeypatch):
    lengths, pair_sums = [], segmean._pair_sums
    monkeypatch.setattr(segmean, "_pair_sums", lambda x, complete: lengths.append(len(x)) or pair_sums(x, complete))
    make("segmean:levels=3", 16, 1, 1)(torch.ones(16, 1, 1, 2))
    assert lengths == [16, 16, 8, 8, 4, 4]  # of the weighted tokens and of the weights


@pytest.mark.parametrize(("complete", "sums"), [(False, [3, 7, 5]), (True, [3, 7])])
def test_an_odd_last_row_stays_alone_or_is_left_out(complete, sums):
    assert segmean._pair_sums(torch.arange(1.0, 6)[:, None], complete)[:, 0].tolist() == sums
    assert segmean._pair_sums(torch.arange(1.0, 5)[:, None], complete)[:, 0].tolist() == [3, 7]
