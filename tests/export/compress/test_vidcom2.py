"""VidCom2 against a NumPy version that writes every unit token and distance out."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from export.compress import make


def similarity(unit: np.ndarray, centre: np.ndarray) -> np.ndarray:
    distance = ((unit - centre) ** 2).sum(-1)
    return sum(np.exp(-distance / (2 * a)) for a in (0.125, 0.25, 0.5, 1, 2))


def budgets(uniqueness: np.ndarray, count: int, size: int, temperature: float) -> list[int]:
    frames = len(uniqueness)
    share = np.exp((uniqueness - uniqueness.max()) / temperature)
    quota = count / frames * (1 + share / share.sum() - 1 / frames)
    over = np.maximum(quota - size, 0).sum()
    capped = np.minimum(quota, size)
    if over > 0:
        capped += over * (size - capped) / (size - capped).sum()
    whole = np.floor(np.round(capped, 4)).astype(int)
    remainder = np.where(whole < size, capped - whole, -1)
    order = np.argsort(-np.round(remainder, 3), kind="stable")  # the earlier frame first where remainders are equal
    whole[order[: count - whole.sum()]] += 1
    return whole.tolist()


def reference(x: np.ndarray, keep: float, temperature: float) -> np.ndarray:
    frames, height, width, d = x.shape
    unit = x.reshape(frames, -1, d) / np.linalg.norm(x.reshape(frames, -1, d), axis=-1, keepdims=True)
    to_video = similarity(unit, unit.mean((0, 1)))
    to_frame = similarity(unit, unit.mean(1, keepdims=True))
    count = frames * int(keep * height * width + 1e-9)
    result = []
    for t, budget in enumerate(budgets(-to_video.mean(-1), count, height * width, temperature)):
        result += sorted(t * height * width + i for i in np.argsort((to_video + to_frame)[t], kind="stable")[:budget])
    return np.array(result)


@settings(deadline=None, max_examples=60, derandomize=True)
@given(
    st.integers(1, 9),
    st.integers(2, 6),
    st.integers(2, 6),
    st.sampled_from([0.25, 0.5, 0.8, 0.95, 1.0]),
    st.sampled_from([0.01, 0.1, 1.0]),
    st.integers(0, 99),
)
def test_any_clip_equals_the_reference(frames, height, width, keep, temperature, seed):
    x = np.random.default_rng(seed).standard_normal((frames, height, width, 16))
    x += np.random.default_rng(seed + 1).standard_normal((frames, 1, 1, 16))
    index = reference(x, keep, temperature)
    result = make(f"vidcom2:keep={keep},temperature={temperature}", frames, height, width)(torch.from_numpy(x).float())
    np.testing.assert_array_equal(result.numpy(), x.reshape(-1, 16)[index].astype(np.float32))


@settings(deadline=None, max_examples=200)
@given(
    st.lists(st.floats(-10, 10), min_size=1, max_size=40),
    st.integers(1, 30),
    st.floats(0.01, 1),
    st.sampled_from([1e-4, 0.01, 1.0]),
)
def test_budgets_are_whole_fit_the_frame_and_sum_to_k(uniqueness, size, keep, temperature):
    keep = max(round(keep, 6), math.ceil(1e6 / size) / 1e6)
    stage = make(f"vidcom2:keep={keep},temperature={temperature}", len(uniqueness), 1, size)
    result = stage.vidcom2._budgets(torch.tensor(uniqueness))
    assert result.sum() == stage.num_tokens
    assert ((result >= 0) & (result <= size) & (result == result.round())).all()


@pytest.mark.parametrize(
    ("shares", "size", "keep", "expected"),
    [
        ((1, 3), 8, 0.5, [3, 5]),  # K = 8: 4 (1 + 1/4 - 1/2), 4 (1 + 3/4 - 1/2)
        ((1, 3), 4, 0.75, [2, 4]),  # K = 6: 2.25 and 3.75, the larger remainder is rounded up
        ((1, 1, 1), 4, 0.75, [3, 3, 3]),
        ((3, 3, 2), 5, 0.6, [3, 3, 3]),  # K = 9: 3.125, 3.125, 2.75
        ((0, 0, 1), 4, 0.75, [3, 2, 4]),  # K = 9: 2, 2, 5, of which 1 exceeds the frame: 2.5, 2.5, 4, the earlier frame first
        ((0, 1, 0, 0), 4, 0.5, [2, 4, 1, 1]),  # K = 8: 1.5, 3.5, 1.5, 1.5, the earlier frames first
        ((0, 1), 4, 0.25, [1, 1]),  # K = 2: 0.5 and 1.5, likewise
    ],
)
def test_budgets_of_the_papers_formula_worked_out_by_hand(shares, size, keep, expected):
    """budget_t = K/T (1 + s_t - 1/T); shares: s, unnormalised, whose logarithms are the uniqueness at temperature 1."""
    stage = make(f"vidcom2:keep={keep},temperature=1", len(shares), 1, size)
    uniqueness = torch.log(torch.tensor(shares, dtype=torch.float32).clamp(min=1e-30))
    assert stage.vidcom2._budgets(uniqueness).tolist() == expected


def test_a_unique_frame_gets_the_larger_budget():
    torch.manual_seed(0)
    x = torch.randn(1, 6, 6, 32) + 0.05 * torch.randn(8, 6, 6, 32)
    x[5] = torch.randn(6, 6, 32)
    module = make("vidcom2", 8, 6, 6)
    stage = module.vidcom2
    to_video, _ = stage._similarities(x.reshape(8, 36, 32))
    assert stage._budgets(-to_video.mean(-1)).argmax() == 5


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_a_constant_clip_keeps_the_first_tokens_of_every_frame(value):
    x = torch.full((4, 2, 4, 3), value)
    module = make("vidcom2:keep=0.5", 4, 2, 4)
    assert module.vidcom2._budgets(torch.zeros(4)).tolist() == [4, 4, 4, 4]
    assert torch.equal(module(x), x.reshape(-1, 3)[: module.num_tokens])


def test_similarity_is_a_sum_of_five_gaussians_of_the_distance_to_a_mean_of_unit_tokens():
    tokens = torch.tensor(
        [[[3.0, 0], [0, 5]]]
    )  # unit tokens (1, 0) and (0, 1), their mean (1/2, 1/2), both at a squared distance of 1/2
    to_video, to_frame = make("vidcom2:keep=0.5", 1, 1, 2).vidcom2._similarities(tokens)
    expected = math.exp(-2) + math.exp(-1) + math.exp(-1 / 2) + math.exp(-1 / 4) + math.exp(-1 / 8)
    for similarities in (to_video, to_frame):
        np.testing.assert_allclose(similarities.numpy(), [[expected, expected]], rtol=1e-5)


def test_the_mean_of_the_video_is_that_of_all_frames():
    tokens = torch.tensor([[[2.0, 0]], [[0, 0.5]], [[0, 7]]])  # their mean (1/3, 2/3) at squared distances 8/9, 2/9 and 2/9
    to_video, to_frame = make("vidcom2:keep=1", 3, 1, 1).vidcom2._similarities(tokens)
    expected = [sum(math.exp(-d / (2 * a)) for a in (1 / 8, 1 / 4, 1 / 2, 1, 2)) for d in (8 / 9, 2 / 9, 2 / 9)]
    np.testing.assert_allclose(to_video[:, 0].numpy(), expected, rtol=1e-5)
    np.testing.assert_allclose(to_frame[:, 0].numpy(), [5, 5, 5], rtol=1e-5)
