"""Run by test_launch_on_stand_in.py in an interpreter whose libcuda is the stand-in: worst error of each case, as JSON."""

from __future__ import annotations

import json
import os
import sys
from types import SimpleNamespace
from typing import Any

import numpy as np
from plugin_cases import BLOCK_CASES, DTYPES, cuda_array, random_clip, worst

import plugins
import plugins.kernel.launch
from plugins.reference import st_gridpool


def main() -> int:
    dtype = os.environ["STAND_IN_DTYPE"]
    plugins.kernel.launch.compile_kernel = lambda variant, target: SimpleNamespace(code=f"{variant} {target}".encode())
    errors = []
    for seed, (spec, shape) in enumerate(BLOCK_CASES):
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


def array(values: np.ndarray) -> Any:
    return cuda_array(values.ctypes.data, values.shape, values.dtype)


if __name__ == "__main__":
    sys.exit(main())
