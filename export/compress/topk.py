"""Static top-k with a coverage floor, the article's select stage: [T, H, W, D] -> [K, D], K = T * floor(keep * H * W).

The article names no numbers; the defaults here are ours. Scores are the token norms, z-normalised per frame. Every
coverage cell (cell x cell patches, smaller at the far edges) of every frame keeps its best token: the floor. The rest of K goes to
the highest scores of the whole clip. A kept token then becomes the norm-weighted mean of itself and the dropped tokens of its cell
(a segment mean), where dropped tokens more than `sigma` deviations below their frame's mean weigh nothing: a weight of zero, never
another shape. The kept tokens stay in raster order.

T frames, H, W patch rows and columns, M = H * W, D hidden, C cells of a frame, K tokens kept.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from export.compress.selection import RasterIndex, TopMask
from export.compress.stage import Stage, kept, refuse_misfit, token_norm
from plugins.spec import option
from runtime.core.errors import SpecError


@dataclass(frozen=True)
class TopKOptions:
    keep: float = option(0.5, "fraction of the tokens that is kept", above=0, at_most=1)
    cell: int = option(3, "side of the coverage cells, each of which keeps at least one token per frame", at_least=1)
    sigma: float = option(
        2.0, "dropped tokens this many deviations below their frame's mean norm are left out of the means", at_least=0
    )


class TopK(Stage):
    Options = TopKOptions
    select = True

    def __init__(self, options: TopKOptions, frames: int, height: int, width: int):
        super().__init__(options, frames, height, width)
        refuse_misfit("topk", "cell", options.cell, height, width)
        cell_of, cells = _cells(height, width, options.cell)
        per_frame = kept(options.keep, height * width)
        if per_frame < cells:
            raise SpecError(
                f"topk: keep={options.keep:g} leaves {per_frame} of {height * width} tokens per frame, cell={options.cell} needs "
                f"{cells}, one for each cell; choose a larger keep or cell"
            )
        self.set_selected(frames * per_frame)
        self.best = TopMask(frames, height, width)
        self.index = RasterIndex(frames, height, width, self.num_tokens)
        slots = torch.arange(frames)[:, None] * cells + cell_of
        self.member = nn.Buffer(torch.arange(cells)[:, None] == cell_of, persistent=False)  # [C, M]
        self.position = nn.Buffer(torch.arange(height * width, dtype=torch.int32), persistent=False)
        self.slot = nn.Buffer(slots.flatten(), persistent=False)  # [T * M] -> row among [T * C]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        frames, height, width = self.grid_in
        d = x.shape[-1]
        tokens = x.reshape(frames, height * width, d)
        norm = token_norm(tokens)  # [T, M]
        centred = norm - norm.mean(-1, keepdim=True)
        score = centred / (centred.square().mean(-1, keepdim=True).sqrt() + 1e-6)

        # the floor: the best token of each cell outranks everything
        floor = self._best_of_cell(score)
        ranked = torch.where(floor, score.amax((0, 1)) + 1, score)
        mask = self.best(ranked.reshape(1, frames, height, width), self.num_tokens)[0]
        index = self.index(mask)

        # segment means of what was dropped: weights [T, C, M], each row sums to one (or is zero)
        spared = ((score >= -self.options.sigma).to(torch.float32) * norm * (1 - mask.reshape(frames, -1)))[:, None]
        spared = spared * self.member.to(torch.float32)
        mass = spared.sum(-1, keepdim=True)  # [T, C, 1]
        means = torch.matmul((spared / mass.clamp(min=1e-12)).to(x.dtype), tokens)  # [T, C, D]

        slot = self.slot.index_select(0, index)
        mass = mass.reshape(-1).index_select(0, slot)
        share = mass / (mass + norm.reshape(-1).index_select(0, index)).clamp(min=1e-12)  # of the mean in the merged token
        token = x.reshape(-1, d).index_select(0, index).float()
        mean = means.reshape(-1, d).index_select(0, slot).float()
        return (token + share[:, None] * (mean - token)).to(x.dtype)

    def _best_of_cell(self, score: torch.Tensor) -> torch.Tensor:
        """[T, M] -> bool [T, M]: the highest score of each cell, the first of equals."""
        lowest = score.amin((0, 1)) - 1
        in_cell = torch.where(self.member, score[:, None], lowest)  # [T, C, M]
        best = in_cell >= in_cell.amax(-1, keepdim=True)
        position = self.position.to(torch.float32)
        first = torch.where(best, position, float(score.shape[-1])).amin(-1, keepdim=True)  # [T, C, 1]
        return (position == first).to(torch.float32).amax(1) > 0


def _cells(height: int, width: int, cell: int) -> tuple[torch.Tensor, int]:
    """Cell number of each token of a frame, [M], and how many cells there are."""
    columns = -(-width // cell)
    numbers = (torch.arange(height)[:, None] // cell) * columns + torch.arange(width) // cell
    return numbers.flatten(), -(-height // cell) * columns
