"""What the plugin's tests share: golden vectors, specs and shapes, CUDA arrays, and one tolerance table by dtype.

T frames, H, W patch rows and columns, D hidden.
"""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import ml_dtypes
import numpy as np
from hypothesis import strategies as st

from plugins.op import StGridPool

GOLDEN = sorted((Path(__file__).parent / "data" / "golden").glob("*.npz"))
DTYPES = {"float32": np.dtype("float32"), "float16": np.dtype("float16"), "bfloat16": np.dtype(ml_dtypes.bfloat16)}
# of the largest magnitude: rounding of the output and of up to three levels of stored summaries
TOLERANCE = {"float32": 2e-6, "float16": 2e-3, "bfloat16": 1.6e-2}

# one and two vectors a thread, one and several warps, idle lanes, several walks a row of odd and even frames, padding; several windows a
# block and an incomplete last block; the generic way, for its window, its order, or because a token has more vectors than the others take
BLOCK_CASES = [
    (StGridPool((4, 4), (1, 2)), (8, 5, 7, 8)),
    (StGridPool((4, 4), (1, 2)), (8, 5, 5, 64)),
    (StGridPool((), ()), (1, 7, 6, 168)),
    (StGridPool((), ()), (1, 7, 6, 328)),
    (StGridPool((4,), (1,), temperature=3), (4, 4, 5, 840)),
    (StGridPool((2,), (1,)), (2, 4, 4, 2064)),
    (StGridPool((4, 4), (1, 2)), (8, 4, 33, 264)),
    (StGridPool((4,), (1,)), (4, 3, 32, 520)),
    (StGridPool((4,), (1,), padding=1), (4, 4, 15, 264)),
    (StGridPool((), ()), (1, 3, 3, 8192)),
    (StGridPool((2,), (1,), window=3, order=1, padding=1), (2, 5, 5, 520)),
    (StGridPool((2,), (1,), window=4, order=math.inf), (2, 9, 4, 296)),
    (StGridPool((), (), order=3), (2, 3, 5, 24)),
    (StGridPool((), ()), (1, 2, 2, 8200)),
]


def golden_case(path: Path) -> tuple[StGridPool, np.ndarray, np.ndarray, np.ndarray]:
    """spec, x, after_ptg, tokens, as the authors' code made them."""
    with np.load(path) as file:
        data = dict(file)
    spec = StGridPool(
        sizes=tuple(int(v) for v in data["grid_size_list"]),
        strides=tuple(int(v) for v in data["grid_freq_list"]),
        window=int(data["kernel_size"]),
        temperature=float(data["temp"]),
        order=float(data["p"]),
        padding=int(data["padding"]),
    )
    return spec, data["x"], data["after_ptg"], data["tokens"]


@st.composite
def specs_and_shapes(draw: st.DrawFn) -> tuple[StGridPool, tuple[int, int, int, int]]:
    """Any spec that the kernel covers, on a small grid that it fits."""
    frames, height, width = draw(st.integers(1, 20)), draw(st.integers(3, 9)), draw(st.integers(3, 9))
    levels = draw(st.integers(0, 3))
    window = draw(st.integers(1, min(height, width)))
    spec = StGridPool(
        sizes=tuple(draw(st.lists(st.integers(1, 6).filter(lambda n: n != 5), min_size=levels, max_size=levels))),
        strides=tuple(draw(st.lists(st.integers(1, 4), min_size=levels, max_size=levels))),
        window=window,
        temperature=draw(st.sampled_from([0.0, 0.5, 1.0, 7.0])),
        order=draw(st.sampled_from([1.0, 2.0, 3.0, 2.5, math.inf])),
        padding=draw(st.integers(0, min(window - 1, 2))),
    )
    return spec, (frames, height, width, 8 * draw(st.integers(1, 12)))


def random_clip(shape: tuple[int, ...], dtype: str, seed: int, scale: float = 1.0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    magnitudes = rng.uniform(0.2, 3, shape[:3])[..., None]  # norms must differ for the softmax to matter
    return (rng.standard_normal(shape) * magnitudes * scale).astype(DTYPES[dtype])


def worst(got: np.ndarray, expected: np.ndarray) -> float:
    """Largest difference in units of the largest expected magnitude; NaN where something was not written."""
    return float(np.abs(got.astype(np.float64) - expected).max() / max(np.abs(expected).max(), 1e-30))


def cuda_array(address: int, shape: tuple[int, ...], dtype: np.dtype) -> Any:
    """Device memory as plugins.kernel.arrays sees it; bfloat16 looks like a torch tensor, because the interface has no name for it."""
    if dtype != DTYPES["bfloat16"]:
        interface = {"shape": shape, "typestr": dtype.str, "data": (address, False), "version": 3}
        return SimpleNamespace(__cuda_array_interface__=interface)
    tensor = type("Tensor", (SimpleNamespace,), {"__module__": "torch"})
    return tensor(
        is_cuda=True,
        dtype="torch.bfloat16",
        shape=shape,
        device=SimpleNamespace(index=0),
        data_ptr=lambda: address,
        is_contiguous=lambda: True,
    )
