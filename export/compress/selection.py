"""Exact selection of a constant number of tokens, in operators that every TensorRT supports.

TensorRT's TopK ends at K = 3840 (the builder refuses 3841, and its documentation says so for all releases so far) and leaves the
order of equal scores unspecified; half of a 32-frame clip is 11,664 tokens, and a still video has nothing but equal scores. So nothing
here sorts. `TopMask` finds the K-th best score by a 64-way search on its value, counting how many scores reach each threshold;
among equal scores the lower index wins, by prefix counts. `RasterIndex` turns the mask into K ascending indices by three small
look-ups (frame, row, column) in prefix counts. Comparisons, sums, small constant matmuls and Gather: same result in every engine,
no limit on K, and exactly K whatever the scores.

Counts are float32, exact up to 2^24 tokens. Scores must be finite and below 2^22 in magnitude; two that are closer than 2^-35 of
(their range + 1) count as equal.

G groups that are selected from separately, T frames, H, W rows and columns, K tokens kept.
"""

from __future__ import annotations

import torch
from torch import nn

WAYS = 64
ROUNDS = 6


class TopMask(nn.Module):
    """Mask of the `budget` highest scores of each group: scores [G, *dims] -> float32 0/1 of the same shape.

    dims: sizes of the axes after the first, in raster order; the last one is a row of tokens.
    """

    def __init__(self, *dims: int):
        super().__init__()
        self.prefix = _PrefixCounts(*dims)
        self.ways = nn.Buffer(torch.arange(WAYS, dtype=torch.int32), persistent=False)

    def forward(self, scores: torch.Tensor, budget: torch.Tensor | int) -> torch.Tensor:
        """budget: one int for every group, or a float32 [G, 1] of whole numbers, 0 and the group's size included."""
        flat = scores.reshape(scores.shape[0], 1, -1)  # [G, 1, M]
        low = flat.amin(-1)  # [G, 1]: at least `budget` scores are >= low
        high = flat.amax(-1)
        high = high + (high - low) + 1  # fewer than `budget` scores (or none, as many as that may be) are >= high
        for _ in range(ROUNDS):
            thresholds = low + (high - low) * (self.ways.to(flat.dtype) / WAYS)  # [G, WAYS]
            counts = (flat >= thresholds[:, :, None]).to(torch.float32).sum(-1)
            enough = counts >= budget
            low = torch.where(enough, thresholds, low).amax(-1, keepdim=True)
            high = torch.where(enough, high, thresholds).amin(-1, keepdim=True)
        sure = (flat >= high[:, :, None]).to(torch.float32)
        equal = (flat >= low[:, :, None]).to(torch.float32) - sure
        wanted = (budget - sure.sum(-1)).reshape(-1, *[1] * (scores.dim() - 1))
        equal = equal.reshape(scores.shape)
        first = (self.prefix(equal)[0] <= wanted).to(torch.float32)
        return sure.reshape(scores.shape) + equal * first


class RasterIndex(nn.Module):
    """Ascending flat indices of a mask's ones: float32 0/1 [T, H, W] with exactly `count` ones -> int64 [count]."""

    def __init__(self, frames: int, height: int, width: int, count: int):
        super().__init__()
        self.grid = (frames, height, width)
        self.prefix = _PrefixCounts(frames, height, width)
        self.rank = nn.Buffer(torch.arange(count, dtype=torch.int32), persistent=False)

    def forward(self, mask: torch.Tensor) -> torch.Tensor:
        frames, height, width = self.grid
        _, (by_frame, by_row, by_column) = self.prefix(mask[None])
        rank = self.rank.to(torch.float32)[:, None]  # [K, 1]: how many kept tokens come before this one
        frame, rank = _look_up(by_frame.reshape(1, frames).expand(rank.shape[0], frames), rank)
        row, rank = _look_up(by_row.reshape(frames, height).index_select(0, frame), rank)
        row = frame * height + row
        column, _ = _look_up(by_column.reshape(frames * height, width).index_select(0, row), rank)
        return row * width + column


class _PrefixCounts(nn.Module):
    """Inclusive prefix counts in raster order: 0/1 [G, *dims] -> the counts, and those inside each axis alone.

    The counts inside an axis are [G, *dims up to that axis]: how many ones up to and with each of its slices.
    """

    def __init__(self, *dims: int):
        super().__init__()
        self.axes = len(dims)
        for axis, size in enumerate(dims):
            # boolean, so that a module cast to half precision still counts in float32
            self.register_buffer(f"upto_{axis}", torch.triu(torch.ones(size, size, dtype=torch.bool)), persistent=False)

    def forward(self, ones: torch.Tensor) -> tuple[torch.Tensor, list[torch.Tensor]]:
        totals = ones
        inside: list[torch.Tensor] = []
        for axis in reversed(range(self.axes)):
            upto = getattr(self, f"upto_{axis}").to(torch.float32)
            # a matmul of zeros and ones is exact in TF32 too; the sums further up are not, and small
            counts = torch.matmul(totals, upto) if axis == self.axes - 1 else (totals[..., None] * upto).sum(-2)
            inside.insert(0, counts)
            totals = totals.sum(-1)
        result = inside[0]
        for axis in range(1, self.axes):
            before = result - (inside[axis][..., -1])  # ones before each slice of the axis above
            result = inside[axis] + before[..., None]
        return result, inside


def _look_up(counts: torch.Tensor, rank: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Where in each row of inclusive counts [K, n] the token of that rank [K, 1] is -> index [K] and the rank inside it [K, 1]."""
    passed = (counts <= rank).to(torch.float32)
    index = passed.sum(-1).clamp(max=counts.shape[-1] - 1).to(torch.int64)
    return index, rank - (counts * passed).amax(-1, keepdim=True)
