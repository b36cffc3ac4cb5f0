"""What was quantised, layer by layer, and the errors: the bundle's quantization.json."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from runtime.core.files import atomic_file

FILE = "quantization.json"


@dataclass(frozen=True)
class LayerReport:
    """layer: the MatMul's name; precision: of its weights; error: its relative error in the lowest precision that was tried;
    equalized: whether its input's channels were equalized."""

    layer: str
    precision: str
    error: float
    equalized: bool = False


@dataclass(frozen=True)
class Report:
    """error: relative error of the component's output (features, or logits of the last position) on held-out clips; budget: the largest
    that is allowed; calibration: what the ranges were measured on, or the errors where there are no ranges."""

    precision: str
    error: float
    budget: float
    calibration: str
    layers: list[LayerReport]

    @property
    def lowered(self) -> int:
        """How many layers are in the precision that was asked for."""
        return sum(layer.precision == self.precision for layer in self.layers)

    def note(self) -> str:
        """One line."""
        raised = [layer for layer in self.layers if layer.precision != self.precision]
        text = f"relative error {self.error:.4f} on clips kept apart, {self.budget:g} allowed"
        if raised:
            worst = max(raised, key=lambda layer: layer.error)
            text += f"; {len(raised)} of {len(self.layers)} layers in higher precision, the worst {worst.layer} ({worst.error:.3f})"
        return text


def write(directory: Path, reports: Mapping[str, Report]) -> None:
    """Write {graph: report} to `directory`."""
    values: dict[str, Any] = {graph: asdict(report) for graph, report in reports.items()}
    with atomic_file(directory / FILE) as temporary:
        temporary.write_text(json.dumps(values, indent=1))
