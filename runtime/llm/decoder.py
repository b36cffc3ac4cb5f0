"""The bundle's LLM for one conversation at a time: prefill in chunks, decode token by token, the KV cache updated in place.

S prompt positions, D hidden, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from runtime.bundle import DECODER, Bundle
from runtime.engine import EngineOptions, State, open_engine
from runtime.llm.step import DecoderStep, finite


class LocalDecoder(DecoderStep):
    """One loaded decoder graph; each `Conversation` has its own cache."""

    @classmethod
    def open(cls, bundle: Bundle, backend: str = "auto", options: EngineOptions = EngineOptions()) -> LocalDecoder:
        return cls(bundle, open_engine(bundle, DECODER, backend, options))

    def conversation(self) -> Conversation:
        return Conversation(self, self.engine.new_state(self.cache_pairs))


class Conversation:
    """A KV cache; `length` says how many of its rows are filled."""

    def __init__(self, decoder: LocalDecoder, state: State):
        self.decoder, self.state = decoder, state
        self.length = 0

    def extend(self, embeddings: np.ndarray, chunk: int | None = None) -> np.ndarray:
        """Append embeddings [1, S, D]; return the logits [V] float32 after the last of them."""
        logits = self.decoder.prefill(self.state, embeddings, self.length, chunk)
        self.length += embeddings.shape[1]
        return finite(logits)

    def generate(
        self,
        logits: np.ndarray,
        embed: Callable[[int], np.ndarray],
        choose: Callable[[np.ndarray], int],
        eos: frozenset[int],
        limit: int,
    ) -> Iterator[int]:
        """Yield at most `limit` ids, chosen from `logits` on, until one of `eos` (not yielded) or the cache is full.

        embed: id -> embedding [1, 1, D].
        """
        for produced in range(limit):
            token = choose(logits)
            if token in eos:
                return
            yield token
            if produced + 1 == limit or self.length == self.decoder.max_context:
                return
            logits = self.extend(embed(token))
