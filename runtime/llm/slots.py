"""Several conversations in one decoder: a fixed number of slots, each with its KV cache, decoded together as a ragged batch.

A slot's cache is one entry of the first axis of the cache tensors, so a prompt is prefilled into its own entry, and a decode
step reads the weights once for all slots between the first and the last that take part. A slot in that range that sits the
step out computes something for its next free row, which its next real position overwrites: idle slots keep what they hold.
An engine whose graph takes one conversation at a time (TensorRT, bundles of older exports) has a state for every slot and
decodes them in turn: slower, the same ids.

S prompt positions, B slots of a step, D hidden, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from runtime.bundle import BATCH, DECODER, DECODER_BATCH, Bundle
from runtime.bundle.graphs import EMBEDDINGS
from runtime.core.errors import EngineError, UserError
from runtime.engine import Engine, EngineOptions, State, open_engine
from runtime.engine.place import place
from runtime.llm.step import DecoderStep, check_context


class SlotDecoder(DecoderStep):
    """`lengths[slot]` says how many rows of a slot's cache are filled; lower it to forget the rest."""

    def __init__(self, bundle: Bundle, engine: Engine, slots: int):
        if slots < 1:
            raise EngineError(f"{slots} conversations at once, expected at least 1")
        super().__init__(bundle, engine)
        self.slots, self.lengths = slots, [0] * slots
        (embeddings,) = (spec for spec in engine.inputs if spec.name == EMBEDDINGS)
        self.batched = embeddings.shape[0] == BATCH
        self._states: list[State]
        if self.batched:
            self._states = [engine.new_state(self.cache_pairs, batch=slots)]
        else:
            self._states = [engine.new_state(self.cache_pairs) for _ in range(slots)]

    @classmethod
    def open(cls, bundle: Bundle, slots: int, backend: str = "auto", options: EngineOptions = EngineOptions()) -> SlotDecoder:
        """The graph for a batch where the bundle has one and the backend can run it: ONNX Runtime, and OpenVINO."""
        options = place(bundle, backend, options).options
        if not bundle.has(DECODER_BATCH) or backend.startswith("tensorrt"):
            return cls(bundle, open_engine(bundle, DECODER, backend, options), slots)
        if backend == "auto" and options.device == "cuda":
            try:
                return cls(bundle, open_engine(bundle, DECODER, "tensorrt", options), slots)
            except UserError:
                backend = "onnx"  # no TensorRT here, or no engine of this bundle
        return cls(bundle, open_engine(bundle, DECODER_BATCH, backend, options), slots)

    def extend(self, slot: int, embeddings: np.ndarray) -> np.ndarray:
        """Append embeddings [S, D] to a slot; return the logits [V] float32 after the last of them.

        Whether they are finite is left to the caller, row by row: see `runtime.llm.step.finite`.
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
