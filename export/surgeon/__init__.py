"""Graph passes: the exporter's ONNX graph -> one that TensorRT takes well, in float32 where it must be, with readable names.

    run_passes(model, graph="vision")        -> (model, [PassReport, …])

A pass is one file with `run(graph) -> int`, the number of rewrites it made, and one line in PASSES. It may also have
`check(graph) -> str`: what now holds, for the report, or an ExportError that says which node breaks it. Passes change structure;
weights are neither read nor copied, so a graph whose weights are external costs its structure's memory.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from runtime.core.errors import ExportError, nearest

if TYPE_CHECKING:
    import onnx

# In this order: names come first, because the passes find `compress` by name and call new nodes after those they replace;
# folding comes before the passes that look for constants.
PASSES: dict[str, str] = {
    "names": "export.surgeon.names",
    "fold": "export.surgeon.fold",
    "layout": "export.surgeon.layout",
    "gathernd": "export.surgeon.gathernd",
    "scatternd": "export.surgeon.scatternd",
    "int64": "export.surgeon.int64",
    "float32_norms": "export.surgeon.float32_norms",
    "join_matmuls": "export.surgeon.join_matmuls",
    "frame_loop": "export.surgeon.frame_loop",
    "fuse_gridpool": "export.surgeon.fuse_gridpool",
    "batch": "export.surgeon.batch",
}
ON_REQUEST = {"join_matmuls", "frame_loop", "fuse_gridpool", "batch"}  # not among the passes of a graph for which none are named


@dataclass(frozen=True)
class PassReport:
    """What one pass did to one graph; goes to the manifest and into the export's output."""

    graph: str
    name: str
    rewrites: int
    note: str

    def as_dict(self) -> dict[str, Any]:
        return {"graph": self.graph, "pass": self.name, "rewrites": self.rewrites, "note": self.note}


def run_passes(
    model: onnx.ModelProto,
    passes: Sequence[str] | None = None,
    *,
    graph: str,
    precision: str | None = None,
    required: Iterable[str] = (),
    directory: Path | None = None,
    compression: str | None = None,
) -> tuple[onnx.ModelProto, list[PassReport]]:
    """Run `passes` (None: all but those ON_REQUEST) over `model`, in the order of PASSES; the given model must not be used afterwards.

    graph: the bundle's name of the graph, e.g. "vision"; precision: "fp32" or "fp16", checked where given;
    required: passes for which zero rewrites are an error; directory: where external data lies, to read small constants.
    compression: the expanded spec of the `compress` nodes, for passes that must know it.
    Raises ExportError for an unknown pass, and where a pass finds the graph not to be what it must be.
    """
    from export.surgeon.graph import graph_from_model, model_from_graph

    required = set(required)
    wanted = [name for name in PASSES if name not in ON_REQUEST] if passes is None else list(passes)
    for name in [*wanted, *required]:
        if name not in PASSES:
            raise ExportError(f'no surgeon pass "{name}"{nearest(name, PASSES)}')
    edited = graph_from_model(model, directory)
    edited.name, edited.compression = graph, compression
    if precision is not None:
        _check_precision(edited, precision)
    reports = []
    for name in sorted(wanted, key=list(PASSES).index):
        module = import_module(PASSES[name])
        rewrites = module.run(edited)
        check = getattr(module, "check", None)
        note = check(edited) if check else ""
        if name in required and not rewrites:
            found = ", ".join(sorted({node.op for node in edited.nodes}))
            raise ExportError(f'{graph}: the pass "{name}" was required and found nothing to rewrite among {found}; {note}')
        reports.append(PassReport(graph, name, rewrites, note))
    return model_from_graph(edited, model), reports


def _check_precision(graph: Any, precision: str) -> None:
    import numpy as np

    halves = sum(tensor.dtype == np.float16 for tensor in graph.tensors().values())
    if bool(halves) != (precision == "fp16"):
        raise ExportError(
            f"{graph.name}: {halves} tensors are float16 in a graph that was to be {precision}; convert the module before tracing"
        )
