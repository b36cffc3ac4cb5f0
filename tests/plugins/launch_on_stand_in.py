"""Run by test_plugin_launch.py in an interpreter whose libcuda is the stand-in: worst error of each case, as JSON."""

from __future__ import annotations

import json
import math
import os
import sys
from types import SimpleNamespace

import numpy as np
from plugin_cases import DTYPES, random_clip, worst

import plugins
import plugins.cuda
from plugins.reference import st_gridpool
from plugins.spec import StGridPool

# one and two vectors a thread, one and several warps, idle lanes, several windows a block and an incomplete last block; the generic way
CASES = [
    (StGridPool((4, 4), (1, 2)), (8, 5, 7, 8)),
    (StGridPool((4, 4), (1, 2)), (8, 5, 5, 64)),
    (StGridPool((), ()), (1, 7, 6, 168)),
    (StGridPool((), ()), (1, 7, 6, 328)),
    (StGridPool((4,), (1,), temperature=3), (4, 4, 5, 840)),
    (StGridPool((2,), (1,)), (2, 4, 4, 2064)),
    (StGridPool((2,), (1,), window=3, order=1, padding=1), (2, 5, 5, 520)),
    (StGridPool((2,), (1,), window=4, order=math.inf), (2, 9, 4, 296)),
    (StGridPool((), (), order=3), (2, 3, 5, 24)),
]


def main() -> int:
    dtype = os.environ["STAND_IN_DTYPE"]
    plugins.cuda.compile_kernel = lambda variant, target: SimpleNamespace(code=f"{variant} {target}".encode())
    errors = []
    for seed, (spec, shape) in enumerate(CASES):
        x = aligned(random_clip(shape, dtype, seed))
        expected = st_gridpool(x, spec)
        out = aligned(np.full(expected.shape, np.nan, DTYPES[dtype]))
        plugins.st_gridpool(array(x), spec, out=array(out), stream=1)
        errors.append(worst(out, expected))
    print(json.dumps(errors))
    return 0


def aligned(values: np.ndarray) -> np.ndarray:
    """A copy at a multiple of 64 bytes, as device memory is."""
    memory = np.zeros(values.nbytes + 64, np.uint8)
    start = -memory.ctypes.data % 64
    copy = memory[start : start + values.nbytes].view(values.dtype).reshape(values.shape)
    copy[...] = values
    return copy


def array(values: np.ndarray) -> SimpleNamespace:
    """A CUDA array as plugins.arrays sees it; bfloat16 looks like a torch tensor, because the interface has no name for it."""
    if values.dtype != DTYPES["bfloat16"]:
        interface = {"shape": values.shape, "typestr": values.dtype.str, "data": (values.ctypes.data, False), "version": 3}
        return SimpleNamespace(__cuda_array_interface__=interface)
    tensor = type("Tensor", (SimpleNamespace,), {"__module__": "torch"})
    return tensor(
        is_cuda=True,
        dtype="torch.bfloat16",
        shape=values.shape,
        device=SimpleNamespace(index=0),
        data_ptr=lambda: values.ctypes.data,
        is_contiguous=lambda: True,
    )


if __name__ == "__main__":
    sys.exit(main())
