"""Choosing the next token from logits [V]: greedy, or temperature and nucleus sampling with its own seeded generator."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from runtime.errors import PromptError

GREEDY_BELOW = 1e-5  # temperatures under this are greedy: the quotients of logits by them may not be finite


@dataclass(frozen=True)
class Sampling:
    """temperature 0, or below GREEDY_BELOW, is greedy; top_p in (0, 1] keeps the smallest set of tokens that holds that much probability."""

    temperature: float = 0.0
    top_p: float = 1.0
    seed: int | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.temperature <= 100:
            raise PromptError(f"temperature is {self.temperature}, expected 0 (greedy) to 100")
        if not 0 < self.top_p <= 1:
            raise PromptError(f"top_p is {self.top_p}, expected more than 0 and at most 1")

    def chooser(self) -> Callable[[np.ndarray], int]:
        """A function logits [V] -> id; a sampling one carries its generator along."""
        if self.temperature < GREEDY_BELOW:
            return lambda logits: int(logits.argmax())
        generator = np.random.default_rng(self.seed)
        return lambda logits: int(generator.choice(logits.size, p=self.probabilities(logits)))

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
