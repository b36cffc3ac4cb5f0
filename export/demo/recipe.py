"""How the demo checkpoint is trained, in numbers: steps, batches, rates, and how often which kind of question is asked."""

from __future__ import annotations

from dataclasses import dataclass, replace

from runtime.core.errors import ExportError
from runtime.core.options import check_limits, option

POOLINGS = ("mix", "family")
QUESTIONS = 8  # of a clip in one pass
# How likely a question of a kind is asked, against the others of its clip: what is learned late is asked more often.
WEIGHTS = {
    "color": 0.3,
    "shape": 0.7,
    "direction": 1.5,
    "count": 0.4,
    "order": 1.0,
    "change": 0.6,
    "vanish": 1.0,
    "letter": 1.0,
    "flash": 1.0,
    "where": 0.8,
    "camera": 1.2,
}
# Weight of the squared distance of the tokens' RMS from 1, over all tokens at once: it keeps their common scale, which the LLM's
# normalisation would leave free, where softmax over norms is meaningful, and prefers no token to be larger than another.
SCALE_LOSS = 0.02


@dataclass(frozen=True)
class Stage:
    """`steps` batches of clips of `frames` frames; `tokens` bounds a batch's tokens in the LLM, `clips` its clips; rates: of
    the mix, all equally likely (one that is listed three times is three times as likely); tower: whether the vision tower
    is trained further."""

    frames: int
    steps: int
    tokens: int
    clips: int
    rates: tuple[int, ...] = (1, 2, 4, 8, 16)
    tower: bool = True

    def scaled(self, factor: float) -> Stage:
        return replace(self, steps=max(1, round(self.steps * factor)))


@dataclass(frozen=True)
class Recipe:
    """pooling: what visual tokens go through, "mix" (export/demo/mix.py) or "family"; the joint stages follow the warm-up and
    `polish` follows them: full length again with many uncompressed clips, whose long prompts are what is learned last; rate: of
    learning at most, in the joint stages tower_rate of it for the vision tower, in the polish polish_rate of it; frames: of a
    clip, as the checkpoint says."""

    seed: int = option(0, "seed of the weights and clips", at_least=0)
    pooling: str = option(
        "mix", "what visual tokens go through: a fair mix of reductions, or only the family's pooling", choices=POOLINGS
    )
    warmup_steps: int = 1600
    warmup_pictures: int = 32
    stages: tuple[Stage, ...] = (
        Stage(1, 800, 4000, 24, rates=(1,)),
        Stage(4, 1000, 6000, 32, rates=(1,)),
        Stage(8, 700, 10000, 32, rates=(1, 2, 4)),
        Stage(16, 900, 12000, 24, tower=False),
    )
    polish: Stage = Stage(16, 400, 12000, 24, rates=(1, 1, 1, 2, 4, 8, 16), tower=False)
    rate: float = 1.5e-3
    polish_rate: float = 0.3
    tower_rate: float = 0.3
    threads: int = option(2, "CPU threads", at_least=1)
    frames: int = 16

    def __post_init__(self) -> None:
        check_limits(self, ExportError)

    @property
    def steps(self) -> int:
        return self.warmup_steps + sum(stage.steps for stage in (*self.stages, self.polish))

    def scaled(self, factor: float) -> Recipe:
        """The same recipe with `factor` times the steps of every stage, at least one."""
        if not factor > 0:
            raise ExportError(f"scale {factor:g}; expected more than 0")
        return replace(
            self,
            warmup_steps=max(1, round(self.warmup_steps * factor)),
            stages=tuple(stage.scaled(factor) for stage in self.stages),
            polish=self.polish.scaled(factor),
        )
