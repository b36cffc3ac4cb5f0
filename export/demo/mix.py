"""What the visual tokens go through while the demo model is trained: a draw from families of reductions, none of which is a compared method.

First a rate is drawn, each of 1, 2, 4, 8 and 16 to one equally often (shorter clips, which come first, only have the lower ones), then
reductions until one comes out within a factor of sqrt(2) of it:

    over time    nothing | every s-th frame | mean of s frames | some frames overwritten by 2 x 2 summaries of others
    over space   nothing | bilinear resize to any smaller grid | windows, weighted by softmax(t * norm)
                 with t = 0, t > 0 or t < 0 equally often
    selection    nothing | a share of the tokens, of each frame or of the clip, by random scores, high norm, low norm,
                 unlikeness to the frame before or unlikeness to the clip's mean

The choices of a line are equally likely, and so are the signs: for a model trained on them, tokens that were averaged, weighted,
resized, dropped and moved are in-distribution at all these rates, and high norms mean no more than low ones.

B clips, T frames, H, W patch rows and columns, D hidden.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch.nn import functional

RATES = (1, 2, 4, 8, 16)


@dataclass(frozen=True)
class Reduction:
    """A draw for clips of T x H x W tokens; `tokens` come out of each."""

    tokens: int
    time: str  # none, stride, mean or grid
    step: int  # of stride and mean
    phase: int
    grids: tuple[tuple[int, ...], ...]  # frames that are tiled, of which the last is overwritten
    space: str  # none, resize or window
    size: tuple[int, int]  # of the resized grid, or of the window
    temperature: float
    select: str  # none, random, high, low, change or unlike
    share: float
    per_frame: bool
    seed: int

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """[B, T, H, W, D] -> [B, tokens, D]."""
        x = _over_space(self, _over_time(self, x))
        if self.select == "none":
            return x.flatten(1, 3)
        score = _score(self, x.detach().float())  # [B, T, H, W]
        rows = score.flatten(2) if self.per_frame else score.flatten(1)[:, None]
        groups = rows.shape[1]
        kept = rows.topk(self.tokens // groups, dim=-1).indices.sort(dim=-1).values
        index = (kept + torch.arange(groups, device=x.device)[:, None] * rows.shape[2]).flatten(1)
        return x.flatten(1, 3).gather(1, index[..., None].expand(-1, -1, x.shape[-1]))


def draw(rng: np.random.Generator, frames: int, height: int, width: int, rates: Sequence[int] = RATES) -> Reduction:
    """A reduction for clips of frames x height x width tokens, at one of `rates`."""
    full = frames * height * width
    rate = int(rng.choice(rates))
    while True:
        drawn = _draw(rng, frames, height, width)
        if 2**-0.5 <= full / drawn.tokens / rate <= 2**0.5:
            return drawn


def _draw(rng: np.random.Generator, frames: int, height: int, width: int) -> Reduction:
    time = str(rng.choice(["none", "stride", "mean", "grid"])) if frames > 1 else "none"
    step = int(rng.choice([2, 4])) if time in ("stride", "mean") else 1
    grids = []
    if time == "grid":
        for _ in range(int(rng.integers(1, max(2, frames // 4 + 1)))):
            spacing = int(rng.integers(1, max(2, frames // 4 + 1)))
            last = int(rng.integers(min(3 * spacing, frames - 1), frames))
            grids.append(tuple(max(0, last - back * spacing) for back in (3, 2, 1, 0)))
    t = frames // step
    space = str(rng.choice(["none", "resize", "window"]))
    h, w = height, width
    size, temperature = (1, 1), 0.0
    if space == "resize":
        size = h, w = int(rng.integers(height // 3, height)), int(rng.integers(width // 3, width))
    elif space == "window":
        k = int(rng.choice([2, 3]))
        size, h, w = (k, k), height // k, width // k
        temperature = float(rng.choice([0, 1, -1]) * np.exp(rng.uniform(np.log(0.25), np.log(8))))
    select = str(rng.choice(["none", "random", "high", "low", "change", "unlike"])) if rng.random() < 0.6 else "none"
    share, per_frame, tokens = 1.0, bool(rng.random() < 0.5), t * h * w
    if select != "none":
        share = float(np.exp(rng.uniform(np.log(0.1), np.log(0.8))))
        tokens = t * max(1, int(share * h * w)) if per_frame else max(1, int(share * tokens))
    return Reduction(
        tokens, time, step, int(rng.integers(step)), tuple(grids), space, size, temperature, select, share, per_frame,
        int(rng.integers(2**31)),
    )  # fmt: skip


def _over_time(drawn: Reduction, x: torch.Tensor) -> torch.Tensor:
    if drawn.time == "stride":
        return x[:, drawn.phase :: drawn.step]
    if drawn.time == "mean":
        return x.unflatten(1, (-1, drawn.step)).mean(2)
    if drawn.time == "grid":
        frames = list(x.unbind(1))
        height, width = x.shape[2:4]
        for sources in drawn.grids:
            tiles = [resize(frames[t], -(-height // 2), -(-width // 2), "area") for t in sources]
            summary = torch.cat([torch.cat(tiles[:2], dim=2), torch.cat(tiles[2:], dim=2)], dim=1)
            frames[sources[-1]] = summary[:, :height, :width]
        return torch.stack(frames, dim=1)
    return x


def resize(x: torch.Tensor, height: int, width: int, mode: str) -> torch.Tensor:
    """[B, H, W, D] -> [B, height, width, D]."""
    return functional.interpolate(x.permute(0, 3, 1, 2), size=(height, width), mode=mode).permute(0, 2, 3, 1)


def _over_space(drawn: Reduction, x: torch.Tensor) -> torch.Tensor:
    clips = x.shape[0]
    if drawn.space == "resize":
        return resize(x.flatten(0, 1), *drawn.size, mode="bilinear").unflatten(0, (clips, -1))
    if drawn.space == "window":
        k = drawn.size[0]
        rows, columns = x.shape[2] // k, x.shape[3] // k
        windows = x[:, :, : rows * k, : columns * k].unflatten(3, (columns, k)).unflatten(2, (rows, k))
        windows = windows.transpose(3, 4).flatten(4, 5)  # [B, T, rows, columns, k * k, D]
        weights = torch.softmax(drawn.temperature * _norm(windows.detach().float()), dim=-1)
        return (windows * weights[..., None].to(x.dtype)).sum(4)
    return x


def _norm(x: torch.Tensor) -> torch.Tensor:
    return x.norm(dim=-1) / x.shape[-1] ** 0.5


def _score(drawn: Reduction, x: torch.Tensor) -> torch.Tensor:
    if drawn.select == "random":
        return torch.rand(x.shape[:-1], generator=torch.Generator().manual_seed(drawn.seed))
    if drawn.select in ("high", "low"):
        return _norm(x) if drawn.select == "high" else -_norm(x)
    unit = functional.normalize(x, dim=-1)
    if drawn.select == "change":
        before = torch.cat([torch.zeros_like(unit[:, :1]), unit[:, :-1]], dim=1)
        return -(unit * before).sum(-1)
    mean = functional.normalize(unit.mean((1, 2, 3), keepdim=True), dim=-1)
    return -(unit * mean).sum(-1)
