"""The reductions of training: rates equally often, shapes as promised, and each one what it says."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch

from export.demo import mix

PLAIN = mix.Reduction(0, "none", 1, 0, (), "none", (1, 1), 0.0, "none", 1.0, False, 0)


@pytest.fixture(scope="module")
def x() -> torch.Tensor:
    return torch.randn(2, 8, 9, 9, 16, generator=torch.Generator().manual_seed(0))


def test_rates_are_equally_likely_and_every_choice_is_drawn():
    rng = np.random.default_rng(0)
    drawn = [mix.draw(rng, 16, 9, 9) for _ in range(2000)]
    rates = Counter(round(np.log2(16 * 81 / one.tokens)) for one in drawn)
    assert all(abs(rates[rate] - 400) < 80 for rate in range(5))
    assert {one.time for one in drawn} == {"none", "stride", "mean", "grid"}
    assert {one.space for one in drawn} == {"none", "resize", "window"}
    selected = Counter(one.select for one in drawn)
    assert set(selected) == {"none", "random", "high", "low", "change", "unlike"}
    assert abs(selected["high"] - selected["low"]) < 60
    signs = Counter(np.sign(one.temperature) for one in drawn if one.space == "window")
    assert min(signs.values()) > 0.75 * max(signs.values())


@pytest.mark.parametrize("frames", [4, 8, 16])
def test_every_draw_gives_the_tokens_that_it_promises(frames):
    rng = np.random.default_rng(frames)
    for _ in range(60):
        drawn = mix.draw(rng, frames, 9, 9)
        assert drawn(torch.randn(2, frames, 9, 9, 8)).shape == (2, drawn.tokens, 8)


def test_windows_at_temperature_zero_are_means_and_at_a_high_one_the_largest_or_smallest_token(x):
    windows = x[:, :, :8, :8].reshape(2, 8, 4, 2, 4, 2, 16).transpose(3, 4).flatten(4, 5)
    window = replace(PLAIN, space="window", size=(2, 2))
    torch.testing.assert_close(window(x), windows.mean(4).flatten(1, 3))
    norms = windows.norm(dim=-1)
    for temperature, pick in ((1e7, norms.argmax(-1)), (-1e7, norms.argmin(-1))):
        expected = windows.take_along_dim(pick[..., None, None], 4)[..., 0, :]
        torch.testing.assert_close(replace(window, temperature=temperature)(x), expected.flatten(1, 3))


def test_time_is_thinned_averaged_or_summarised(x):
    torch.testing.assert_close(replace(PLAIN, time="stride", step=2, phase=1)(x), x[:, 1::2].flatten(1, 3))
    mean = replace(PLAIN, time="mean", step=4)(x)
    torch.testing.assert_close(mean, torch.stack([x[:, :4].mean(1), x[:, 4:].mean(1)], 1).flatten(1, 3))
    grid = replace(PLAIN, time="grid", grids=((0, 2, 4, 6),))(x).reshape(x.shape)
    np.testing.assert_array_equal(grid[:, [0, 1, 2, 3, 4, 5, 7]], x[:, [0, 1, 2, 3, 4, 5, 7]])
    torch.testing.assert_close(grid[:, 6, 0, 0], x[:, 0, 0:2, 0:2].mean((1, 2)))  # area means overlap on an odd grid
    torch.testing.assert_close(grid[:, 6, 0, 5], x[:, 2, 0:2, 0:2].mean((1, 2)))
    torch.testing.assert_close(grid[:, 6, 5, 0], x[:, 4, 0:2, 0:2].mean((1, 2)))


@pytest.mark.parametrize("select", ["high", "low", "change", "unlike"])
@pytest.mark.parametrize("per_frame", [False, True])
def test_selection_keeps_the_tokens_of_the_best_scores_in_order(x, select, per_frame):
    tokens = 8 * 20
    kept = replace(PLAIN, select=select, per_frame=per_frame, tokens=tokens)(x)
    unit = x / x.norm(dim=-1, keepdim=True)
    before = torch.cat([torch.zeros_like(unit[:, :1]), unit[:, :-1]], 1)
    mean = unit.mean((1, 2, 3), keepdim=True)
    score = {
        "high": x.norm(dim=-1),
        "low": -x.norm(dim=-1),
        "change": -(unit * before).sum(-1),
        "unlike": -(unit * mean).sum(-1) / mean.norm(dim=-1),
    }[select]
    rows = score.flatten(2) if per_frame else score.flatten(1)[:, None]
    worst = rows.sort(-1, descending=True).values[..., tokens // rows.shape[1] - 1]
    if select == "change" and per_frame:  # the first frame has nothing before it: any of its tokens will do
        kept, x, rows, worst = kept[:, 20:], x[:, 1:], rows[:, 1:], worst[:, 1:]
    for clip in range(2):
        chosen = (rows[clip] >= worst[clip][:, None]).flatten()
        np.testing.assert_array_equal(kept[clip], x[clip].flatten(0, 2)[chosen])
