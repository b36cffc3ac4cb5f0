"""Choosing tokens: greedy is argmax, sampling follows the probabilities that a straightforward softmax gives."""

from __future__ import annotations

import numpy as np
import pytest

from runtime.core.errors import PromptError
from runtime.llm.sampling import GREEDY_BELOW, Sampling, penalize

LOGITS = np.array([1.0, 3.0, 2.0, -4.0], np.float32)


def test_greedy_takes_the_highest():
    assert Sampling().chooser()(LOGITS) == 1


@pytest.mark.parametrize("temperature", [5e-324, 1e-320, 1e-9])
def test_a_temperature_next_to_nothing_is_greedy(temperature):
    choose = Sampling(temperature=temperature, top_p=0.5, seed=1).chooser()
    assert {choose(LOGITS * scale) for scale in (1, 1e-30, 1e30)} == {1}


def test_the_lowest_temperature_that_samples_has_finite_probabilities():
    probabilities = Sampling(temperature=GREEDY_BELOW).probabilities(np.array([3e38, -3e38, 3e38], np.float32))
    np.testing.assert_array_equal(probabilities, [0.5, 0, 0.5])


def test_probabilities_are_the_softmax_at_that_temperature():
    expected = np.exp(LOGITS / 0.7) / np.exp(LOGITS / 0.7).sum()
    np.testing.assert_allclose(Sampling(temperature=0.7).probabilities(LOGITS), expected, rtol=1e-6)


@pytest.mark.parametrize(("top_p", "kept"), [(0.5, [1]), (0.7, [1, 2]), (0.95, [0, 1, 2]), (1.0, [0, 1, 2, 3])])
def test_nucleus_is_the_smallest_set_that_reaches_top_p(top_p, kept):
    probabilities = Sampling(temperature=1.0, top_p=top_p).probabilities(LOGITS)
    assert np.flatnonzero(probabilities).tolist() == kept
    assert probabilities.sum() == pytest.approx(1)


def test_samples_follow_the_probabilities_and_a_seed_repeats_them():
    sampling = Sampling(temperature=1.0, seed=3)
    choose, again = sampling.chooser(), sampling.chooser()
    drawn = [choose(LOGITS) for _ in range(4000)]
    assert drawn[:50] == [again(LOGITS) for _ in range(50)]
    np.testing.assert_allclose(np.bincount(drawn, minlength=4) / 4000, sampling.probabilities(LOGITS), atol=0.03)


@pytest.mark.parametrize("bad", [{"temperature": -1}, {"temperature": float("nan")}, {"top_p": 0}, {"top_p": 1.5}])
def test_values_out_of_range_are_refused(bad):
    with pytest.raises(PromptError):
        Sampling(**bad)


@pytest.mark.parametrize("good", [{"temperature": 0}, {"temperature": 0.5}, {"temperature": 100}, {"top_p": 1e-9}, {"top_p": 1}])
def test_the_ends_of_the_ranges_are_within(good):
    assert {name: getattr(Sampling(**good), name) for name in good} == good


@pytest.mark.parametrize("bad", [{"temperature": -0.001}, {"temperature": 100.001}, {"top_p": -0.001}, {"top_p": 1.001}])
def test_just_outside_of_the_ranges_is_refused(bad):
    with pytest.raises(PromptError):
        Sampling(**bad)


def test_a_plain_choice_is_greedy_over_all_tokens_without_a_penalty():
    assert Sampling() == Sampling(temperature=0.0, top_p=1.0, seed=None)
    assert [Sampling().chooser([1])(LOGITS), Sampling().chooser([1], 1.0)(LOGITS), Sampling().chooser([1], 0.99)(LOGITS)] == [1] * 3


@pytest.mark.parametrize(("temperature", "drawn"), [(0.99e-5, {0}), (1e-5, {0, 1})])
def test_temperatures_from_a_hundred_thousandth_on_sample(temperature, drawn):
    choose = Sampling(temperature=temperature, seed=0).chooser()
    assert {choose(np.array([2.0, 2.0, -1.0], np.float32)) for _ in range(40)} == drawn


def test_a_nucleus_of_all_leaves_out_no_token_however_unlikely():
    logits = np.array([0, -60, -70], np.float32)
    np.testing.assert_allclose(Sampling(temperature=1.0).probabilities(logits), [1, np.exp(-60), np.exp(-70)], rtol=1e-12)
    assert Sampling(temperature=1.0, top_p=0.999).probabilities(logits).tolist() == [1, 0, 0]


def test_of_equal_tokens_the_first_are_the_nucleus():
    probabilities = Sampling(temperature=1.0, top_p=0.25).probabilities(np.zeros(128, np.float32))  # sums of 1/128 are exact
    assert probabilities.tolist() == [1 / 32] * 32 + [0] * 96


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_a_penalty_touches_only_tokens_that_have_a_logit(dtype):
    logits = np.array([1.0, 3.0, 2.0, -4.0, 0.0], dtype)
    result = penalize(logits, {0, 3, 4, 5, -1, -5}, 2.0)
    assert result.tolist() == [0.5, 3.0, 2.0, -8.0, 0.0] and result.dtype == dtype
    assert penalize(logits, set(), 2.0).tolist() == logits.tolist() == [1.0, 3.0, 2.0, -4.0, 0.0]


@pytest.mark.parametrize("penalty", [1.1, 1.3, 0.8])
def test_the_repetition_penalty_is_that_of_transformers(penalty):
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    rng = np.random.default_rng(0)
    prompt, rows = [3, 3, 17, 40], rng.normal(0, 2, (12, 50)).astype(np.float32)
    processor = transformers.RepetitionPenaltyLogitsProcessor(penalty)
    choose, expected = Sampling().chooser(prompt, penalty), list(prompt)
    for row in rows:
        scores = processor(torch.tensor([expected]), torch.from_numpy(row[None].copy()))
        expected.append(int(scores.argmax()))
        np.testing.assert_array_equal(penalize(row, set(expected[:-1]), penalty), scores[0].numpy())
        assert choose(row) == expected[-1]


def test_a_penalty_lets_another_token_win_once_the_best_was_seen():
    assert [Sampling().chooser(penalty=2.0)(LOGITS), Sampling().chooser([1], 2.0)(LOGITS)] == [1, 2]
    choose = Sampling().chooser([99], 2.0)  # a token without a logit, as a video's placeholder may be
    assert [choose(LOGITS) for _ in range(4)] == [1, 2, 1, 1]
    assert LOGITS.tolist() == [1.0, 3.0, 2.0, -4.0]


def test_a_penalty_changes_what_is_drawn():
    drawn = [Sampling(temperature=1.0, seed=seed).chooser([1], 3.0)(LOGITS) for seed in range(3000)]
    expected = Sampling(temperature=1.0).probabilities(np.array([1.0, 1.0, 2.0, -4.0], np.float32))
    np.testing.assert_allclose(np.bincount(drawn, minlength=4) / 3000, expected, atol=0.04)
