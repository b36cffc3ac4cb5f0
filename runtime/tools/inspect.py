"""What a bundle is, what a clip costs in tokens, and the memory that it will need: read from its files, nothing is loaded.

N visual tokens, T frames.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from runtime.bundle import DECODER, VISION, VISION_COMPRESSOR, VISION_ENCODER, VISION_LOOP, Bundle
from runtime.bundle.manifest import Checkpoint, Compression, Preprocessing
from runtime.engine.trt_records import BUILD, ENGINES, read_record
from runtime.media.preprocess import Preprocessor
from runtime.tools.memory import GraphMemory, bundle_memory, decoder_activations_on_gpu, graph_memory, server_memory
from runtime.tools.table import size, table


@dataclass(frozen=True)
class BuiltEngines:
    """A directory of engines and what its build.json says."""

    directory: str
    backend: str
    version: str
    target: str
    precision: str
    graphs: dict[str, int]  # {graph: bytes}
    stale: tuple[str, ...]  # graphs that were built from another ONNX


@dataclass(frozen=True)
class BundleReport:
    """Everything that `text` prints; bytes and tokens are whole numbers.

    input    of the vision encoder, in words
    budget   {"patch_tokens", "visual_tokens", "ratio", "max_context", "prompt_room"}: tokens of a clip and what is left of
             the context for question and answer
    memory   {part: bytes}; activations and the total twice where a GPU runs more at once than a CPU: the vision encoder where the
             bundle has the graph that a CPU runs frame by frame, and the LLM's prefill; of a split bundle only what runs,
             encoder and compressor with the clip's features
    serve    {part: bytes} that a server needs instead of the one KV cache, and at most for clips
    """

    bundle: str
    family: str
    checkpoint: Checkpoint
    compression: Compression
    frames: int
    grid: tuple[int, int]
    input: str
    precision: str
    llm_precision: str
    quantized: dict[str, str]  # {graph: what quantization did to it, in a line}
    opset: int
    budget: dict[str, Any]
    memory: dict[str, int]
    serve: dict[str, int]
    graphs: list[GraphMemory]
    engines: list[BuiltEngines]
    files: dict[str, int]
    versions: dict[str, str]
    notes: list[str] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def inspect(bundle: Bundle, batch: int = 1, cache: int = 0) -> BundleReport:
    """Read an opened bundle; its graphs' structure is read, their weights are not.

    batch, cache: of a server, see runtime/server/options.py.
    """
    manifest = bundle.manifest
    known = (VISION, VISION_LOOP, VISION_ENCODER, VISION_COMPRESSOR, DECODER)
    graphs = [graph_memory(bundle, graph) for graph in known if bundle.has(graph)]
    budget: dict[str, Any] = {
        "patch_tokens": manifest.patch_tokens,
        "visual_tokens": manifest.tokens_per_clip,
        "ratio": round(manifest.patch_tokens / manifest.tokens_per_clip, 2),
    }
    if manifest.limits:
        context = manifest.limits.max_context
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
        quantized={one.graph: f"{one.name}: {one.note}" for one in manifest.report if one.name.startswith("quantize")},
        opset=manifest.opset,
        budget=budget,
        memory=bundle_memory(bundle, graphs, decoder_activations_on_gpu(bundle)),
        serve=server_memory(bundle, batch, cache),
        graphs=graphs,
        engines=_built_engines(bundle),
        files={name: entry.size for name, entry in manifest.files.items()},
        versions=manifest.versions,
        notes=[f"{graph.graph}: {graph.note}" for graph in graphs if graph.note],
    )


def _input(preprocessing: Preprocessing) -> str:
    processor = Preprocessor(preprocessing)
    height, width = processor.frames or processor.size
    return f"{'uint8 frames' if processor.frames else 'pixel values'} of {height}×{width}"


def text(report: BundleReport) -> str:
    """The report for people."""
    compression = report.compression
    preset = f" ({compression.preset})" if compression.preset != compression.spec else ""
    budget = report.budget
    lines = [
        f"bundle       {report.bundle}",
        f"model        {report.family}, checkpoint {report.checkpoint.id} (sha256 {report.checkpoint.sha256[:12]}…)",
        f"compression  {compression.spec}{preset}, {compression.place}",
        f"graphs       vision {report.precision}, LLM {report.llm_precision}, opset {report.opset}, {report.frames} frames of {report.grid[0]}×{report.grid[1]} patches",
        f"input        {report.input}",
        *(f"{graph:<12} {note}" for graph, note in report.quantized.items()),
        f"written by   {', '.join(f'{tool} {version}' for tool, version in report.versions.items())}",
        "",
        f"a clip       {budget['patch_tokens']:,} patch tokens → {budget['visual_tokens']:,} visual tokens ({budget['ratio']:.1f}:1)",
    ]
    if "max_context" in budget:
        lines.append(f"context      {budget['max_context']:,} positions, {budget['prompt_room']:,} left for question and answer")
    lines += ["", table(["memory", "bytes"], [[part, size(count)] for part, count in report.memory.items()], right=(1,))]
    lines += report.notes
    held = ", ".join(f"{part} {size(count)}" for part, count in report.serve.items())
    lines.append(f"a server     {held} (--batch, --cache-mib)")
    for graph in report.graphs:
        most = sorted(graph.operators.items(), key=lambda item: (-item[1], item[0]))
        operators = ", ".join(f"{name} {count}" for name, count in most)
        lines += ["", f"{graph.graph}: {sum(graph.operators.values())} nodes: {operators}"]
    lines += ["", *(_engine_line(engine) for engine in report.engines)] if report.engines else ["", "engines      none built"]
    files = [[name, size(count)] for name, count in report.files.items()]
    return "\n".join([*lines, "", table([f"{len(files)} files", size(sum(report.files.values()))], files, right=(1,))])


def _built_engines(bundle: Bundle) -> list[BuiltEngines]:
    """By directory; one whose record can't be read is left out: the engine loader says why when it is asked for it."""
    found = []
    for file in sorted((bundle.path / ENGINES).glob(f"*/{BUILD}")):
        record = read_record(file.parent)
        if record is None:
            continue
        entries = record["graphs"]
        current = {graph: bundle.has(graph) and bundle.sha256(graph) for graph in entries}
        found.append(
            BuiltEngines(
                directory=file.parent.relative_to(bundle.path).as_posix(),
                **{name: str(record.get(name, "?")) for name in ("backend", "version", "target", "precision")},
                graphs={graph: entry["size"] for graph, entry in entries.items()},
                stale=tuple(graph for graph, entry in entries.items() if entry["onnx_sha256"] != current[graph]),
            )
        )
    return found


def _engine_line(engine: BuiltEngines) -> str:
    graphs = ", ".join(f"{graph} {size(count)}" for graph, count in engine.graphs.items())
    stale = f"; STALE: {', '.join(engine.stale)} built from another ONNX" if engine.stale else ""
    return f"engine       {engine.directory}: {engine.backend} {engine.version} for {engine.target}: {graphs}{stale}"
