"""How much work a bundle's stages are: operations and bytes, counted from the graphs.

    vision_work(bundle)             encoding and compressing one clip
    prefill_work(bundle, S)         a prompt of S positions
    decode_work(bundle, P)          one token after P positions

Operations are two for each multiply-add of a matrix product or convolution; the rest of a transformer is small beside them. Bytes are what
memory must give at the least: each weight once a pass (once a frame where frames run one by one would be more than a cache spares), the
clip, the tokens, and the cache that attention reads.

T frames, S prompt positions, P positions read, K inputs, N outputs of a layer.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from runtime.bundle import DECODER, VISION, Bundle
from runtime.bundle.graph_file import onnx_errors, read_graph
from runtime.bundle.tensors import PRESENT, cache_names
from runtime.core.errors import missing_package
from runtime.llm.decoder import PREFILL_CHUNK

if TYPE_CHECKING:
    import onnx


@dataclass(frozen=True)
class Work:
    """operations: {"fp32" | "fp16" | "int8": how many, by the precision of the product}; bytes."""

    operations: dict[str, float]
    bytes: float


def vision_work(bundle: Bundle) -> Work:
    """One clip; bytes with the weights read once."""
    graph = _graph(bundle, VISION)
    shapes = _shapes(graph)
    quantised = {name for node in graph.node if node.op_type == "DequantizeLinear" for name in node.output}
    floats = "fp16" if bundle.manifest.precision == "fp16" else "fp32"
    operations = dict.fromkeys(("int8", floats), 0.0)
    for node in graph.node:
        quantised_both = all(name in quantised for name in node.input[:2])
        operations["int8" if quantised_both else floats] += _operations(node, shapes)
    clip = _bytes(graph.input[0].type.tensor_type.elem_type) * math.prod(shapes[graph.input[0].name])
    features = bundle.manifest.patch_tokens * bundle.manifest.hidden_size * (2 if floats == "fp16" else 4)
    return Work({name: count for name, count in operations.items() if count}, _weights(graph) + clip + 2 * features)


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


def _decoder(bundle: Bundle) -> tuple[int, int, float]:
    """(weights used by all positions, weights used only by the last one of a run, bytes of all stored weights).

    The second are those after the last layer's cache: its output projection, its MLP, and lm_head.
    """
    graph = _graph(bundle, DECODER)
    shapes = _shapes(graph)
    stored = _stored(graph)
    last_cache = cache_names(PRESENT, bundle.llm.layers)[-1]
    all_positions = last_only = 0
    behind = False
    for node in graph.node:
        behind = behind or last_cache in node.output
        if node.op_type == "MatMul" and node.input[1] in stored:
            size = math.prod(shapes[node.input[1]])
            all_positions, last_only = (all_positions, last_only + size) if behind else (all_positions + size, last_only)
    return all_positions, last_only, _weights(graph)


def _stored(graph: onnx.GraphProto) -> set[str]:
    """Weights, in float or dequantised."""
    constants = {tensor.name for tensor in graph.initializer}
    return constants | {
        node.output[0] for node in graph.node if node.op_type == "DequantizeLinear" and constants.issuperset(node.input)
    }


def _floats(bundle: Bundle) -> str:
    return "fp16" if bundle.manifest.llm_precision == "fp16" else "fp32"


def _cache_row(bundle: Bundle) -> int:
    llm = bundle.llm
    return 2 * llm.layers * llm.kv_heads * llm.head_dim * (2 if _floats(bundle) == "fp16" else 4)


def _operations(node: onnx.NodeProto, shapes: dict[str, tuple[int, ...]]) -> float:
    if node.op_type in ("MatMul", "Gemm") and all(name in shapes for name in (*node.input[:2], node.output[0])):
        return 2.0 * math.prod(shapes[node.output[0]]) * shapes[node.input[0]][-1]
    if node.op_type == "Conv" and node.output[0] in shapes:
        return 2.0 * math.prod(shapes[node.output[0]]) * math.prod(shapes[node.input[1]][1:])
    return 0.0


def _graph(bundle: Bundle, name: str) -> onnx.GraphProto:
    try:
        import onnx
        import onnx.shape_inference
    except ImportError:
        raise missing_package("onnx", "counting a graph's work", "runtime") from None
    model = read_graph(bundle.model(name))
    with onnx_errors(bundle.model(name)):
        return onnx.shape_inference.infer_shapes(model).graph


def _shapes(graph: onnx.GraphProto) -> dict[str, tuple[int, ...]]:
    found = {tensor.name: tuple(tensor.dims) for tensor in graph.initializer}
    for value in (*graph.input, *graph.value_info, *graph.output):
        dims = value.type.tensor_type.shape.dim
        if all(dim.HasField("dim_value") for dim in dims):
            found[value.name] = tuple(dim.dim_value for dim in dims)
    for node in _dequantized(graph, found):
        found[node.output[0]] = found[node.input[0]]
    return found


def _dequantized(graph: onnx.GraphProto, known: dict[str, tuple[int, ...]]) -> Iterator[onnx.NodeProto]:
    return (node for node in graph.node if node.op_type == "DequantizeLinear" and node.input[0] in known)


def _weights(graph: onnx.GraphProto) -> float:
    return sum(_bytes(tensor.data_type) * math.prod(tensor.dims) for tensor in graph.initializer)


def _bytes(element: int) -> float:
    import onnx

    four_bits = (onnx.TensorProto.INT4, onnx.TensorProto.UINT4)
    return 0.5 if element in four_bits else float(onnx.helper.tensor_dtype_to_np_dtype(element).itemsize)
