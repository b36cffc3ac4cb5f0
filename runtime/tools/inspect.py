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
class BundleReport:
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
    graphs: list[GraphMemory]
    engines: list[EngineDirectory]
    files: dict[str, int]
    versions: dict[str, str]
    notes: list[str] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def inspect(bundle: Bundle) -> BundleReport:
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
    return BundleReport(
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


def text(facts: BundleReport) -> str:
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


def _engine_line(engine: EngineDirectory) -> str:
    graphs = ", ".join(f"{graph} {size(count)}" for graph, count in engine.graphs.items())
    stale = f"; STALE: {', '.join(engine.stale)} built from another ONNX" if engine.stale else ""
    return f"engine       {engine.directory}: {engine.backend} {engine.version} for {engine.target}: {graphs}{stale}"
