"""Training the demo checkpoint from scratch: one recipe in steps, seeded, resumable.

    warm-up    the vision tower and the projector on crowded single pictures (export/demo/warmup.py)
    joint      everything on single pictures and then on clips of 4, 8 and 16 frames, several questions sharing a pass over their clip;
               the visual tokens go through a reduction that is drawn for each batch (export/demo/mix.py), or, with
               `pooling="family"`, always through the family's bilinear pooling
    polish     the last stage's clips again at a lower rate, most of them uncompressed

Each batch is drawn from (seed, stage, step) alone, so that a resumed run sees the batches that it would have seen.
bfloat16 autocast, AdamW.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from export.demo import mix, warmup
from export.demo.packing import LENGTH, Packed, answer_logits, pack, use_blocked_attention
from export.demo.recipe import QUESTIONS, SCALE_LOSS, WEIGHTS, Recipe, Stage
from export.demo.tiny import encoded, make_model, project, save_checkpoint
from export.scenes.draw import make_clip, make_still
from export.scenes.questions import KINDS
from export.scenes.scene import GRID, clip_rng
from runtime.core.errors import ExportError
from runtime.core.files import atomic_directory, atomic_file

REPORT_EVERY = 25
SAVE_EVERY = 100
PARTS = ("warmup", "joint", "polish")  # their places are the numbers of their random streams


@dataclass
class _Batch:
    frames: torch.Tensor  # uint8 [B, T, S, S, 3]
    packed: Packed
    kinds: list[str]  # of the questions, in the order of clips
    reduction: mix.Reduction | None


def _clip_batch(recipe: Recipe, part: str, stages: Sequence[Stage], step: int) -> _Batch:
    """stages: of each step of the part."""
    stage = stages[step]
    rng = clip_rng("train", recipe.seed, PARTS.index(part), step)
    reduction = mix.draw(rng, stage.frames, GRID, GRID, stage.rates) if recipe.pooling == "mix" else None
    tokens = reduction.tokens if reduction else stage.frames * ((GRID + 1) // 2) ** 2
    count = int(np.clip(stage.tokens // (tokens + QUESTIONS * LENGTH), 8, stage.clips))
    clips = [make_still(rng) if stage.frames == 1 else make_clip(rng, stage.frames) for _ in range(count)]
    asked = []
    for clip in clips:
        weights = np.array([WEIGHTS[question.kind] for question in clip.questions])
        chosen = rng.choice(len(weights), min(QUESTIONS, len(weights)), replace=False, p=weights / weights.sum())
        asked.append([clip.questions[n] for n in chosen])
    frames = torch.from_numpy(np.stack([clip.frames for clip in clips]))
    return _Batch(frames, pack(asked, QUESTIONS), [question.kind for one in asked for question in one], reduction)


def _picture_batch(recipe: Recipe, step: int) -> tuple[torch.Tensor, torch.Tensor]:
    return warmup.pictures(clip_rng("train", recipe.seed, PARTS.index("warmup"), step), recipe.warmup_pictures)


class Training:
    """A run of a recipe in `directory`, with its state, its log and at the end `checkpoint/`."""

    def __init__(self, recipe: Recipe, directory: Path, report: Callable[[str], None] = print):
        self.recipe, self.directory, self.report = recipe, directory, report
        torch.set_num_threads(recipe.threads)
        self.model = make_model(recipe.seed)
        use_blocked_attention(self.model)
        self.heads = warmup.Heads(self.model.config.text_config.hidden_size)
        self.done = dict.fromkeys(PARTS, 0)
        self.seconds = 0.0
        self._optimizer_state: dict | None = None
        self.state_file = directory / "state.pt"

    def run(self) -> Path:
        """Train from where the state stands to the end; returns the checkpoint's directory."""
        self.directory.mkdir(parents=True, exist_ok=True)
        if self.state_file.exists():
            self._load()
        self._started = time.monotonic() - self.seconds
        self._warmup()
        self._clips("joint", self.recipe.stages, lambda share: min(1, max(0.02, (1 - share) / 0.5)))
        self._clips("polish", [self.recipe.polish], lambda share: self.recipe.polish_rate * (1 - 0.95 * share))
        self.seconds = time.monotonic() - self._started
        out = self.directory / "checkpoint"
        with atomic_directory(out) as temporary:
            save_checkpoint(self.model, temporary, self.recipe.frames)
        return out

    def _warmup(self) -> None:
        steps = self.recipe.warmup_steps
        if self.done["warmup"] >= steps:
            return
        model = self.model.model
        words = model.get_input_embeddings()
        learning = [model.vision_tower, model.multi_modal_projector, words, self.heads]
        optimizer = self._optimizer([([weight for module in learning for weight in module.parameters()], 1.0)])
        self._restore(optimizer, "warmup")
        for step, (frames, shown) in _batches(partial(_picture_batch, self.recipe), self.done["warmup"], steps):
            self._set_rate(optimizer, min(1, (step + 1) / 50) * (1 - 0.9 * step / steps))
            with torch.autocast("cpu", torch.bfloat16):
                tokens = project(self.model, encoded(self.model, frames))[:, 0]
            loss, right = self.heads(tokens.float(), shown, 2 + step % 2, words.weight)
            self._step(optimizer, loss)
            if (step + 1) % REPORT_EVERY == 0:
                self._log(f"warm-up {step + 1}/{steps}", loss=loss.item(), patches=right)
            self._save(optimizer, "warmup", step + 1, steps)

    def _clips(self, part: str, stages: Sequence[Stage], rate: Callable[[float], float]) -> None:
        """Train everything on clips; rate: the share of the recipe's learning rate when this share of the part is done."""
        of_step = [stage for stage in stages for _ in range(stage.steps)]
        steps = len(of_step)
        if self.done[part] >= steps:
            return
        tower = list(self.model.model.vision_tower.parameters())
        others = [weight for name, weight in self.model.named_parameters() if "vision_tower" not in name]
        optimizer = self._optimizer([(tower, self.recipe.tower_rate), (others, 1.0)])
        self._restore(optimizer, part)
        right, asked, losses = dict.fromkeys(KINDS, 0), dict.fromkeys(KINDS, 0), []
        for step, batch in _batches(partial(_clip_batch, self.recipe, part, of_step), self.done[part], steps):
            self._set_rate(optimizer, min(1, (step + 1) / 50) * rate(step / steps))
            stage = of_step[step]
            with torch.autocast("cpu", torch.bfloat16):
                with torch.set_grad_enabled(stage.tower):
                    patches = encoded(self.model, batch.frames)
                tokens = project(self.model, patches)
                logits, targets = answer_logits(self.model, (batch.reduction or _pool)(tokens), batch.packed)
            loss = functional.cross_entropy(logits, targets)
            scale = tokens.float().square().mean().sqrt()
            self._step(optimizer, loss + SCALE_LOSS * (scale - 1) ** 2)
            losses.append(loss.item())
            hits = (logits.argmax(-1) == targets)[::2].tolist()  # an answer is one word and its end
            for kind, hit in zip(batch.kinds, hits, strict=True):
                right[kind] += hit
                asked[kind] += 1
            if (step + 1) % REPORT_EVERY == 0:
                shares = {kind: right[kind] / max(1, asked[kind]) for kind in KINDS}
                everything = sum(right.values()) / max(1, sum(asked.values()))
                self._log(f"{part} T={stage.frames} {step + 1}/{steps}", loss=float(np.mean(losses)), all=everything, **shares)
                right, asked, losses = dict.fromkeys(KINDS, 0), dict.fromkeys(KINDS, 0), []
            self._save(optimizer, part, step + 1, steps)

    def _optimizer(self, parts: list[tuple[Iterable[torch.nn.Parameter], float]]) -> torch.optim.Optimizer:
        """AdamW over (weights, factor of the learning rate); only matrices decay."""
        groups = []
        for weights, factor in parts:
            for matrices, decay in ((True, 0.03), (False, 0.0)):
                chosen = [weight for weight in weights if (weight.dim() >= 2) == matrices]
                groups.append({"params": chosen, "weight_decay": decay, "factor": factor})
        return torch.optim.AdamW(groups, lr=self.recipe.rate, betas=(0.9, 0.98), fused=True)

    def _set_rate(self, optimizer: torch.optim.Optimizer, share: float) -> None:
        for group in optimizer.param_groups:
            group["lr"] = self.recipe.rate * share * group["factor"]

    def _step(self, optimizer: torch.optim.Optimizer, loss: torch.Tensor) -> None:
        loss.backward()
        torch.nn.utils.clip_grad_norm_([p for group in optimizer.param_groups for p in group["params"]], 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    def _save(self, optimizer: torch.optim.Optimizer, part: str, step: int, steps: int) -> None:
        self.done[part] = step
        if step % SAVE_EVERY and step != steps:
            return
        state = {
            "recipe": asdict(self.recipe),
            "model": self.model.state_dict(),
            "heads": self.heads.state_dict(),
            "optimizer": {"of": part, "state": optimizer.state_dict()},
            "done": self.done,
            "seconds": time.monotonic() - self._started,
        }
        with atomic_file(self.state_file) as temporary:
            torch.save(state, temporary)

    def _load(self) -> None:
        state = torch.load(self.state_file, weights_only=True)
        differing = [
            name for name, value in asdict(self.recipe).items() if name != "threads" and value != state["recipe"].get(name)
        ]
        if differing:
            raise ExportError(f"{self.state_file} is of a run with another {', '.join(differing)}; pass another --out")
        self.model.load_state_dict(state["model"])
        self.heads.load_state_dict(state["heads"])
        self.done, self.seconds = state["done"], state["seconds"]
        self._optimizer_state = state["optimizer"]

    def _restore(self, optimizer: torch.optim.Optimizer, stage: str) -> None:
        if self._optimizer_state and self._optimizer_state["of"] == stage:
            optimizer.load_state_dict(self._optimizer_state["state"])

    def _log(self, where: str, /, **numbers: float) -> None:
        seconds = time.monotonic() - self._started
        line = f"{where}  {seconds:.0f} s  " + " ".join(f"{name} {value:.3f}" for name, value in numbers.items())
        self.report(line)
        with (self.directory / "log.txt").open("a") as file:
            file.write(line + "\n")


def _batches(make: Callable[[int], Any], start: int, stop: int) -> Iterator[tuple[int, Any]]:
    """(step, batch) from `start` on, made by a process beside this one."""
    steps = range(start, stop)
    loader = torch.utils.data.DataLoader(steps, batch_size=None, collate_fn=make, num_workers=1, prefetch_factor=4)
    yield from zip(steps, loader, strict=True)


def _pool(tokens: torch.Tensor) -> torch.Tensor:
    """The family's pooling: [B, T, GRID, GRID, D] -> [B, N, D]."""
    side = (GRID + 1) // 2
    return mix.resize(tokens.flatten(0, 1), side, side, "bilinear").reshape(tokens.shape[0], -1, tokens.shape[-1])
