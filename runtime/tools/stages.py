"""A bundle's vision graph with its stages as outputs, for the tools that need them: parity and plot.

The stages that `manifest.stages` names are tensors of `vision.onnx`; here they become outputs of the graph, in memory: the
file stays as it is and its external weights are not read twice. Only ONNX Runtime can do that; a built engine has one output.

T frames, H, W patch rows and columns, C encoder width, D hidden, N visual tokens.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from runtime.bundle import VISION, Bundle
from runtime.bundle.graph_file import read_graph
from runtime.core.errors import BundleError
from runtime.engine import EngineOptions
from runtime.engine.onnx import OnnxEngine

VISUAL_TOKENS = "visual_tokens"  # the vision graph's output, the last stage
_COMPRESSION = "compress/"  # begins the names of the stages that compress


@dataclass(frozen=True)
class Stages:
    """tensors: {stage: array} in the graph's order; ranks: {stage: rank} of all stages of the manifest."""

    tensors: dict[str, np.ndarray]
    ranks: dict[str, int]

    @property
    def selected(self) -> frozenset[str]:
        """Stages whose rows are a choice: the first compression stage that leaves no grid, and all after it."""
        names = list(self.ranks)
        first = next((at for at, name in enumerate(names) if name.startswith(_COMPRESSION) and self.ranks[name] == 2), len(names))
        return frozenset(names[first:])


def first_compression(names: Sequence[str]) -> int:
    """The index of the first compression stage among the stages' names; 0 where there is none."""
    return next((at for at, name in enumerate(names) if name.startswith(_COMPRESSION)), 0)


def run_stages(
    bundle: Bundle, pixel_values: np.ndarray, options: EngineOptions = EngineOptions(), names: Iterable[str] | None = None
) -> Stages:
    """Run pixel_values [T, 3, h, w] float32 through ONNX Runtime and keep the outputs of the stages `names` (None for all)."""
    path = bundle.model(VISION)
    model = read_graph(path, inline=True)  # compression may be a function, for a plugin to replace
    # a tensor of an inlined function has the number of the call behind its name
    written = {name.partition("__")[0]: name for node in model.graph.node for name in node.output}
    already = {output.name for output in model.graph.output}
    shown = {}
    for stage in bundle.manifest.stages:
        if stage.graph != VISION:
            continue
        if stage.tensor not in written:
            named = f'"{stage.tensor}", which the manifest names for {stage.name}'
            raise BundleError(f"{path} has no tensor {named}; export the bundle again")
        tensor = shown[stage.name] = written[stage.tensor]
        if tensor not in already:  # ONNX Runtime infers type and shape of an output that has only a name
            model.graph.output.add(name=tensor)
            already.add(tensor)
    engine = OnnxEngine.load(model.SerializeToString(), options, path.parent)
    try:
        (spec,) = engine.inputs
        outputs = engine.run({spec.name: pixel_values.astype(spec.dtype, copy=False)})
        ranks = {output.name: len(output.shape) for output in engine.outputs}
    finally:
        engine.close()
    wanted = shown if names is None else names
    return Stages({name: outputs[shown[name]] for name in wanted}, {name: ranks[tensor] for name, tensor in shown.items()})
