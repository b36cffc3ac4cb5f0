"""What the accuracy benchmark compares: presets and specs of this package, and baselines that nobody would ship.

A method maps the tokens of a clip [T, H, W, D] to [N, D]. T frames, H, W patch rows and columns, D hidden, N visual tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from export.compress import PRESETS, make
from export.compress.stage import token_norm
from plugins.schedule import ptg_schedule

Reduce = Callable[[torch.Tensor, int], torch.Tensor]  # tokens and the clip's number


@dataclass(frozen=True)
class Method:
    """name: as the table says it; spec: what this package calls it, "" for a baseline; before: applied before the projector."""

    name: str
    reduce: Reduce
    spec: str = ""
    before: bool = False


def spec(name: str, text: str, grid: tuple[int, int, int], before: bool = False) -> Method:
    """A preset or spec for clips of `grid` tokens."""
    frames, height, width = grid
    module = make(text, frames=frames, height=height, width=width)
    return Method(name, lambda x, clip: module(x), text, before)


def main_table(grid: tuple[int, int, int]) -> list[Method]:
    """Every preset, the baselines, and the points between 2:1 and 16:1."""

    def preset(name: str) -> Method:
        return spec(name, name, grid)

    def plain(text: str) -> Method:
        return spec(text, text, grid)

    published = [preset(name) for name in PRESETS]
    return [
        Method("uncompressed", lambda x, clip: x.flatten(0, 2)),
        *published,
        plain("ptg"),
        plain("ptg+avgpool:window=2"),
        *[Method(f"every {step}. frame", _stride(step)) for step in (2, 4, 8, 16)],
        plain("avgpool:window=3"),
        plain("segmean:levels=1+avgpool:window=2"),
        plain("segmean:levels=1+bilinear:stride=2"),
        plain("segmean:levels=1+topk:keep=0.25"),
        plain("ptg+nsp:window=3"),
        *[plain(f"evs:keep={keep}") for keep in (0.25, 0.125)],
        *[plain(f"vidcom2:keep={keep}") for keep in (0.5, 0.125)],
        *[plain(f"topk:keep={keep}") for keep in (0.25, 0.125)],
        *[plain(f"nsp:window=2+{name}:keep=0.5") for name in ("topk", "evs", "vidcom2")],
        *[Method(f"random selection, {keep:g}", _by_score(keep, _random)) for keep in (0.5, 0.25, 0.125)],
        *[Method(f"highest norms, {keep:g}", _by_score(keep, lambda x, clip: token_norm(x))) for keep in (0.25, 0.125)],
        *[Method(f"lowest norms (anti-norm), {keep:g}", _by_score(keep, lambda x, clip: -token_norm(x))) for keep in (0.25, 0.125)],
        Method("windows weighted against the norm (anti-norm)", _windows(lambda norm: -norm)),
    ]


def ablations(grid: tuple[int, int, int], hidden: int) -> list[Method]:
    """What a reader of the paper would ask: one choice at a time against nsp or st-gridpool."""

    def plain(text: str, note: str = "", before: bool = False) -> Method:
        return spec(f"{text}{note}", text, grid, before)

    raw = round(hidden**0.5, 4)
    return [
        *[plain(f"nsp:window=2,temperature={t:g}") for t in (0, 0.25, 0.5, 1, 2, 4, 8)],
        plain(f"nsp:window=2,temperature={raw}", " (the raw norm)"),
        *[
            Method(f"nsp, norm relative to the clip's mean, temperature {t:g}", _windows(lambda norm, t=t: t * norm / norm.mean()))
            for t in (1, 2, 4)
        ],
        *[plain(f"nsp:window=2,order={order}") for order in ("1", "inf")],
        *[plain(f"ptg:sizes={sizes},strides={strides}+nsp:window=2")
          for sizes, strides in (("4", "2"), ("4", "4"), ("4/4", "2/4"), ("4/4", "1/2"), ("9", "1"), ("2/2/2", "2/4/8"))],
        Method("st-gridpool, levels read the clip instead of each other", _gridpool_apart),
        plain("nsp:window=3"),
        plain("topk:keep=0.25,cell=3", " (with a floor)"),
        plain("topk:keep=0.25,cell=9", " (a floor of one a frame)"),
        *[plain(name, ", before the projector", before=True) for name in ("avgpool:window=2", "nsp:window=2", "st-gridpool")],
    ]  # fmt: skip


def _stride(step: int) -> Reduce:
    return lambda x, clip: x[step // 2 :: step].flatten(0, 2)


def _by_score(keep: float, score: Reduce) -> Reduce:
    def reduce(x: torch.Tensor, clip: int) -> torch.Tensor:
        tokens = x.flatten(0, 2)
        kept = score(tokens, clip).topk(int(keep * len(tokens))).indices.sort().values
        return tokens[kept]

    return reduce


def _random(tokens: torch.Tensor, clip: int) -> torch.Tensor:
    return torch.rand(len(tokens), generator=torch.Generator().manual_seed(clip))


def _windows(logits: Callable[[torch.Tensor], torch.Tensor]) -> Reduce:
    """2 x 2 windows, a remainder dropped, weighted by a softmax over what `logits` makes of the norms [T, H, W]."""

    def reduce(x: torch.Tensor, clip: int) -> torch.Tensor:
        windows = [
            x[:, i : x.shape[1] // 2 * 2 : 2, j : x.shape[2] // 2 * 2 : 2] for i in range(2) for j in range(2)
        ]  # each [T, H', W', D]
        score = logits(token_norm(x))
        scores = [score[:, i : x.shape[1] // 2 * 2 : 2, j : x.shape[2] // 2 * 2 : 2] for i in range(2) for j in range(2)]
        weights = torch.softmax(torch.stack(scores), dim=0)
        return (torch.stack(windows) * weights[..., None]).sum(0).flatten(0, 2)

    return reduce


def _gridpool_apart(x: torch.Tensor, clip: int) -> torch.Tensor:
    """st-gridpool whose levels all read the frames as they were."""
    frames, height, width = x.shape[:3]
    out = x.clone()
    rows, columns = -(-height // 2), -(-width // 2)
    small = torch.nn.functional.adaptive_avg_pool2d(x.permute(0, 3, 1, 2), (rows, columns)).permute(0, 2, 3, 1)
    for level in ptg_schedule(frames, (4, 4, 4), (2, 4, 8)):
        for group in level:
            a, b, c, d = (small[t] for t in group.reads)
            out[group.writes] = torch.cat([torch.cat([a, b], 1), torch.cat([c, d], 1)], 0)[:height, :width]
    return _windows(lambda norm: norm)(out, clip)
