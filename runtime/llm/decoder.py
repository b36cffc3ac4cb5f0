"""The bundle's LLM for one conversation at a time, whose KV cache is updated in place.

S prompt positions, D hidden, V vocabulary.
"""

from __future__ import annotations

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
