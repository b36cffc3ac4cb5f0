"""The local LLM half of a bundle: prefill in chunks, decode token by token, KV cache updated in place.

S prompt positions, P positions read, D hidden, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from runtime.bundle import DECODER, Bundle
from runtime.core.errors import BundleError, ContextError, NonFiniteError
from runtime.engine import Engine, EngineOptions, State, open_engine

# Positions a run of the prefill: bounds the score matrix to heads x chunk x P. On a CPU 512 are no faster, on a GPU 1,024 take 0.58 of the
# time of 256 and 2,048 little less (benchmarks/RESULTS.md).
PREFILL_CHUNK, GPU_PREFILL_CHUNK = 256, 1024


class LocalDecoder:
    """One loaded decoder graph; each `Conversation` has a cache of its own. BundleError where it has not the manifest's layers."""

    def __init__(self, bundle: Bundle, engine: Engine):
        self.engine = engine
        self.max_context = bundle.manifest.limits["max_context"]
        self.dtype = {spec.name: spec.dtype for spec in engine.inputs}.get("inputs_embeds", np.dtype(np.float32))
        self.cache_pairs = _cache_pairs(engine, bundle.manifest.llm["layers"])
        self.chunk = GPU_PREFILL_CHUNK if engine.device == "cuda" else PREFILL_CHUNK

    @classmethod
    def open(cls, bundle: Bundle, backend: str = "auto", options: EngineOptions = EngineOptions()) -> LocalDecoder:
        return cls(bundle, open_engine(bundle, DECODER, backend, options))

    def conversation(self) -> Conversation:
        return Conversation(self, self.engine.new_state(self.cache_pairs))


def _cache_pairs(engine: Engine, layers: int) -> dict[str, str]:
    """{input name: output name} of all keys and values."""
    caches = {spec.name for spec in (*engine.inputs, *engine.outputs) if spec.name.startswith(("past_key_values.", "present."))}
    if len(caches) == 4 * layers:
        pairs = {f"past_key_values.{at}.{half}": f"present.{at}.{half}" for at in range(layers) for half in ("key", "value")}
        if caches == {*pairs, *pairs.values()}:
            return pairs
    raise BundleError(f"the decoder graph has not the caches of {layers} layers, as the manifest says; export the bundle again")


class Conversation:
    """A KV cache and how far it is filled."""

    def __init__(self, decoder: LocalDecoder, state: State):
        self.decoder, self.state = decoder, state
        self.length = 0

    def extend(self, embeddings: np.ndarray, chunk: int | None = None) -> np.ndarray:
        """Append embeddings [1, S, D]; return the logits [V] float32 after the last of them."""
        chunk = chunk or self.decoder.chunk
        check_context(self.length + embeddings.shape[1], self.decoder.max_context)
        for start in range(0, embeddings.shape[1], chunk):
            logits = self._step(embeddings[:, start : start + chunk])
        if not np.isfinite(logits).all():
            raise NonFiniteError("the decoder returned logits that are not finite; try a bundle of --precision fp32")
        return logits

    def generate(
        self,
        logits: np.ndarray,
        embed: Callable[[int], np.ndarray],
        choose: Callable[[np.ndarray], int],
        eos: frozenset[int],
        limit: int,
    ) -> Iterator[int]:
        """Yield ids chosen from `logits` on, at most `limit`, until one of `eos` (not yielded) or the cache is full.

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

    def _step(self, embeddings: np.ndarray) -> np.ndarray:
        positions = np.arange(self.length, self.length + embeddings.shape[1], dtype=np.int64)[None]
        feeds = {
            "inputs_embeds": embeddings.astype(self.decoder.dtype, copy=False),
            "position_ids": positions,
            "attention_mask": np.ones((1, positions[0, -1] + 1), np.int64),
        }
        logits = self.decoder.engine.run(feeds, self.state)["logits"]
        self.length += embeddings.shape[1]
        return logits[0, -1].astype(np.float32, copy=False)


def check_context(needed: int, max_context: int) -> None:
    """Refuse a prompt that the cache can't hold."""
    if needed > max_context:
        raise ContextError(
            f"the prompt needs {needed} positions, the bundle holds {max_context}; "
            "ask a shorter question, or export with a larger --max-context or stronger --compress"
        )
