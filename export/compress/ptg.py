"""Pyramid Temporal Gridding of ST-GridPool (arXiv 2605.22078): [T, H, W, D] -> the same shape, some frames replaced by summaries.

Level by level, groups of sampled frames are area-resized, tiled into one frame and written over the group's last frame; a level
reads the summaries that earlier levels wrote. Which frames is known from T alone (plugins/schedule.py), so the graph holds gathers
with constant indices, two small constant matmuls per level for the resize, and a single concat of the untouched runs of frames and
the final summaries: no scatter, and no copy of the clip per level. A clip too short for any group passes unchanged.

T frames, H, W patch rows and columns, D hidden, G groups of a level, S summaries written so far, n frames read by a level.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import nn

from export.compress.spec import format_value, option
from export.compress.stage import Stage
from plugins.schedule import Group, ptg_schedule, tile_layout
from runtime.errors import SpecError


@dataclass(frozen=True)
class PTGOptions:
    sizes: tuple[int, ...] = option((4, 4, 4), "frames tiled into one summary, per level", at_least=1)
    strides: tuple[int, ...] = option((2, 4, 8), "every how many frames one is sampled, per level", at_least=1)

    def __post_init__(self):
        if len(self.sizes) != len(self.strides):
            raise SpecError(
                f"ptg: sizes={format_value(self.sizes)} has {len(self.sizes)} levels, "
                f"strides={format_value(self.strides)} has {len(self.strides)}; give every level one of each"
            )


class PTG(Stage):
    """`written` lists, per level, the frames that the level replaces."""

    Options = PTGOptions
    options: PTGOptions

    def __init__(self, options: PTGOptions, frames: int, height: int, width: int):
        super().__init__(options, frames, height, width)
        for size in options.sizes:
            rows, columns = tile_layout(size)
            if rows > height or columns > width:
                raise SpecError(
                    f"ptg: {size} frames are tiled {rows}x{columns}, which does not fit a grid of {height}x{width} tokens"
                )
        schedule = ptg_schedule(frames, options.sizes, options.strides)
        self.written = [[group.writes for group in level] for level in schedule]
        self.level = nn.ModuleDict()
        summary_of: dict[int, int] = {}  # frame -> its row among the summaries so far
        count = 0
        for number, groups in enumerate(schedule, start=1):
            if groups:
                self.level[str(number)] = _Level(groups, summary_of, height, width)
                summary_of |= {group.writes: count + i for i, group in enumerate(groups)}
                count += len(groups)
        self.summary_of = summary_of

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not self.summary_of:
            return x
        summaries: torch.Tensor | None = None
        for level in self.level.values():
            new = level(x, summaries)
            summaries = new if summaries is None else torch.cat([summaries, new])  # [S, H, W, D]
        assert summaries is not None
        pieces, start = [], 0
        for frame, row in sorted(self.summary_of.items()):
            if frame > start:
                pieces.append(x[start:frame])
            pieces.append(summaries[row : row + 1])
            start = frame + 1
        if start < x.shape[0]:
            pieces.append(x[start:])
        return torch.cat(pieces)


class _Level(nn.Module):
    """The summaries of one level: clip [T, H, W, D], earlier summaries [S, H, W, D] -> [G, H, W, D]."""

    def __init__(self, groups: list[Group], summary_of: dict[int, int], height: int, width: int):
        super().__init__()
        reads = [frame for group in groups for frame in group.reads]
        untouched = [frame for frame in reads if frame not in summary_of]
        # rows of the pool [untouched frames of the clip, earlier summaries] in reading order
        position = {frame: i for i, frame in enumerate(untouched)}
        position |= {frame: len(untouched) + summary_of[frame] for frame in reads if frame in summary_of}
        self.untouched: torch.Tensor
        self.order: torch.Tensor
        self.register_buffer("untouched", torch.tensor(untouched), persistent=False)
        self.register_buffer("order", torch.tensor([position[frame] for frame in reads]), persistent=False)
        self.reads_summaries = len(untouched) < len(reads)
        self.groups = len(groups)
        self.tiles = tile_layout(len(groups[0].reads))
        self.grid = (height, width)
        self.down: torch.Tensor
        self.across: torch.Tensor
        self.register_buffer("down", _area_resize(height, math.ceil(height / self.tiles[0])), persistent=False)
        self.register_buffer("across", _area_resize(width, math.ceil(width / self.tiles[1])), persistent=False)

    def forward(self, x: torch.Tensor, summaries: torch.Tensor | None) -> torch.Tensor:
        (height, width), (rows, columns) = self.grid, self.tiles
        if self.reads_summaries:
            pool = [x.index_select(0, self.untouched), summaries] if len(self.untouched) else [summaries]
            frames = torch.cat(pool).index_select(0, self.order)
        else:
            frames = x.index_select(0, self.untouched)
        n, d = frames.shape[0], frames.shape[-1]
        small = torch.matmul(self.down.to(x.dtype), frames.reshape(n, height, width * d))
        small = torch.matmul(self.across.to(x.dtype), small.reshape(n, -1, width, d))  # [n, ceil(H/rows), ceil(W/columns), D]
        h, w = small.shape[1:3]
        tiled = small.reshape(self.groups, rows, columns, h, w, d).permute(0, 1, 3, 2, 4, 5)
        return tiled.reshape(self.groups, rows * h, columns * w, d)[:, :height, :width]


def _area_resize(size: int, target: int) -> torch.Tensor:
    """Matrix [target, size] of the adaptive average: row i is the mean of positions floor(i*size/target) .. ceil((i+1)*size/target)."""
    matrix = torch.zeros(target, size)
    for i in range(target):
        start, end = i * size // target, -(-(i + 1) * size // target)
        matrix[i, start:end] = 1 / (end - start)
    return matrix
