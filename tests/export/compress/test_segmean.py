"""Segment means over time against a NumPy loop over segments."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from export.compress import make


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
