"""The tensors of the decoder graphs, by name.

    inputs_embeds                [B, S, D]      float   embeddings of S new positions in each of B conversations
    position_ids                 [B, S]         int64   their absolute positions, which are also the cache rows they are written to
    attention_mask               [B, P]         int64   ones; the length P says how many cache rows are read
    past_key_values.L.key/value  [B, K, M, d]   float   the caches of layer L, M = max_context, bound to present.L.key/value
    logits                       [B, 1, V]      float   after the last position
    present.L.key/value          [B, K, M, d]   float   the caches with the new rows

B is 1 except in DECODER_BATCH. D hidden, K key heads, d head size, V vocabulary.
"""

from __future__ import annotations

EMBEDDINGS, POSITIONS, MASK, LOGITS = "inputs_embeds", "position_ids", "attention_mask", "logits"
PAST, PRESENT = "past_key_values.", "present."


def cache_names(prefix: str, layers: int) -> list[str]:
    """The names of all caches, two a layer; prefix: PAST or PRESENT."""
    return [f"{prefix}{layer}.{part}" for layer in range(layers) for part in ("key", "value")]
