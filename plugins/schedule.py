"""When Pyramid Temporal Gridding writes which frame: the schedule, computed before any frame is seen.

In: frames T, group sizes and strides of the levels. Out: for each level its groups: the frames that are read and the frame that
their tiled summary replaces. Export unrolls it into the graph, plots draw it, the plugin hands it to its kernel, so it needs
neither torch nor a graph: the standard library and NumPy.

The frames must be those of the authors' code (ST-GridPool, arXiv 2605.22078), which rounds `torch.linspace` in float32, half to
even. `_linspace` repeats that function's float32 steps: from the start for the first half of the points, from the end for the rest.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Group:
    """One summary: `reads` are tiled row by row in this order, the result replaces frame `writes` (the last one read)."""

    reads: tuple[int, ...]
    writes: int


def ptg_schedule(frames: int, sizes: Sequence[int], strides: Sequence[int]) -> list[list[Group]]:
    """The groups of each level; ValueError where `sizes` and `strides` have different lengths.

    Levels run one after another; a level reads the frames as the one before it left them. It samples `frames // stride` frames
    evenly, in groups of `size`; what is left over forms no group.
    """
    return [_level(frames, size, stride) for size, stride in zip(sizes, strides, strict=True)]


def summary_levels(frames: int, sizes: Sequence[int], strides: Sequence[int]) -> dict[int, list[int]]:
    """{frame: levels, from 1, that write a summary into it, in order}; {} where the clip is too short for any group."""
    levels: dict[int, list[int]] = {}
    for level, groups in enumerate(ptg_schedule(frames, sizes, strides), start=1):
        for group in groups:
            levels.setdefault(group.writes, []).append(level)
    return levels


def _level(frames: int, size: int, stride: int) -> list[Group]:
    count = frames // stride
    if count == 0:
        return []
    sampled = np.rint(_linspace(frames, count + 1)[1:] - np.float32(1)).astype(int).tolist()
    groups = [tuple(sampled[i : i + size]) for i in range(0, count - size + 1, size)]
    return [Group(reads, reads[-1]) for reads in groups]


def _linspace(end: int, points: int) -> np.ndarray:
    """`torch.linspace(0, end, points)` in float32."""
    step = np.float32(end) / np.float32(points - 1)
    index = np.arange(points, dtype=np.float32)
    return np.where(index < points // 2, step * index, np.float32(end) - step * (np.float32(points - 1) - index))
