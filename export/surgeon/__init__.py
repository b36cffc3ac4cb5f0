"""Graph passes: the exporter's ONNX graph -> one with readable names that TensorRT runs well.

    run_passes(model, graph="vision")        -> (model, [PassReport, …])

torch's exporter has folded constants and merged equal nodes already. A pass is one file with `run(graph, context) -> int`, the number
of rewrites it made, and its name in PASSES. It may also have `check(graph, context) -> str`: a note for the report, or an ExportError
that names the node at fault. Passes change structure; weights are neither read nor copied, so a graph whose weights are external costs
its structure's memory.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from runtime.bundle.manifest import PassReport
from runtime.core.errors import ExportError, nearest

if TYPE_CHECKING:
    import onnx

# In this order: names come first, because the passes find `compress` by name and call new nodes after those they replace.
PASSES = ("names", "int64", "float32", "join_matmuls", "frame_loop", "fuse_gridpool", "batch")
ON_REQUEST = {"join_matmuls", "frame_loop", "fuse_gridpool", "batch"}  # run only where they are named


def run_passes(
    model: onnx.ModelProto,
    passes: Sequence[str] | None = None,
    *,
    graph: str,
    precision: str | None = None,
    required: Iterable[str] = (),
    directory: Path | None = None,
    compression: str = "",
) -> tuple[onnx.ModelProto, list[PassReport]]:
    """Run `passes` (None: all but those ON_REQUEST) over `model`, in the order of PASSES; `model` must not be used afterwards.

    graph: the bundle's name of the graph, e.g. "vision"; precision: "fp32" or "fp16", checked where it is not None;
    required: passes for which zero rewrites are an error; directory: of the model's external data, to read small constants;
    compression: the expanded spec of the `compress` nodes, for passes that need it.
    Raises ExportError for an unknown pass, and where a pass's check fails.
    """
    from export.surgeon.graph import Context, graph_from_model, model_from_graph

    required = set(required)
    wanted = [name for name in PASSES if name not in ON_REQUEST] if passes is None else list(passes)
    for name in [*wanted, *required]:
        if name not in PASSES:
            raise ExportError(f'no surgeon pass "{name}"{nearest(name, PASSES)}')
    edited = graph_from_model(model, directory)
    edited.name = graph
    context = Context(model, compression)
    if precision is not None:
        _check_precision(edited, precision)
    reports = []
    for name in sorted(wanted, key=PASSES.index):
        module = import_module(f"export.surgeon.{name}")
        rewrites = module.run(edited, context)
        note = module.check(edited, context) if hasattr(module, "check") else ""
        if name in required and not rewrites:
            found = ", ".join(sorted({node.op for node in edited.nodes}))
            raise ExportError(f'{graph}: the pass "{name}" was required and found nothing to rewrite among {found}; {note}')
        reports.append(PassReport(graph, name, rewrites, note))
    return model_from_graph(edited, model), reports


def _check_precision(graph: Any, precision: str) -> None:
    import numpy as np

    count = sum(tensor.dtype == np.float16 for tensor in graph.tensors().values())
    if bool(count) != (precision == "fp16"):
        raise ExportError(
            f"{graph.name}: {count} tensors are float16; expected a {precision} graph, convert the module before tracing"
        )
