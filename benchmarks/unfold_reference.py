"""The authors' algorithm of ST-GridPool, written plainly in torch: the baseline of compression_cost.py.

Level by level the clip is cloned, every frame of a group is shrunk with adaptive_avg_pool2d and tiled over the group's last
frame; then every window is unfolded, its tokens' norms go through a softmax, and the weighted tokens are summed. Nothing is made
slower on purpose and nothing is fused.

T frames, H, W patch rows and columns, D hidden, L windows of a frame, K tokens of a window.
"""

from __future__ import annotations

import math

import torch
from torch.nn import functional


def st_gridpool(
    x: torch.Tensor, sizes: tuple[int, ...] = (4, 4, 4), strides: tuple[int, ...] = (2, 4, 8), window: int = 2
) -> torch.Tensor:
    """[T, H, W, D] -> [T * (H // window) * (W // window), D]."""
    for size, stride in zip(sizes, strides, strict=True):
        x = temporal_gridding(x, size, stride)
    return spatial_pooling(x, window)


def temporal_gridding(x: torch.Tensor, size: int, stride: int) -> torch.Tensor:
    """One level of PTG: [T, H, W, D] -> the same shape."""
    frames, height, width, _ = x.shape
    rows = min(n for n in range(1, size + 1) if size % n == 0 and n * n >= size)
    columns = size // rows
    target = (math.ceil(height / rows), math.ceil(width / columns))
    samples = frames // stride
    indices = (torch.linspace(0, frames, samples + 1)[1:] - 1).round().long().tolist()
    out = x.clone()
    for start in range(0, samples - size + 1, size):
        group = indices[start : start + size]
        small = functional.adaptive_avg_pool2d(x[group].permute(0, 3, 1, 2), target)  # [size, D, h, w]
        lines = [torch.cat(list(small[row * columns : (row + 1) * columns]), dim=2) for row in range(rows)]
        tiled = torch.cat(lines, dim=1)  # [D, rows * h, columns * w]
        out[group[-1]] = tiled[:, :height, :width].permute(1, 2, 0)
    return out


def spatial_pooling(x: torch.Tensor, window: int) -> torch.Tensor:
    """NSP with p = 2 and temperature 1: [T, H, W, D] -> [T * L, D]."""
    frames, _, _, hidden = x.shape
    unfolded = functional.unfold(x.permute(0, 3, 1, 2), window, stride=window)  # [T, D * K, L]
    tokens = unfolded.view(frames, hidden, window * window, -1)  # [T, D, K, L]
    norms = tokens.norm(dim=1, p=2) / hidden**0.5  # [T, K, L]
    weights = norms.softmax(dim=1)
    pooled = (tokens * weights.unsqueeze(1)).sum(dim=2)  # [T, D, L]
    return pooled.permute(0, 2, 1).reshape(-1, hidden)
