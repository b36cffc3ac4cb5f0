"""StGridPool in NumPy, accumulated in float64: the reference for tests of the kernel and the graph.

It follows the definition, frame by frame and window by window, and shares only the schedule with the kernel's plan.

T frames, H, W patch rows and columns, D hidden, H', W' windows.
"""

from __future__ import annotations

import math

import numpy as np

from plugins.op import StGridPool, output_shape, tile_layout
from plugins.schedule import ptg_schedule


def st_gridpool(x: np.ndarray, spec: StGridPool) -> np.ndarray:
    """[T, H, W, D] -> float64 [T, H', W', D]."""
    output_shape(spec, x.shape)
    return norm_pool(temporal_grid(x, spec), spec)


def temporal_grid(x: np.ndarray, spec: StGridPool) -> np.ndarray:
    """Pyramid Temporal Gridding: [T, H, W, D] -> float64, same shape, some frames replaced by tiled summaries."""
    x = x.astype(np.float64)
    frames, height, width, _ = x.shape
    for groups in ptg_schedule(frames, spec.sizes, spec.strides):
        before = x.copy()
        for group in groups:
            rows, columns = tile_layout(len(group.reads))
            small = [area_resize(before[frame], -(-height // rows), -(-width // columns)) for frame in group.reads]
            tiled = np.block([[[small[row * columns + column]] for column in range(columns)] for row in range(rows)])
            x[group.writes] = tiled.reshape(rows * small[0].shape[0], -1, x.shape[-1])[:height, :width]
    return x


def area_resize(frame: np.ndarray, height: int, width: int) -> np.ndarray:
    """Adaptive average of [H, W, D] to [height, width, D]."""
    rows = [_span(i, frame.shape[0], height) for i in range(height)]
    columns = [_span(j, frame.shape[1], width) for j in range(width)]
    return np.array([[frame[row, column].mean((0, 1)) for column in columns] for row in rows])


def norm_pool(x: np.ndarray, spec: StGridPool) -> np.ndarray:
    """Norm-based Spatial Pooling: [T, H, W, D] -> float64 [T, H', W', D]."""
    ring, k, hidden = spec.padding, spec.window, x.shape[-1]
    x = np.pad(x.astype(np.float64), ((0, 0), (ring, ring), (ring, ring), (0, 0)))
    magnitude = np.abs(x)
    if math.isinf(spec.order):
        norm = magnitude.max(-1)
    else:
        norm = (magnitude**spec.order).sum(-1) ** (1 / spec.order) / hidden ** (1 / spec.order)
    frames, rows, columns = x.shape[0], x.shape[1] // k, x.shape[2] // k
    result = np.empty((frames, rows, columns, hidden))
    for i in range(rows):
        for j in range(columns):
            window = np.s_[:, i * k : (i + 1) * k, j * k : (j + 1) * k]
            logits = (norm[window] * spec.temperature).reshape(frames, -1)
            weights = np.exp(logits - logits.max(-1, keepdims=True))
            weights /= weights.sum(-1, keepdims=True)
            result[:, i, j] = (weights[..., None] * x[window].reshape(frames, k * k, hidden)).sum(1)
    return result


def _span(index: int, size: int, target: int) -> slice:
    return slice(index * size // target, -(-(index + 1) * size // target))
