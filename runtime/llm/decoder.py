"""The bundle's LLM: runs of the decoder graph, for one conversation or a batch of them, with a KV cache that is updated in place.

The graph's tensors are listed in runtime/bundle/graphs.py. B conversations, S positions, P positions read, D hidden, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from runtime.bundle import DECODER, Bundle
from runtime.bundle.graphs import EMBEDDINGS, LOGITS, MASK, PAST, POSITIONS, PRESENT, cache_names
from runtime.core.errors import BundleError, ContextError, NonFiniteError
from runtime.engine import Engine, EngineOptions, State, TensorSpec, open_engine

# Positions in one run of the prefill, which bounds the score matrix to heads x chunk x P. On a CPU 512 are no faster; on a GPU 1,024
# take 0.58 of the time of 256, and 2,048 hardly less (benchmarks/RESULTS.md). Flash attention stores no scores.
PREFILL_CHUNK, GPU_PREFILL_CHUNK, FLASH_PREFILL_CHUNK = 256, 1024, 8192


def prefill_chunk(device: str, attention: str) -> int:
    """Positions in one run of the prefill on `device`, of a decoder with `attention` (LLMInfo)."""
    if device != "cuda":
        return PREFILL_CHUNK
    return FLASH_PREFILL_CHUNK if attention == "flash" else GPU_PREFILL_CHUNK


def decoder_feeds(embeddings: np.ndarray, starts: Sequence[int], read: int | None = None) -> dict[str, np.ndarray]:
    """The inputs of a run that appends embeddings [B, S, D] to conversations of `starts` positions each.

    embeddings: in the graph's dtype; read: cache rows to read, by default all up to the last position of the run.
    """
    positions = np.array(starts, np.int64)[:, None] + np.arange(embeddings.shape[1], dtype=np.int64)
    mask = np.ones((len(positions), read or int(positions.max()) + 1), np.int64)
    return {EMBEDDINGS: embeddings, POSITIONS: positions, MASK: mask}


def cache_pairs(inputs: Iterable[TensorSpec]) -> dict[str, str]:
    """{input name: output name} of all key and value caches."""
    names = [spec.name for spec in inputs if spec.name.startswith(PAST)]
    return {name: PRESENT + name.removeprefix(PAST) for name in names}


class DecoderStep:
    """A loaded decoder graph. BundleError where its caches are not those of the manifest's layers."""

    def __init__(self, bundle: Bundle, engine: Engine):
        self.engine = engine
        self.max_context: int = bundle.max_context
        self.dtype = {spec.name: spec.dtype for spec in engine.inputs}.get(EMBEDDINGS, np.dtype(np.float32))
        self.cache_pairs = cache_pairs(engine.inputs)
        inputs, outputs = set(self.cache_pairs.values()), {spec.name for spec in engine.outputs if spec.name.startswith(PRESENT)}
        layers = bundle.llm.layers  # as many as a manifest says, so they are counted before they are named
        if not (len(inputs) == len(outputs) == 2 * layers and inputs == outputs == set(cache_names(PRESENT, layers))):
            raise BundleError(
                f"the decoder graph does not have the caches of {layers} layers that the manifest names; export the bundle again"
            )
        self.chunk = prefill_chunk(engine.device, bundle.llm.attention)

    def run(self, state: State, embeddings: np.ndarray, starts: Sequence[int], read: int | None = None) -> np.ndarray:
        """Append embeddings [B, S, D] of any float dtype, see `decoder_feeds`; return the last logits [B, V] float32."""
        feeds = decoder_feeds(embeddings.astype(self.dtype, copy=False), starts, read)
        return self.engine.run(feeds, state)[LOGITS][:, -1].astype(np.float32, copy=False)

    def prefill(self, state: State, embeddings: np.ndarray, start: int, chunk: int | None = None) -> np.ndarray:
        """Append embeddings [1, S, D] to a conversation of `start` positions, `chunk` at a time; return the last logits [V] float32.

        ContextError where they don't fit the cache. Whether the logits are finite is left to the caller, see `finite`.
        """
        check_context(start + embeddings.shape[1], self.max_context)
        chunk = chunk or self.chunk
        for begin in range(0, embeddings.shape[1], chunk):
            logits = self.run(state, embeddings[:, begin : begin + chunk], [start + begin])
        return logits[0]


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


def check_context(needed: int, max_context: int) -> None:
    """Refuse a prompt that needs more positions than the cache has."""
    if needed > max_context:
        raise ContextError(
            f"the prompt needs {needed} positions, the bundle holds {max_context}; "
            "ask a shorter question, or export with a larger --max-context or stronger --compress"
        )


def finite(logits: np.ndarray) -> np.ndarray:
    """The same logits; NonFiniteError where one is not finite."""
    if not np.isfinite(logits).all():
        raise NonFiniteError("the decoder returned logits that are not finite; try a bundle of --precision fp32")
    return logits
