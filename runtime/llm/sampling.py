"""Choosing the next token from logits [V]: greedy, or temperature and nucleus sampling from a seeded generator.

A repetition penalty comes before either, as in transformers' generate. V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np

from runtime.core.errors import PromptError
from runtime.core.options import check_limits, option

GREEDY_BELOW = 1e-5  # temperatures under this are greedy: the quotients of logits by them may not be finite


@dataclass(frozen=True)
class Sampling:
    """temperature 0, or below GREEDY_BELOW, is greedy; top_p in (0, 1] keeps the smallest set of tokens with that much probability."""

    temperature: float = option(0.0, "0 is greedy (default)", at_least=0, at_most=100)
    top_p: float = option(1.0, "sample from the likeliest tokens that hold this much probability", above=0, at_most=1)
    seed: int | None = option(None, "of the sampling (default: another one each time)")

    def __post_init__(self) -> None:
        check_limits(self, PromptError)

    def chooser(self, seen: Iterable[int] = (), penalty: float = 1.0) -> Callable[[np.ndarray], int]:
        """A function logits [V] -> id that carries its generator, and what was chosen so far, along.

        seen: ids of the prompt; penalty: the repetition penalty on them and on the ids that are chosen, 1 for none.
        """
        counted, generator = set(seen), np.random.default_rng(self.seed)

        def choose(logits: np.ndarray) -> int:
            logits = penalize(logits, counted, penalty) if penalty != 1 else logits
            if self.temperature < GREEDY_BELOW:
                token = int(logits.argmax())
            else:
                token = int(generator.choice(logits.size, p=self.probabilities(logits)))
            counted.add(token)
            return token

        return choose

    def probabilities(self, logits: np.ndarray) -> np.ndarray:
        """float64 [V], sums to 1, zero outside the nucleus; for temperatures from GREEDY_BELOW on."""
        scaled = logits.astype(np.float64) / self.temperature
        weights = np.exp(scaled - scaled.max())
        weights /= weights.sum()
        if self.top_p < 1:
            order = np.argsort(-weights, kind="stable")
            before = np.cumsum(weights[order]) - weights[order]  # mass ahead of each token
            weights[order[before >= self.top_p]] = 0
            weights /= weights.sum()
        return weights


def penalize(logits: np.ndarray, seen: set[int], penalty: float) -> np.ndarray:
    """Logits [V] in which those of `seen` are divided by `penalty` where they are positive and multiplied where they are negative.

    The repetition penalty of Keskar et al. 2019 (CTRL) as transformers' RepetitionPenaltyLogitsProcessor computes it.
    """
    ids = np.array([token for token in seen if 0 <= token < logits.size], np.int64)
    result, values = logits.copy(), logits[ids]
    result[ids] = np.where(values < 0, values * penalty, values / penalty)
    return result
