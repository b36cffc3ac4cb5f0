"""What a bundle's stages should take on a machine: the larger of its operations at the peak rate and its bytes at the memory's rate.

A roofline says what a machine allows, not what an engine reaches; runtime/tools/machines.py has the rates.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from runtime.bundle import DECODER, VISION, Bundle
from runtime.core.errors import EngineError, nearest
from runtime.tools.machines import MACHINES, Machine, measured
from runtime.tools.table import table
from runtime.tools.work import Work, decode_work, prefill_work, vision_work

_TEXT = 32  # positions of chat template and question


@dataclass(frozen=True)
class Stage:
    """seconds: predicted; bound: what it waits for, "arithmetic" or "memory"; operations and bytes: of the whole stage."""

    name: str
    seconds: float
    bound: str
    operations: float
    bytes: float


@dataclass(frozen=True)
class Prediction:
    machine: Machine
    stages: list[Stage]

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def predict(bundle: Bundle, name: str) -> Prediction:
    """Stage times on "cpu" (this one, measured now) or a machine of MACHINES; EngineError for another name."""
    if name != "cpu" and name not in MACHINES:
        raise EngineError(f'no machine "{name}"{nearest(name, ["cpu", *MACHINES])}')
    machine = measured() if name == "cpu" else MACHINES[name]
    stages = []
    if bundle.has(VISION):
        stages.append(_stage(f"encode and compress {bundle.manifest.frames} frames", vision_work(bundle), machine))
    if bundle.has(DECODER):
        positions = bundle.manifest.tokens_per_clip + _TEXT
        stages.append(_stage(f"prefill {positions:,} positions", prefill_work(bundle, positions), machine))
        if len(stages) == 2:
            first = [stages[0], stages[1]]
            total = sum(stage.seconds for stage in first)
            stages.append(Stage("time to first token", total, "", sum(s.operations for s in first), sum(s.bytes for s in first)))
        stages.append(_stage("decode one token", decode_work(bundle, positions), machine))
    return Prediction(machine, stages)


def text(prediction: Prediction) -> str:
    """The table for people, with the label that it is a prediction."""
    machine = prediction.machine
    rows = [
        [stage.name, f"{stage.seconds:.3g}", stage.bound, f"{stage.operations / 1e9:,.1f}", f"{stage.bytes / 1e6:,.0f}"]
        for stage in prediction.stages
    ]
    rates = ", ".join(f"{precision} {rate / 1e9:,.0f} GFLOP/s" for precision, rate in machine.rates.items())
    share = "as measured" if machine.reached == 1 else f"of which {machine.reached:.0%} are assumed to be reached"
    return "\n".join(
        [
            f"prediction, not a measurement: {machine.name}, {rates}, {machine.bandwidth / 1e9:,.0f} GB/s, {share}",
            f"({machine.source})",
            table(["stage", "seconds", "bound by", "GFLOP", "MB"], rows, right=(1, 3, 4)),
        ]
    )


def _stage(name: str, work: Work, machine: Machine) -> Stage:
    arithmetic = sum(count / machine.rates[precision] for precision, count in work.operations.items()) / machine.reached
    memory = work.bytes / machine.bandwidth / machine.reached
    bound = "arithmetic" if arithmetic >= memory else "memory"
    return Stage(name, max(arithmetic, memory), bound, sum(work.operations.values()), work.bytes)
