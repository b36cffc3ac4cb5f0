"""Training the demo checkpoint from scratch: one recipe in steps, seeded, resumable.

    warm-up    the vision tower and the projector on crowded single pictures (export/demo/warmup.py)
    joint      everything on single pictures and then on clips of 4, 8 and 16 frames, several questions sharing a pass over their clip; the visual tokens
               go through a reduction that is drawn for each batch (export/demo/mix.py), or, with `pooling="family"`, always
               through the family's bilinear pooling
    polish     the last stage's clips again at a lower rate, most of them uncompressed

Each batch is drawn from (seed, stage, step) alone, so that a resumed run sees the batches that it would have seen.
bfloat16 autocast, AdamW.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from export.demo import mix, warmup
from export.demo.packing import LENGTH, Packed, answer_logits, pack, use_blocked_attention
from export.demo.recipe import QUESTIONS, SCALE_LOSS, WEIGHTS, Recipe
from export.demo.tiny import encoded, make_model, project, save_checkpoint
from export.scenes.draw import make_clip, make_still
from export.scenes.questions import KINDS
from export.scenes.scene import GRID, clip_rng
from runtime.core.errors import ExportError
from runtime.core.files import atomic_directory, atomic_file

REPORT_EVERY = 25
SAVE_EVERY = 100


@dataclass
class _Batch:
    frames: torch.Tensor  # uint8 [B, T, S, S, 3]
    packed: Packed
    kinds: list[str]  # of the questions, in the order of clips
    reduction: mix.Reduction | None


class _Batches(torch.utils.data.Dataset):
    """Batch n of stages that follow each other; part: 1 for the joint stages, 2 for the polish, with separate random streams."""

    def __init__(self, recipe: Recipe, part: int):
        self.recipe, self.part = recipe, part
        self.stages = [stage for stage in (recipe.stages if part == 1 else (recipe.polish,)) for _ in range(stage.steps)]

    def __len__(self) -> int:
        return len(self.stages)

    def __getitem__(self, step: int) -> _Batch:
        recipe, stage = self.recipe, self.stages[step]
        rng = clip_rng("train", recipe.seed, self.part, step)
        reduction = mix.draw(rng, stage.frames, GRID, GRID, stage.rates) if recipe.pooling == "mix" else None
        tokens = reduction.tokens if reduction else stage.frames * ((GRID + 1) // 2) ** 2
        count = int(np.clip(stage.tokens // (tokens + QUESTIONS * LENGTH), 8, stage.clips))
        clips = [make_still(rng) if stage.frames == 1 else make_clip(rng, stage.frames) for _ in range(count)]
        asked = []
        for clip in clips:
            weights = np.array([WEIGHTS[question.kind] for question in clip.questions])
            size = min(QUESTIONS, len(weights))
            chosen = rng.choice(len(weights), size, replace=False, p=weights / weights.sum())
            asked.append([clip.questions[n] for n in chosen])
        frames = torch.from_numpy(np.stack([clip.frames for clip in clips]))
        return _Batch(frames, pack(asked, QUESTIONS), [question.kind for one in asked for question in one], reduction)


class _Pictures(torch.utils.data.Dataset):
    """Batch n of the warm-up."""

    def __init__(self, recipe: Recipe):
        self.recipe = recipe

    def __len__(self) -> int:
        return self.recipe.warmup_steps

    def __getitem__(self, step: int) -> tuple[torch.Tensor, torch.Tensor]:
        return warmup.pictures(clip_rng("train", self.recipe.seed, 0, step), self.recipe.warmup_pictures)


class Training:
    """A run of a recipe in `directory`, with its state, its log and at the end `checkpoint/`."""

    def __init__(self, recipe: Recipe, directory: Path, report: Callable[[str], None] = print):
        self.recipe, self.directory, self.report = recipe, directory, report
        torch.set_num_threads(recipe.threads)
        self.model = make_model(recipe.seed)
        use_blocked_attention(self.model)
        self.heads = warmup.Heads(self.model.config.text_config.hidden_size)
        self.done = {"warmup": 0, "joint": 0, "polish": 0}
        self.seconds = 0.0
        self._optimizer_state: dict | None = None

    @property
    def state_file(self) -> Path:
        return self.directory / "state.pt"

    def run(self) -> Path:
        """Train from where the state stands to the end; returns the checkpoint's directory."""
        self.directory.mkdir(parents=True, exist_ok=True)
        if self.state_file.exists():
            self._load()
        self._started = time.monotonic() - self.seconds
        self._warmup()
        self._clips("joint", _Batches(self.recipe, 1), lambda share: min(1, max(0.02, (1 - share) / 0.5)))
        self._clips("polish", _Batches(self.recipe, 2), lambda share: self.recipe.polish_rate * (1 - 0.95 * share))
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
        for step, (frames, shown) in self._batches(_Pictures(self.recipe), self.done["warmup"]):
            self._set_rate(optimizer, min(1, (step + 1) / 50) * (1 - 0.9 * step / steps))
            with torch.autocast("cpu", torch.bfloat16):
                tokens = project(self.model, encoded(self.model, frames))[:, 0]
            loss, right = self.heads(tokens.float(), shown, 2 + step % 2, words.weight)
            self._step(optimizer, loss)
            if (step + 1) % REPORT_EVERY == 0:
                self._log(f"warm-up {step + 1}/{steps}", loss=loss.item(), patches=right)
            self._save(optimizer, "warmup", step + 1, steps)

    def _clips(self, part: str, batches: _Batches, rate: Callable[[float], float]) -> None:
        """Train everything on clips; rate: the share of the recipe's learning rate when this share of the part is done."""
        steps = len(batches)
        if self.done[part] >= steps:
            return
        tower = list(self.model.model.vision_tower.parameters())
        others = [weight for name, weight in self.model.named_parameters() if "vision_tower" not in name]
        optimizer = self._optimizer([(tower, self.recipe.tower_rate), (others, 1.0)])
        self._restore(optimizer, part)
        right, asked, losses = dict.fromkeys(KINDS, 0), dict.fromkeys(KINDS, 0), []
        for step, batch in self._batches(batches, self.done[part]):
            self._set_rate(optimizer, min(1, (step + 1) / 50) * rate(step / steps))
            stage = batches.stages[step]
            with torch.autocast("cpu", torch.bfloat16):
                with torch.set_grad_enabled(stage.tower):
                    patches = encoded(self.model, batch.frames)
                tokens = project(self.model, patches)
                logits, targets = answer_logits(self.model, self._reduce(tokens, batch.reduction), batch.packed)
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

    def _reduce(self, tokens: torch.Tensor, reduction: mix.Reduction | None) -> torch.Tensor:
        if reduction:
            return reduction(tokens)
        side = (GRID + 1) // 2
        frames = tokens.flatten(0, 1).permute(0, 3, 1, 2)
        pooled = functional.interpolate(frames, size=(side, side), mode="bilinear")
        return pooled.flatten(2).transpose(1, 2).reshape(tokens.shape[0], -1, tokens.shape[-1])

    def _batches(self, dataset: Any, start: int) -> Iterator[tuple[int, Any]]:
        """(number, batch) from `start` on, drawn by a process beside this one."""
        numbers = list(range(start, len(dataset)))
        loader = torch.utils.data.DataLoader(
            torch.utils.data.Subset(dataset, numbers), batch_size=None, num_workers=1, prefetch_factor=4
        )
        yield from zip(numbers, loader, strict=True)

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
        now = json.loads(json.dumps(asdict(self.recipe) | {"threads": 0}))
        then = json.loads(json.dumps(state["recipe"] | {"threads": 0}))
        if now != then:
            differing = ", ".join(name for name in now if now[name] != then.get(name))
            raise ExportError(f"{self.state_file} is of a run with another {differing}; pass another --out")
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
