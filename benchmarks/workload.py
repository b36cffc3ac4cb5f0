"""The seeded inputs that every contestant gets: the same frames, and the same prompt embeddings of a given length.

T frames, h pixels a side, S prompt positions, D hidden.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np


def pixel_values(frames: int, side: int) -> np.ndarray:
    """[T, 3, h, h] float32 in the encoder's range."""
    return np.random.default_rng(1).uniform(-1, 1, (frames, 3, side, side)).astype(np.float32)


def moving_clip(frames: int, side: int) -> np.ndarray:
    """[T, 3, h, h] float32 in the encoder's range: a still background of noise, a square of another that crosses it, sensor noise."""
    rng = np.random.default_rng(3)
    background, inside = rng.uniform(-0.9, 0.9, (2, 3, side, side)).astype(np.float32)
    clip = np.repeat(background[None], frames, 0)
    square = max(1, side // 3)
    for frame in range(frames):
        at = frame * (side - square) // max(1, frames - 1)
        clip[frame, :, at : at + square, at : at + square] = inside[:, :square, :square]
        clip[frame] += rng.uniform(-0.1, 0.1, (3, side, side)).astype(np.float32)
    return clip


def prompt_embeddings(positions: int, hidden: int) -> np.ndarray:
    """[1, S, D] float32 at the scale of the random checkpoint's embeddings."""
    return np.random.default_rng(2).normal(0, hidden**-0.5, (1, positions, hidden)).astype(np.float32)


def timed(function: Callable[[], Any]) -> tuple[float, Any]:
    """(seconds, result)."""
    start = time.perf_counter()
    result = function()
    return time.perf_counter() - start, result
