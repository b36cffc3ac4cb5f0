"""Efficient Video Sampling against NumPy's stable sort of the dissimilarities."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from export.compress import make


def reference(x: np.ndarray, keep: float) -> np.ndarray:
    frames, height, width, _ = x.shape
    unit = x / np.linalg.norm(x, axis=-1, keepdims=True)
    unlike = np.full((frames, height, width), np.inf)
    unlike[1:] = 1 - (unit[1:] * unit[:-1]).sum(-1)
    count = max(height * width, int(keep * unlike.size + 1e-9))
    return np.sort(np.argsort(-unlike.ravel(), kind="stable")[:count])


@pytest.mark.parametrize("shape", [(1, 3, 4), (2, 5, 5), (7, 4, 3), (16, 6, 6)])
@pytest.mark.parametrize("keep", [0.05, 0.3, 0.5, 1])
def test_the_tokens_that_changed_most_stay_in_raster_order(shape, keep):
    x = np.random.default_rng(1).standard_normal((*shape, 8))
    result = make(f"evs:keep={keep}", *shape)(torch.from_numpy(x).float())
    np.testing.assert_array_equal(result.numpy(), x.reshape(-1, 8)[reference(x, keep)].astype(np.float32))


def test_a_still_clip_keeps_its_first_tokens():
    x = torch.randn(1, 4, 4, 8).expand(4, 4, 4, 8)
    assert torch.equal(make("evs:keep=0.5", 4, 4, 4)(x), x.reshape(-1, 8)[:32])


def test_only_what_moves_is_kept_behind_the_first_frame():
    x = torch.ones(3, 2, 2, 4)
    x[1:, 1, 0] = torch.tensor([1.0, -1, 1, -1])  # changes once
    tokens = make("evs:keep=0.42", 3, 2, 2)(x)
    assert torch.equal(tokens, torch.cat([x[0].reshape(4, 4), x[1, 1, :1]]))


def test_all_of_the_first_frame_stays_even_when_keep_asks_for_less():
    assert make("evs:keep=0.01", 10, 3, 3).num_tokens == 9
