"""VidCom2, Video Compression Commander (arXiv 2505.14454): [T, H, W, D] -> [K, D], K = T * floor(keep * H * W).

Frame compression adjustment: a frame whose tokens are far from the mean of the video is unique and gets a larger budget,
    budget_t = K/T * (1 + s_t - 1/T),  s = softmax(-mean similarity to the video / temperature).
Adaptive token compression: inside a frame the tokens least similar to the frame's mean and to the video's mean stay. Similarity is
the authors' sum of Gaussians exp(-d^2 / 2a), a = 1/8 .. 2, of the distance of unit tokens to the mean of the unit tokens.

Adapted to a static graph: the paper rounds each frame's budget, and the total varies with the clip; here the budgets
are rounded by largest remainders to exactly K, what exceeds a frame's H * W goes to the other frames in proportion to their room,
and a frame may end with no token where K/T is 1. All channels take part (the authors' code scores on the half of the channels with the least
variance, which costs passes over the clip).

T frames, H, W patch rows and columns, M = H * W, D hidden, K tokens kept.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from export.compress.selection import RasterIndex, TopMask
from export.compress.stage import Stage, kept, token_norm
from plugins.spec import option
from runtime.core.errors import SpecError

WIDTHS = [2.0**k for k in range(-3, 2)]


@dataclass(frozen=True)
class VidCom2Options:
    keep: float = option(0.25, "fraction of the tokens that is kept", above=0, at_most=1)
    temperature: float = option(0.01, "of the softmax over frames; small gives the budget to the most unique frame", at_least=1e-4)


class VidCom2(Stage):
    Options = VidCom2Options
    select = True

    def __init__(self, options: VidCom2Options, frames: int, height: int, width: int):
        super().__init__(options, frames, height, width)
        per_frame = kept(options.keep, height * width)
        if per_frame < 1:
            raise SpecError(
                f"vidcom2: keep={options.keep:g} of a grid of {height}x{width} keeps no token per frame; choose a larger keep"
            )
        self.set_selected(frames * per_frame)
        self.best = TopMask(height, width)
        self.index = RasterIndex(frames, height, width, self.num_tokens)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        frames, height, width = self.grid_in
        to_video, to_frame = self._similarities(x.reshape(frames, height * width, x.shape[-1]).float())  # [T, M] each
        budget = self._budgets(-to_video.mean(-1))
        unlike = -(to_video + to_frame).reshape(self.grid_in)
        mask = self.best(unlike, budget[:, None])
        return x.reshape(-1, x.shape[-1]).index_select(0, self.index(mask))

    def _similarities(self, tokens: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Of each token [T, M, D] to the mean of the video and to that of its frame."""
        m, d = tokens.shape[1:]
        scale = 1 / (token_norm(tokens) * d**0.5).clamp(min=1e-12)  # [T, M]
        frame = torch.matmul(scale[:, None] / m, tokens)  # mean of unit tokens, [T, 1, D]
        video = frame.mean(0, keepdim=True)
        return self._similarity(tokens, scale, video), self._similarity(tokens, scale, frame)

    def _similarity(self, tokens: torch.Tensor, scale: torch.Tensor, mean: torch.Tensor) -> torch.Tensor:
        # |u - mean|^2 of a unit token u, without writing u
        cosine = torch.matmul(tokens, mean.transpose(1, 2))[..., 0] * scale
        distance = 1 - 2 * cosine + mean.square().sum(-1)
        similarity = torch.exp(distance / (-2 * WIDTHS[0]))
        for width in WIDTHS[1:]:
            similarity = similarity + torch.exp(distance / (-2 * width))
        return similarity

    def _budgets(self, uniqueness: torch.Tensor) -> torch.Tensor:
        """Tokens of each frame: uniqueness [T] -> float32 whole numbers [T] that sum to K."""
        frames, height, width = self.grid_in
        tokens, size = self.num_tokens, float(height * width)
        # a row vector: TensorRT does not support a softmax of one axis
        unique = torch.softmax(uniqueness[None] / self.options.temperature, dim=-1)[0]
        quota = tokens / frames * (1 + unique - 1 / frames)
        capped = quota.clamp(max=size)
        room = size - capped
        capped = capped + room * ((quota - capped).sum() / room.sum().clamp(min=1e-6))
        floors = (capped + 1e-4).floor().clamp(max=size)  # 7.99999 is 8
        # in steps, so that remainders which differ by rounding noise are equal in every engine
        remainder = torch.where(floors < size, torch.round((capped - floors) * 4096), -4096.0)
        left = tokens - floors.sum()
        # rank of each remainder, the earlier frame first among equals
        order = torch.arange(frames, dtype=torch.float32, device=uniqueness.device)
        above = (remainder > remainder[:, None]) | ((remainder == remainder[:, None]) & (order < order[:, None]))
        return floors + (above.to(torch.float32).sum(-1) < left).to(torch.float32)
