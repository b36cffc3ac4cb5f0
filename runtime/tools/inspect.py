"""What a bundle is, what a clip costs in tokens, and the memory that it will need: read from its files, nothing is loaded.

Memory by graph: weights (external data included), and activations, the largest sum of tensors that are alive at once when
the nodes run in the graph's order (runtime/tools/liveness.py). KV cache = 2 * layers * kv_heads * head_dim * max_context *
bytes of a value. Engines may fuse (less) or keep a second, rearranged copy of weights (more): this is for sizing a device.

N visual tokens, T frames.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from runtime.bundle import DECODER, VISION, VISION_COMPRESSOR, VISION_ENCODER, VISION_LOOP, Bundle
from runtime.bundle.graph_file import read_graph
from runtime.core.errors import BundleError
from runtime.llm.step import GPU_PREFILL_CHUNK, PREFILL_CHUNK
from runtime.media.preprocess import Preprocessor
from runtime.server.options import ServerOptions
from runtime.tools.table import size, table

if TYPE_CHECKING:
    from onnx import ModelProto

    from runtime.tools.liveness import Peak

_ITEMSIZE = {"fp32": 4, "fp16": 2, "int8": 4, "int4": 4}  # of activations


@dataclass(frozen=True)
class GraphFacts:
    """nodes by operator; bytes of weights and of activations; note: how the activations were counted."""

    graph: str
    operators: dict[str, int]
    weights: int
    activations: int
    note: str = ""


@dataclass(frozen=True)
class EngineFacts:
    """A built engine directory and what its build.json says."""

    directory: str
    backend: str
    version: str
    target: str
    precision: str
    graphs: dict[str, int]  # {graph: bytes}
    stale: tuple[str, ...]  # graphs that were built from another ONNX


@dataclass(frozen=True)
class BundleFacts:
    """Everything that `text` prints; bytes and tokens are whole numbers.

    input    what the vision half takes, in words
    budget   {"patch_tokens", "visual_tokens", "ratio", "max_context", "prompt_room"}: tokens of a clip and what is left of
             the context for question and answer
    memory   {part: bytes}; activations and the total twice where a GPU runs more at once than a CPU: the vision half where the
             bundle has the graph that a CPU runs frame by frame, and the LLM half's prefill; of a split bundle only what runs,
             encoder and compressor with the clip's features
    serve    {part: bytes} that `serve` with its default options needs instead of the one KV cache, and at most for clips
    """

    bundle: str
    family: str
    checkpoint: dict[str, str]
    compression: dict[str, str]
    frames: int
    grid: list[int]
    input: str
    precision: str
    llm_precision: str
    quantized: dict[str, str]  # {graph: what quantisation did to it, in a line}
    opset: int
    budget: dict[str, Any]
    memory: dict[str, int]
    serve: dict[str, int]
    graphs: list[GraphFacts]
    engines: list[EngineFacts]
    files: dict[str, int]
    versions: dict[str, str]
    notes: list[str] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def inspect(bundle: Bundle) -> BundleFacts:
    """Facts of an opened bundle; its graphs' structure is read, their weights are not."""
    manifest = bundle.manifest
    known = (VISION, VISION_LOOP, VISION_ENCODER, VISION_COMPRESSOR, DECODER)
    graphs = [_graph(bundle, graph) for graph in known if f"{graph}.onnx" in manifest.files]
    budget: dict[str, Any] = {
        "patch_tokens": manifest.patch_tokens,
        "visual_tokens": manifest.tokens_per_clip,
        "ratio": round(manifest.patch_tokens / manifest.tokens_per_clip, 2),
    }
    if manifest.limits:
        context = manifest.limits["max_context"]
        budget |= {"max_context": context, "prompt_room": context - manifest.tokens_per_clip}
    return BundleFacts(
        bundle=str(bundle.path),
        family=manifest.family,
        checkpoint=manifest.checkpoint,
        compression=manifest.compression,
        frames=manifest.frames,
        grid=manifest.grid,
        input=_input(manifest.preprocessing),
        precision=manifest.precision,
        llm_precision=manifest.llm_precision,
        quantized={one["graph"]: f"{one['pass']}: {one['note']}" for one in manifest.report if one["pass"].startswith("quantize")},
        opset=manifest.opset,
        budget=budget,
        memory=_memory(bundle, graphs, _decoder_on_gpu(bundle)),
        serve=_serve(bundle),
        graphs=graphs,
        engines=_engines(bundle),
        files={name: entry["size"] for name, entry in manifest.files.items()},
        versions=manifest.versions,
        notes=[f"{graph.graph}: {graph.note}" for graph in graphs if graph.note],
    )


def _input(preprocessing: dict[str, Any]) -> str:
    processor = Preprocessor(preprocessing)
    height, width = processor.frames or processor.size
    return f"{'uint8 frames' if processor.frames else 'pixel values'} of {height}×{width}"


def kv_cache_bytes(bundle: Bundle) -> int:
    """Bytes of one conversation's cache; 0 without an LLM."""
    llm, manifest = bundle.manifest.llm, bundle.manifest
    if not llm:
        return 0
    values = 2 * llm["layers"] * llm["kv_heads"] * llm["head_dim"] * manifest.limits["max_context"]
    return values * _ITEMSIZE[manifest.llm_precision]


def _serve(bundle: Bundle) -> dict[str, int]:
    options = ServerOptions()
    caches = {f"KV caches of {options.batch} answers": options.batch * kv_cache_bytes(bundle)} if bundle.has_llm else {}
    return caches | {"kept visual tokens, at most": options.cache}


def text(facts: BundleFacts) -> str:
    """The report for people."""
    compression = facts.compression
    preset = f" ({compression['preset']})" if compression["preset"] != compression["spec"] else ""
    budget = facts.budget
    lines = [
        f"bundle       {facts.bundle}",
        f"model        {facts.family}, checkpoint {facts.checkpoint['id']} (sha256 {facts.checkpoint['sha256'][:12]}…)",
        f"compression  {compression['spec']}{preset}, {compression['place']}",
        f"graphs       vision {facts.precision}, LLM {facts.llm_precision}, opset {facts.opset}, {facts.frames} frames of {facts.grid[0]}×{facts.grid[1]} patches",
        f"input        {facts.input}",
        *(f"{graph:<12} {note}" for graph, note in facts.quantized.items()),
        f"written by   {', '.join(f'{tool} {version}' for tool, version in facts.versions.items())}",
        "",
        f"a clip       {budget['patch_tokens']:,} patch tokens → {budget['visual_tokens']:,} visual tokens ({budget['ratio']:.1f}:1)",
    ]
    if "max_context" in budget:
        lines.append(f"context      {budget['max_context']:,} positions, {budget['prompt_room']:,} left for question and answer")
    lines += ["", table(["memory", "bytes"], [[part, size(count)] for part, count in facts.memory.items()], right=(1,))]
    lines += facts.notes
    lines.append(f"a server     {', '.join(f'{part} {size(count)}' for part, count in facts.serve.items())} (--batch, --cache-mib)")
    for graph in facts.graphs:
        most = sorted(graph.operators.items(), key=lambda item: (-item[1], item[0]))
        lines += [
            "",
            f"{graph.graph}: {sum(graph.operators.values())} nodes: {', '.join(f'{name} {count}' for name, count in most)}",
        ]
    lines += ["", *(_engine_line(engine) for engine in facts.engines)] if facts.engines else ["", "engines      none built"]
    total = sum(facts.files.values())
    lines += [
        "",
        table([f"{len(facts.files)} files", size(total)], [[name, size(count)] for name, count in facts.files.items()], (1,)),
    ]
    return "\n".join(lines)


def _graph(bundle: Bundle, graph: str) -> GraphFacts:
    path = bundle.model(graph)
    shared = bundle.data_files(graph) if graph != VISION_COMPRESSOR else []  # counted with the encoder
    on_disk = sum(bundle.manifest.files[name]["size"] for name in (f"{graph}.onnx", *shared))
    try:
        from runtime.tools import liveness

        model, peak = _loaded(bundle, graph, PREFILL_CHUNK)
    except ImportError:
        return GraphFacts(graph, {}, on_disk, 0, 'activations are not counted: pip install "onnx" to read the graphs')
    note = f"{peak.unknown} tensors of unknown size are left out of its activations" if peak.unknown else ""
    return GraphFacts(graph, liveness.operators(path), liveness.weights(model), peak.bytes, note)


def _decoder_on_gpu(bundle: Bundle) -> int:
    """Activations of the LLM half in the longer pieces that a GPU prefills; 0 without one, or where they are not counted."""
    if not bundle.has_llm:
        return 0
    try:
        return _loaded(bundle, DECODER, GPU_PREFILL_CHUNK)[1].bytes
    except ImportError:
        return 0


def _loaded(bundle: Bundle, graph: str, chunk: int) -> tuple[ModelProto, Peak]:
    """A graph's structure with the sizes of a prefill of `chunk` positions a run, and what it needs at one time."""
    from runtime.tools import liveness

    model = liveness.load(bundle.model(graph), _sizes(bundle, graph, chunk))
    return model, liveness.peak(model, {name for name in liveness.inputs(model) if name.startswith("past_key_values.")})


def _sizes(bundle: Bundle, graph: str, chunk: int = PREFILL_CHUNK) -> dict[str, dict[int, int]]:
    """{input: {axis: size}} of the dynamic axes at their largest: a full prefill chunk that reads the whole cache."""
    if graph != DECODER:
        return {}
    context = bundle.manifest.limits["max_context"]
    held = _positions(read_graph(bundle.model(graph)))
    if context > held:
        raise BundleError(
            f"the decoder graph's caches hold {held:,} positions, the manifest says {context:,}; export the bundle again"
        )
    chunk = min(chunk, context)
    return {"inputs_embeds": {1: chunk}, "position_ids": {1: chunk}, "attention_mask": {1: context}}


def _positions(decoder: ModelProto) -> int:
    """How many positions its caches [1, kv heads, positions, head dim] hold; 0 where it has none."""
    caches = [value.type.tensor_type.shape.dim for value in decoder.graph.input if value.name.startswith("past_key_values.")]
    return min((dims[2].dim_value for dims in caches if len(dims) == 4), default=0)


def _memory(bundle: Bundle, graphs: list[GraphFacts], decoder_on_gpu: int = 0) -> dict[str, int]:
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
        memory[f"{DECODER} activations, {GPU_PREFILL_CHUNK:,} positions at a time on a GPU"] = decoder_on_gpu
        on_gpu += decoder_on_gpu - found[DECODER].activations
    if looped is None:
        return memory | {"total": on_cpu} | ({"total on a GPU": on_gpu} if on_gpu != on_cpu else {})
    on_cpu += looped.activations - found[VISION].activations
    frame_by_frame = {f"{VISION} activations, frame by frame on a CPU": looped.activations}
    return memory | frame_by_frame | {"total on a GPU": on_gpu, "total on a CPU": on_cpu}


def _engines(bundle: Bundle) -> list[EngineFacts]:
    found = []
    for file in sorted((bundle.path / "engines").glob("*/build.json")):
        record = _read(file)
        if record is None:
            continue
        entries = record["graphs"]
        current = {graph: f"{graph}.onnx" in bundle.manifest.files and bundle.sha256(graph) for graph in entries}
        found.append(
            EngineFacts(
                directory=file.parent.relative_to(bundle.path).as_posix(),
                **{name: str(record.get(name, "?")) for name in ("backend", "version", "target", "precision")},
                graphs={graph: entry["size"] for graph, entry in entries.items()},
                stale=tuple(graph for graph, entry in entries.items() if entry["onnx_sha256"] != current[graph]),
            )
        )
    return found


def _read(file: Path) -> dict[str, Any] | None:
    """A build.json; None for one that this runtime can't read (the engine loader says why when it is asked for it)."""
    try:
        record = json.loads(file.read_text())
        return record if all({"size", "onnx_sha256"} <= entry.keys() for entry in record["graphs"].values()) else None
    except (OSError, ValueError, KeyError, AttributeError, TypeError):
        return None


def _engine_line(engine: EngineFacts) -> str:
    graphs = ", ".join(f"{graph} {size(count)}" for graph, count in engine.graphs.items())
    stale = f"; STALE: {', '.join(engine.stale)} built from another ONNX" if engine.stale else ""
    return f"engine       {engine.directory}: {engine.backend} {engine.version} for {engine.target}: {graphs}{stale}"
