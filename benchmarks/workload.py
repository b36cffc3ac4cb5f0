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


def prompt_embeddings(positions: int, hidden: int) -> np.ndarray:
    """[1, S, D] float32 at the scale of the random checkpoint's embeddings."""
    return np.random.default_rng(2).normal(0, hidden**-0.5, (1, positions, hidden)).astype(np.float32)


def timed(function: Callable[[], Any]) -> tuple[float, Any]:
    """(seconds, result)."""
    start = time.perf_counter()
    result = function()
    return time.perf_counter() - start, result
