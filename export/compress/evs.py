"""Efficient Video Sampling (arXiv 2510.14624, "token selection"): [T, H, W, D] -> [K, D], K = max(H * W, floor(keep * T * H * W)).

A token that looks like the one at its place in the frame before adds nothing new: the score of a token is 1 - cosine similarity to
it, all of the first frame is kept, and the K highest scores of the clip stay, in raster order. The paper scores pixel patches;
serving stacks that ship the method score embeddings, and so does this stage, which sees nothing else after the encoder. K is the
constant that they compute from the pruning rate q = 1 - keep.

T frames, H, W patch rows and columns, D hidden, K tokens kept.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from export.compress.selection import RasterIndex, TopMask
from export.compress.stage import Stage, kept, token_norm
from plugins.spec import option

FIRST_FRAME = 4.0  # above every dissimilarity, which ends at 2


@dataclass(frozen=True)
class EVSOptions:
    keep: float = option(0.5, "fraction of the tokens that is kept; the first frame always is", above=0, at_most=1)


class EVS(Stage):
    Options = EVSOptions
    select = True

    def __init__(self, options: EVSOptions, frames: int, height: int, width: int):
        super().__init__(options, frames, height, width)
        self.set_selected(max(height * width, kept(options.keep, frames * height * width)))
        self.best = TopMask(frames, height, width)
        self.index = RasterIndex(frames, height, width, self.num_tokens)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        frames, height, width = self.grid_in
        first = torch.full((1, height, width), FIRST_FRAME, device=x.device)
        score = first
        if frames > 1:
            direction = x.float() / token_norm(x).clamp(min=1e-8)[..., None]  # unit tokens times sqrt(D)
            # 1 - cosine as half a squared distance: exactly 0 where nothing changed, so a still clip has ties, not rounding noise
            unlike = (direction[1:] - direction[:-1]).square().mean(-1) / 2
            score = torch.cat([first, unlike])  # [T, H, W]
        mask = self.best(score[None], self.num_tokens)[0]
        return x.reshape(-1, x.shape[-1]).index_select(0, self.index(mask))
