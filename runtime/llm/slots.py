"""Several conversations in one decoder: a fixed number of slots, each with its KV cache, decoded together as a ragged batch.

A slot's cache is one entry of the first axis of the cache tensors, so a prompt is prefilled into its own entry, and a decode
step reads the weights once for all slots between the first and the last that take part. A slot in that range that sits the
step out computes something for its next free row, which its next real position overwrites: idle slots keep what they hold.
An engine whose graph takes one conversation at a time (TensorRT, bundles of older exports) has a state for every slot and
decodes them in turn: slower, the same ids.

S prompt positions, B slots of a step, D hidden, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import numpy as np

from runtime.bundle import BATCH, DECODER_BATCH, Bundle
from runtime.bundle.graphs import EMBEDDINGS
from runtime.core.errors import EngineError
from runtime.engine import Engine, EngineOptions, State, open_engine
from runtime.llm.decoder import DecoderStep, check_context


class SlotDecoder(DecoderStep):
    """`lengths[slot]` says how many rows of a slot's cache are filled; lower it to forget the rest."""

    def __init__(self, bundle: Bundle, engine: Engine, slots: int):
        if slots < 1:
            raise EngineError(f"{slots} conversations at once, expected at least 1")
        super().__init__(bundle, engine)
        self.slots, self.lengths = slots, [0] * slots
        (embeddings,) = (spec for spec in engine.inputs if spec.name == EMBEDDINGS)
        self.batched = embeddings.shape[0] == BATCH
        states, batch = (1, slots) if self.batched else (slots, 1)
        self._states: list[State] = [engine.new_state(self.cache_pairs, batch) for _ in range(states)]

    @classmethod
    def open(cls, bundle: Bundle, slots: int, backend: str = "auto", options: EngineOptions = EngineOptions()) -> SlotDecoder:
        return cls(bundle, open_engine(bundle, DECODER_BATCH, backend, options), slots)

    def extend(self, slot: int, embeddings: np.ndarray) -> np.ndarray:
        """Append embeddings [S, D] to a slot; return the logits [V] float32 after the last of them.

        Whether they are finite is left to the caller, row by row: see `runtime.llm.decoder.finite`.
        """
        logits = self.prefill(self._state(slot, slot + 1), embeddings[None], self.lengths[slot])
        self.lengths[slot] += len(embeddings)
        return logits

    def step(self, slots: Sequence[int], embeddings: np.ndarray) -> np.ndarray:
        """Append one embedding to each of `slots`, embeddings [B, D]; return the logits [B, V] float32."""
        for slot in slots:
            check_context(self.lengths[slot] + 1, self.max_context)
        if not self.batched:
            return np.stack([self.extend(slot, row[None]) for slot, row in zip(slots, embeddings, strict=True)])
        first, last = min(slots), max(slots) + 1
        entries = [slot - first for slot in slots]
        batch = np.zeros((last - first, 1, embeddings.shape[1]), self.dtype)
        batch[entries, 0] = embeddings
        for idle in set(range(first, last)) - set(slots):  # needs a free row to compute into
            self.lengths[idle] = min(self.lengths[idle], self.max_context - 1)
        read = max(self.lengths[slot] for slot in slots) + 1
        logits = self.run(self._state(first, last), batch, self.lengths[first:last], read)
        for slot in slots:
            self.lengths[slot] += 1
        return logits[entries]

    def close(self) -> None:
        self._states.clear()
        self.engine.close()

    def _state(self, start: int, stop: int) -> State:
        return self._states[0].batch_slice(start, stop) if self.batched else self._states[start]


class PrefixCache:
    """Which slot a new prompt takes; filled: what is at each position in each slot's cache, as in runtime/llm/generation.py."""

    def __init__(self, decoder: SlotDecoder):
        self.decoder = decoder
        self.filled: list[list[Hashable]] = [[] for _ in range(decoder.slots)]
        self._least_recent = list(range(decoder.slots))

    def take(self, keys: Sequence[Hashable], free: Sequence[int]) -> tuple[int, int]:
        """(slot, positions of `keys` that its cache has already) of one of the `free` slots, whose other positions are forgotten.

        At least the last position is left to compute, for its logits.
        """
        shared = {slot: min(common(self.filled[slot], keys), self.decoder.lengths[slot], len(keys) - 1) for slot in free}
        # A slot is taken for its beginning only where that is most of its cache: every prompt begins with the chat template's first
        # tokens, and no clip's cache is worth giving up for those. Else the slot that was idle for longest is taken.
        worth = [slot for slot in free if 2 * shared[slot] > len(self.filled[slot])]
        slot = max(worth, key=shared.__getitem__) if worth else min(free, key=self._least_recent.index)
        self._least_recent.remove(slot)
        self._least_recent.append(slot)
        self.decoder.lengths[slot] = shared[slot]
        self.filled[slot] = list(keys[: shared[slot]])
        return slot, shared[slot]


def common(one: Sequence[Hashable], other: Sequence[Hashable]) -> int:
    """How many keys both begin with."""
    for index, (a, b) in enumerate(zip(one, other, strict=False)):
        if a != b:
            return index
    return min(len(one), len(other))
