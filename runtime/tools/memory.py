"""The memory that a bundle's graphs will need, read from its files: nothing is loaded.

By graph: weights (external data included), and activations, the largest sum of tensors that are alive at once when the nodes run in
the graph's order (runtime/tools/liveness.py). KV cache = 2 * layers * kv_heads * head_dim * max_context * bytes of a value. Engines may
fuse (less) or keep a second, rearranged copy of weights (more): this is for sizing a device.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from runtime.bundle import DECODER, VISION, VISION_COMPRESSOR, VISION_LOOP, Bundle
from runtime.bundle.graph_file import read_graph
from runtime.bundle.graphs import EMBEDDINGS, MASK, PAST, POSITIONS, file_of
from runtime.core.errors import BundleError
from runtime.llm.decoder import PREFILL_CHUNK, prefill_chunk
from runtime.tools import liveness

if TYPE_CHECKING:
    from onnx import ModelProto

_ITEMSIZE = {"fp32": 4, "fp16": 2, "int8": 4, "int4": 4}  # of activations


@dataclass(frozen=True)
class GraphMemory:
    """nodes by operator; bytes of weights and of activations; note: how the activations were counted."""

    graph: str
    operators: dict[str, int]
    weights: int
    activations: int
    note: str = ""


def graph_memory(bundle: Bundle, graph: str) -> GraphMemory:
    """Count `graph`; without the package onnx its weights alone, by the size of its files."""
    shared = bundle.data_files(graph) if graph != VISION_COMPRESSOR else []  # counted with the encoder
    on_disk = sum(bundle.manifest.files[name].size for name in (file_of(graph), *shared))
    try:
        model, peak = _loaded(bundle, graph, PREFILL_CHUNK)
    except ImportError:
        return GraphMemory(graph, {}, on_disk, 0, 'activations are not counted: pip install "onnx" to read the graphs')
    note = f"{peak.unknown} tensors of unknown size are left out of its activations" if peak.unknown else ""
    return GraphMemory(graph, liveness.operators(bundle.model(graph)), liveness.weights(model), peak.bytes, note)


def bundle_memory(bundle: Bundle, graphs: list[GraphMemory], decoder_on_gpu: int = 0) -> dict[str, int]:
    """{part: bytes} of what runs, with totals. decoder_on_gpu: see `decoder_activations_on_gpu`."""
    found = {graph.graph: graph for graph in graphs}
    looped = found.pop(VISION_LOOP, None)
    if bundle.is_split or VISION not in found:  # `vision.onnx` is not run
        found.pop(VISION, None)
        looped = None
    memory = {f"{name} weights": graph.weights for name, graph in found.items()}
    memory |= {f"{name} activations": graph.activations for name, graph in found.items()}
    if bundle.has_llm:
        memory["KV cache"] = kv_cache_bytes(bundle)
    on_cpu = on_gpu = sum(memory.values())
    if decoder_on_gpu and DECODER in found:
        chunk = prefill_chunk("cuda", bundle.llm.attention)
        memory[f"{DECODER} activations, {chunk:,} positions at a time on a GPU"] = decoder_on_gpu
        on_gpu += decoder_on_gpu - found[DECODER].activations
    if looped is None:
        return memory | {"total": on_cpu} | ({"total on a GPU": on_gpu} if on_gpu != on_cpu else {})
    on_cpu += looped.activations - found[VISION].activations
    frame_by_frame = {f"{VISION} activations, frame by frame on a CPU": looped.activations}
    return memory | frame_by_frame | {"total on a GPU": on_gpu, "total on a CPU": on_cpu}


def kv_cache_bytes(bundle: Bundle) -> int:
    """Bytes of one conversation's cache; 0 without an LLM."""
    if not bundle.has_llm:
        return 0
    llm = bundle.llm
    return 2 * llm.layers * llm.kv_heads * llm.head_dim * bundle.max_context * _ITEMSIZE[bundle.manifest.llm_precision]


def server_memory(bundle: Bundle, batch: int, cache: int) -> dict[str, int]:
    """{part: bytes} of a server that decodes `batch` answers at once, instead of the one KV cache, and keeps `cache` bytes of clips."""
    caches = {f"KV caches of {batch} answers": batch * kv_cache_bytes(bundle)} if bundle.has_llm else {}
    return caches | {"kept visual tokens, at most": cache}


def decoder_activations_on_gpu(bundle: Bundle) -> int:
    """Activations of the LLM in the longer pieces that a GPU prefills; 0 without an LLM, or where they are not counted."""
    if not bundle.has_llm:
        return 0
    try:
        return _loaded(bundle, DECODER, prefill_chunk("cuda", bundle.llm.attention))[1].bytes
    except ImportError:
        return 0


def _loaded(bundle: Bundle, graph: str, chunk: int) -> tuple[ModelProto, liveness.Peak]:
    """A graph's structure with the sizes of a prefill of `chunk` positions a run, and what it needs at one time."""
    model = liveness.load(bundle.model(graph), _sizes(bundle, graph, chunk))
    return model, liveness.peak(model.graph, {value.name for value in model.graph.input if value.name.startswith(PAST)})


def _sizes(bundle: Bundle, graph: str, chunk: int = PREFILL_CHUNK) -> dict[str, dict[int, int]]:
    """{input: {axis: size}} of the dynamic axes at their largest: a full prefill chunk that reads the whole cache."""
    if graph != DECODER:
        return {}
    context = bundle.max_context
    inputs = read_graph(bundle.model(graph)).graph.input
    caches = [
        value.type.tensor_type.shape.dim for value in inputs if value.name.startswith(PAST)
    ]  # [1, heads, positions, head dim]
    held = min((dims[2].dim_value for dims in caches if len(dims) == 4), default=0)
    if context > held:
        raise BundleError(
            f"the decoder graph's caches hold {held:,} positions, the manifest says {context:,}; export the bundle again"
        )
    chunk = min(chunk, context)
    return {EMBEDDINGS: {1: chunk}, POSITIONS: {1: chunk}, MASK: {1: context}}
