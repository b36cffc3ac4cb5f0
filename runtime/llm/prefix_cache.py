"""Which prompt positions each slot's KV cache holds, and which slot a new prompt takes."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

from runtime.llm.slots import SlotDecoder


class PrefixCache:
    """filled: the keys of the positions in each slot's cache, as in runtime/llm/generation.py."""

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
