"""Pyramid Temporal Gridding of ST-GridPool (arXiv 2605.22078): [T, H, W, D] -> the same shape, some frames replaced by summaries.

Level by level, groups of sampled frames are area-resized, tiled into one frame and written over the group's last frame; a level
reads the summaries that earlier levels wrote. Which frames is known from T alone (plugins/schedule.py), so the graph holds gathers
with constant indices, small constant matmuls for the resize, and a single concat of the untouched runs of frames and the final
summaries: no scatter, and no copy of the clip per level. Resizing a frame does not depend on the group that it is tiled into, so
each frame is resized once, and what the levels pass around are the small frames. A clip too short for any group passes unchanged.

T frames, H, W patch rows and columns, h, w rows and columns of a resized frame, D hidden, G groups of a level, n frames.
"""

from __future__ import annotations

import math

import torch
from torch import nn

from export.compress.stage import Stage
from plugins.op import PTGOptions, tile_layout
from plugins.schedule import ptg_schedule
from runtime.core.errors import SpecError


class PTG(Stage):
    """`written` lists, per level, the frames that the level replaces."""

    Options = PTGOptions

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
        active = [
            (str(number), groups, _key(size))
            for number, (groups, size) in enumerate(zip(schedule, options.sizes, strict=True), 1)
            if groups
        ]
        # one resize for each tile size, of all frames of the clip that any level reads in it
        read: dict[str, set[int]] = {key: set() for _, _, key in active}
        written: set[int] = set()
        for _, groups, key in active:
            read[key] |= {frame for group in groups for frame in group.reads} - written
            written |= {group.writes for group in groups}
        layouts = {_key(size): tile_layout(size) for size in options.sizes}
        self.resize = nn.ModuleDict({key: _Resize(layouts[key], sorted(frames), height, width) for key, frames in read.items()})

        # where the latest value of a frame is: (source, row); source 0 is the clip, source i the summaries of the i-th level
        self.level = nn.ModuleDict()
        self.key_of: dict[str, str] = {}
        self.latest: dict[int, tuple[int, int]] = {}
        for source, (number, groups, key) in enumerate(active, 1):
            row = {frame: i for i, frame in enumerate(sorted(read[key]))}
            reads = [self.latest.get(frame) or (0, row[frame]) for group in groups for frame in group.reads]
            self.key_of[number] = key
            self.level[number] = _Level(reads, layouts[key], height, width)
            self.latest |= {group.writes: (source, i) for i, group in enumerate(groups)}

    def forward(self, x: torch.Tensor, summaries: torch.Tensor | None = None, join: bool = True) -> torch.Tensor:
        """[T, H, W, D] -> the same shape; in two parts for a chain whose stages work on both in between:

        ptg(x, join=False)   the summaries [S, H, W, D], in the order of the frames that they replace
        ptg(x, summaries)    the clip with those frames replaced
        """
        if not self.latest:
            return x
        if summaries is None:
            summaries = self._summaries(x)
        return self._place(x, summaries) if join else summaries

    def _summaries(self, x: torch.Tensor) -> torch.Tensor:
        levels: list[torch.Tensor] = []  # [G, H, W, D] of each level
        # in each tile size [n, h, w, D]: what is read of the clip (if anything is), then the summaries of each level
        small = {key: [resize(resize.pick(x)) if len(resize.frames) else x] for key, resize in self.resize.items()}
        keys = list(self.key_of.values())
        for i, (number, level) in enumerate(self.level.items()):
            levels.append(level(small[self.key_of[number]]))
            for key, resized in small.items():
                resized.append(self.resize[key](levels[-1]) if key in keys[i + 1 :] else levels[-1])
        return torch.cat([levels[source - 1][row : row + 1] for _, (source, row) in sorted(self.latest.items())])

    def _place(self, x: torch.Tensor, summaries: torch.Tensor) -> torch.Tensor:
        pieces, start = [], 0
        for row, frame in enumerate(sorted(self.latest)):
            if frame > start:
                pieces.append(x[start:frame])
            pieces.append(summaries[row : row + 1])
            start = frame + 1
        if start < x.shape[0]:
            pieces.append(x[start:])
        return torch.cat(pieces)


class _Resize(nn.Module):
    """Area-resize to one tile of a layout: frames [n, H, W, D] -> [n, ceil(H / rows), ceil(W / columns), D]."""

    def __init__(self, layout: tuple[int, int], frames: list[int], height: int, width: int):
        super().__init__()
        self.down = nn.Buffer(_area_resize(height, math.ceil(height / layout[0])), persistent=False)
        self.across = nn.Buffer(_area_resize(width, math.ceil(width / layout[1])), persistent=False)
        self.frames = nn.Buffer(torch.tensor(frames, dtype=torch.int64), persistent=False)
        step = frames[1] - frames[0] if len(frames) > 1 else 1
        evenly = bool(frames) and frames == list(range(frames[0], frames[-1] + 1, step))
        self.evenly = slice(frames[0], frames[-1] + 1, step) if evenly else None

    def pick(self, x: torch.Tensor) -> torch.Tensor:
        """The frames of the clip that are read in this size; evenly spaced ones, the usual case, are a view."""
        return x[self.evenly] if self.evenly else x.index_select(0, self.frames)

    def forward(self, frames: torch.Tensor) -> torch.Tensor:
        n, height, width, d = frames.shape
        rows = torch.matmul(self.down.to(frames.dtype), frames.reshape(n, height, width * d))
        return torch.matmul(self.across.to(frames.dtype), rows.reshape(n, rows.shape[1], width, d))


class _Level(nn.Module):
    """The summaries of one level: resized sources, each [n, h, w, D] -> [G, H, W, D].

    reads: (source, row) of each frame in reading order.
    """

    def __init__(self, reads: list[tuple[int, int]], layout: tuple[int, int], height: int, width: int):
        super().__init__()
        self.sources = sorted({source for source, _ in reads})
        gathered = [read for source in self.sources for read in reads if read[0] == source]
        for source in self.sources:
            rows = torch.tensor([row for s, row in gathered if s == source])
            self.register_buffer(f"rows_{source}", rows, persistent=False)
        self.order = nn.Buffer(torch.tensor([gathered.index(read) for read in reads]), persistent=False)
        self.layout = layout
        self.grid = (height, width)

    def forward(self, small: list[torch.Tensor]) -> torch.Tensor:
        (height, width), (rows, columns) = self.grid, self.layout
        picked = [small[source].index_select(0, getattr(self, f"rows_{source}")) for source in self.sources]
        frames = torch.cat(picked).index_select(0, self.order) if len(picked) > 1 else picked[0]
        h, w, d = frames.shape[1:]
        tiles = frames.reshape(-1, rows, columns, h, w, d).permute(0, 1, 3, 2, 4, 5)
        return tiles.reshape(-1, rows * h, columns * w, d)[:, :height, :width]


def _key(size: int) -> str:
    return "x".join(map(str, tile_layout(size)))


def _area_resize(size: int, target: int) -> torch.Tensor:
    """Matrix [target, size] of the adaptive average: row i is the mean of positions floor(i*size/target) .. ceil((i+1)*size/target)."""
    matrix = torch.zeros(target, size)
    for i in range(target):
        start, end = i * size // target, -(-(i + 1) * size // target)
        matrix[i, start:end] = 1 / (end - start)
    return matrix
