"""How much work a bundle's stages take: operations and bytes, counted from the graphs.

    vision_work(bundle)             encoding and compressing one clip
    prefill_work(bundle, S)         a prompt of S positions
    decode_work(bundle, P)          one token after P positions

Operations are two for each multiply-add of a matrix product or convolution; the rest of a transformer is small beside them. Bytes are the
least that memory must deliver: each weight once a pass, the clip, the tokens, and the cache that attention reads.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING

from runtime.bundle import DECODER, VISION, Bundle
from runtime.bundle.graphs import PRESENT, cache_names
from runtime.llm.decoder import PREFILL_CHUNK
from runtime.tools import liveness

if TYPE_CHECKING:
    import onnx


@dataclass(frozen=True)
class Work:
    """operations: {"fp32" | "fp16" | "int8": how many, by the precision of the product}; bytes."""

    operations: dict[str, float]
    bytes: float


def vision_work(bundle: Bundle) -> Work:
    """One clip; bytes with the weights read once."""
    model = liveness.load(bundle.model(VISION))
    graph, shapes = model.graph, liveness.shapes(model.graph)
    quantized = {name for node in graph.node if node.op_type == "DequantizeLinear" for name in node.output}
    floats = "fp16" if bundle.manifest.precision == "fp16" else "fp32"
    operations = dict.fromkeys(("int8", floats), 0.0)
    for node in graph.node:
        quantized_both = all(name in quantized for name in node.input[:2])
        operations["int8" if quantized_both else floats] += _operations(node, shapes)
    clip = liveness.value_bytes(graph.input[0]) or 0
    features = bundle.manifest.patch_tokens * bundle.manifest.hidden_size * (2 if floats == "fp16" else 4)
    return Work({name: count for name, count in operations.items() if count}, liveness.weights(model) + clip + 2 * features)


def prefill_work(bundle: Bundle, positions: int) -> Work:
    """A prompt of `positions`, chunk by chunk as the runtime runs it; after the last layer's cache only a chunk's last position is computed."""
    chunks = -(-positions // PREFILL_CHUNK)
    read = [min(start + PREFILL_CHUNK, positions) for start in range(0, positions, PREFILL_CHUNK)]
    full = bundle.llm.layers - 1  # layers whose queries are all positions
    queries = [full * (stop - start) + 1 for start, stop in zip([0, *read], read, strict=False)]
    attention = sum(4 * asked * stop * bundle.manifest.hidden_size for asked, stop in zip(queries, read, strict=True))
    all_positions, last_only, stored = _decoder(bundle)
    operations = 2 * (all_positions * positions + last_only * chunks) + attention
    return Work({_floats(bundle): float(operations)}, float(stored * chunks + sum(read) * _cache_row(bundle)))


def decode_work(bundle: Bundle, positions: int) -> Work:
    """One token whose attention reads `positions`."""
    all_positions, last_only, stored = _decoder(bundle)
    operations = 2 * (all_positions + last_only) + 4 * positions * bundle.llm.layers * bundle.manifest.hidden_size
    return Work({_floats(bundle): float(operations)}, float(stored + positions * _cache_row(bundle)))


def _decoder(bundle: Bundle) -> tuple[int, int, int]:
    """(weights used by all positions, weights used only by the last one of a run, bytes of all stored weights).

    The second are those after the last layer's cache: its output projection, its MLP, and lm_head.
    """
    model = liveness.load(bundle.model(DECODER))
    shapes, stored = liveness.shapes(model.graph), _stored(model.graph)
    last_cache = cache_names(PRESENT, bundle.llm.layers)[-1]
    used = [0, 0]
    behind = False
    for node in model.graph.node:
        behind = behind or last_cache in node.output
        if node.op_type == "MatMul" and node.input[1] in stored:
            used[behind] += prod(shapes[node.input[1]])
    return used[0], used[1], liveness.weights(model)


def _stored(graph: onnx.GraphProto) -> set[str]:
    """Weights, in float or dequantized."""
    constants = {tensor.name for tensor in graph.initializer}
    return constants | {
        node.output[0] for node in graph.node if node.op_type == "DequantizeLinear" and constants.issuperset(node.input)
    }


def _floats(bundle: Bundle) -> str:
    return "fp16" if bundle.manifest.llm_precision == "fp16" else "fp32"


def _cache_row(bundle: Bundle) -> int:
    llm = bundle.llm
    return 2 * llm.layers * llm.kv_heads * llm.head_dim * (2 if _floats(bundle) == "fp16" else 4)


def _operations(node: onnx.NodeProto, shapes: dict[str, list[int]]) -> float:
    if node.op_type in ("MatMul", "Gemm") and all(name in shapes for name in (*node.input[:2], node.output[0])):
        return 2.0 * prod(shapes[node.output[0]]) * shapes[node.input[0]][-1]
    if node.op_type == "Conv" and node.output[0] in shapes:
        return 2.0 * prod(shapes[node.output[0]]) * prod(shapes[node.input[1]][1:])
    return 0.0
