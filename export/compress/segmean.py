"""Segment means over time, the article's temporal stage: [T, H, W, D] -> [T', H, W, D].

Level 1 replaces each two adjacent frames by their mean (an odd last frame stays alone), every further level spans twice the frames
of the one before and uses only every other group; a group must be complete. The means are per position and weighted by the token
norms. Fine and coarse grids come out in the order of the last frame that they cover, the finer first. The article leaves open
how many levels there are and which of two grids with the same last frame comes first; both choices are ours.

Sums of a level are sums of two sums of the level before, so the clip is read once.

T frames, H, W patch rows and columns, D hidden, G groups of a level.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from export.compress.stage import Stage, token_norm
from plugins.spec import option
from runtime.core.errors import SpecError


@dataclass(frozen=True)
class SegMeanOptions:
    levels: int = option(2, "levels of the pyramid over time; level l spans 2^l frames", at_least=1, at_most=16)


class SegMean(Stage):
    """`spans` lists the (first, last) frames behind each frame that comes out."""

    Options = SegMeanOptions

    def __init__(self, options: SegMeanOptions, frames: int, height: int, width: int):
        super().__init__(options, frames, height, width)
        if 2**options.levels > frames:
            raise SpecError(
                f"segmean: levels {options.levels} spans {2**options.levels} frames, the clip has {frames}; choose fewer levels"
            )
        found = [(min(start + 2, frames) - 1, 1, start) for start in range(0, frames, 2)]  # (last frame, level, first frame)
        for level in range(2, options.levels + 1):
            span = 2**level
            found += [(start + span - 1, level, start) for start in range(0, frames - span + 1, 2 * span)]
        arrival = sorted(range(len(found)), key=lambda i: found[i])
        self.spans = [(found[i][2], found[i][0]) for i in arrival]
        self.arrival = nn.Buffer(torch.tensor(arrival), persistent=False)
        self.set_grid(len(found), height, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        weight = token_norm(x)[..., None] + 1e-12  # a position of zeros has a plain mean
        weighted = x.float() * weight
        means = []
        for level in range(1, self.options.levels + 1):
            weighted, weight = _pair_sums(weighted, complete=level > 1), _pair_sums(weight, complete=level > 1)
            step = 1 if level == 1 else 2
            means.append((weighted[::step] / weight[::step]).to(x.dtype))
        return torch.cat(means).index_select(0, self.arrival)


def _pair_sums(x: torch.Tensor, complete: bool) -> torch.Tensor:
    """Sums of adjacent pairs along the first axis; an odd last row stays alone unless only complete pairs count."""
    count, rest = x.shape[0] // 2, x.shape[0] % 2
    sums = x[: 2 * count].reshape(count, 2, *x.shape[1:]).sum(1)
    return torch.cat([sums, x[-1:]]) if rest and not complete else sums
