"""The article's select stage against a NumPy version with loops over frames, cells and tokens."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from export.compress import make
from export.compress.topk import _cells


def reference(x: np.ndarray, keep: float, cell: int, sigma: float) -> tuple[np.ndarray, list[int]]:
    frames, height, width, _ = x.shape
    x = x.astype(np.float64)
    norm = np.sqrt((x**2).mean(-1))
    score = np.stack([(n - n.mean()) / (n.std() + 1e-6) for n in norm])
    cell_of = {(i, j): (i // cell, j // cell) for i in range(height) for j in range(width)}
    chosen = set()
    for t in range(frames):
        for name in sorted(set(cell_of.values())):
            inside = [place for place, c in cell_of.items() if c == name]
            chosen.add((t, *max(inside, key=lambda place: (score[t][place], -place[0], -place[1]))))
    count = frames * int(keep * height * width + 1e-9)
    everything = sorted(np.ndindex(frames, height, width), key=lambda place: (-score[place], place))
    for place in everything:
        if len(chosen) == count:
            break
        chosen.add(place)
    tokens = []
    for t, i, j in sorted(chosen):
        dropped = [
            (t, *place)
            for place, c in cell_of.items()
            if c == cell_of[i, j] and (t, *place) not in chosen and score[(t, *place)] >= -sigma
        ]
        group = [(t, i, j), *dropped]
        weight = np.array([norm[place] for place in group])
        tokens.append(weight @ np.stack([x[place] for place in group]) / weight.sum())
    return np.stack(tokens), [int(np.ravel_multi_index(place, (frames, height, width))) for place in sorted(chosen)]


@settings(deadline=None, max_examples=40, derandomize=True)
@given(
    st.integers(1, 6),
    st.integers(2, 8),
    st.integers(2, 8),
    st.sampled_from([0.2, 0.5, 0.75, 1.0]),
    st.integers(1, 8),
    st.sampled_from([0.0, 0.5, 2.0]),
    st.integers(0, 99),
)
def test_any_grid_equals_the_reference(frames, height, width, keep, cell, sigma, seed):
    cell = min(cell, height, width)
    assume(int(keep * height * width) >= -(-height // cell) * -(-width // cell))
    rng = np.random.default_rng(seed)
    x = (rng.standard_normal((frames, height, width, 4)) * rng.uniform(0.2, 3, (frames, height, width, 1))).astype(np.float32)
    expected, _ = reference(x, keep, cell, sigma)
    result = make(f"topk:keep={keep},cell={cell},sigma={sigma}", frames, height, width)(torch.from_numpy(x))
    np.testing.assert_allclose(result.numpy(), expected, rtol=1e-4, atol=1e-5)


def test_keeping_everything_changes_nothing():
    x = torch.randn(2, 4, 5, 3)
    torch.testing.assert_close(make("topk:keep=1", 2, 4, 5)(x), x.reshape(-1, 3))


def test_every_cell_keeps_a_token_however_dark_it_is():
    x = torch.rand(1, 6, 6, 2) * 1e-3
    x[0, :3, :3] += 10  # all of the highest norms lie in one cell
    tokens = make("topk:keep=0.25,cell=3", 1, 6, 6)(x)
    assert len(tokens) == 9
    assert (tokens.norm(dim=-1) < 1).sum() == 3  # the three dark cells


def test_equal_norms_keep_the_lower_index():
    x = torch.ones(2, 4, 4, 1)
    x[..., 0] *= torch.where(torch.arange(16).reshape(4, 4) % 2 == 0, 1.0, -1.0)
    tokens = make("topk:keep=0.25,cell=4,sigma=inf", 2, 4, 4)
    index = tokens.topk.index(tokens.topk.best(torch.zeros(1, 2, 4, 4), tokens.num_tokens)[0])
    assert index.tolist() == list(range(8))


def test_zero_tokens_stay_finite():
    assert make("topk", 2, 6, 6)(torch.zeros(2, 6, 6, 3)).isfinite().all()


def test_a_dropped_token_just_at_sigma_counts_and_the_first_of_equals_is_kept():
    x = torch.tensor([[1.0, 1], [1, -1], [-1, 1], [1, 1]]).reshape(1, 2, 2, 2)  # equal norms: every score is 0
    assert make("topk:keep=0.25,cell=2,sigma=0", 1, 2, 2)(x).tolist() == [[0.5, 0.5]]


@pytest.mark.parametrize(("sigma", "token"), [(0.5, 20 / 6), (0.9, 22 / 8)])
def test_a_token_becomes_the_norm_weighted_mean_of_itself_and_what_is_dropped_above_sigma(sigma, token):
    x = torch.tensor([2.0, 4, 1, 1]).reshape(1, 2, 2, 1)  # scores 0, 1.63, -0.82, -0.82; (4*4 + 2*2) / 6, (4*4 + 2*2 + 1 + 1) / 8
    assert make(f"topk:keep=0.25,cell=2,sigma={sigma}", 1, 2, 2)(x).item() == pytest.approx(token)


def test_the_larger_norm_is_kept_however_little_they_differ():
    x = torch.tensor([1e-7, 3e-7, 1e-7, 1e-7]).reshape(1, 2, 2, 1)
    assert make("topk:keep=0.25,cell=2,sigma=0", 1, 2, 2)(x).item() == pytest.approx(3e-7)


def test_cells_at_the_far_edges_are_smaller():
    numbers, count = _cells(3, 5, 2)
    assert numbers.tolist() == [0, 0, 1, 1, 2, 0, 0, 1, 1, 2, 3, 3, 4, 4, 5] and count == 6
