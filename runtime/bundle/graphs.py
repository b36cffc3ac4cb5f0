"""The graphs of a bundle: their names, their files and tensors.

A graph is a component (vision encoder or LLM) or a variant of one, over the same weights. T frames.

    VISION              the vision encoder: pixel_values of T frames -> visual tokens
    VISION_LOOP         the same frame by frame, for CPUs
    VISION_ENCODER,     instead of the loop in a bundle that was exported with --split: one frame -> features, and features of T
    VISION_COMPRESSOR   frames -> visual tokens, on every device
    DECODER             the LLM: embeddings, KV cache -> logits, KV cache
    DECODER_BATCH       the same for BATCH conversations at once
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


def file_of(graph: str) -> str:
    """The ONNX file of a graph, relative to the bundle."""
    return f"{graph}.onnx"


def component_of(graph: str) -> str:
    """VISION or DECODER, whose weights the graph shares."""
    return graph.partition(".")[0]
