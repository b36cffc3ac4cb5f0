"""The graphs of a bundle: the names of their files and tensors.

A graph is a component (vision encoder or LLM) or a variant of one, over the same weights. T frames.

    VISION              the vision encoder: pixel_values of T frames -> visual tokens
    VISION_LOOP         the same frame by frame, for CPUs
    VISION_ENCODER,     instead of the loop in a bundle that was exported with --split: one frame -> features, and features of T
    VISION_COMPRESSOR   frames -> visual tokens, on every device
    DECODER             the LLM: embeddings, KV cache -> logits, KV cache
    DECODER_BATCH       the same for BATCH conversations at once

The tensors of the decoders, for B conversations (1 but in DECODER_BATCH); D hidden, K key heads, d head size, V vocabulary:

    inputs_embeds                [B, S, D]      float   embeddings of S new positions
    position_ids                 [B, S]         int64   their absolute positions, which are also the cache rows they are written to
    attention_mask               [B, P]         int64   ones; the length P says how many cache rows are read
    past_key_values.L.key/value  [B, K, M, d]   float   the caches of layer L, M = max_context, bound to present.L.key/value
    logits                       [B, 1, V]      float   after the last position
    present.L.key/value          [B, K, M, d]   float   the caches with the new rows
"""

from __future__ import annotations

VISION = "vision"
VISION_LOOP = "vision.loop"
VISION_ENCODER = "vision.encoder"
VISION_COMPRESSOR = "vision.compressor"
SPLIT = (VISION_ENCODER, VISION_COMPRESSOR)
DECODER = "llm/decoder"
DECODER_BATCH = "llm/decoder.batch"
COMPONENTS = (VISION, DECODER)
GRAPHS = (VISION, VISION_LOOP, *SPLIT, DECODER, DECODER_BATCH)
BATCH = "B"  # the name of DECODER_BATCH's first axis
EMBEDDINGS, POSITIONS, MASK, LOGITS = "inputs_embeds", "position_ids", "attention_mask", "logits"
PAST, PRESENT = "past_key_values.", "present."


def file_of(graph: str) -> str:
    """The ONNX file of a graph, relative to the bundle."""
    return f"{graph}.onnx"


def component_of(graph: str) -> str:
    """VISION or DECODER, whose weights the graph shares."""
    return graph.partition(".")[0]


def cache_names(prefix: str, layers: int) -> list[str]:
    """The names of all caches, two a layer; prefix: PAST or PRESENT."""
    return [f"{prefix}{layer}.{part}" for layer in range(layers) for part in ("key", "value")]
