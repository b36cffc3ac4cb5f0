"""What tests on a GPU share: the mark, with what is missing where they are skipped, and copies to and from the device."""

from __future__ import annotations

import numpy as np
import pytest

from runtime.engine import cuda

NEEDS_GPU = [pytest.mark.gpu, pytest.mark.skipif(cuda.no_gpu() is not None, reason=f"needs a GPU: {cuda.no_gpu()}")]


@pytest.fixture
def gpu():
    """A stream of the first GPU, and memory that is freed with it."""
    opened = cuda.Cuda()
    yield opened
    opened.close()


def to_device(gpu: cuda.Cuda, values: np.ndarray) -> int:
    """Address of a copy of the values."""
    address = gpu.allocate(values.nbytes)
    gpu.to_device(address, np.ascontiguousarray(values))
    gpu.synchronize()
    return address


def to_host(gpu: cuda.Cuda, address: int, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    result = np.empty(shape, dtype)
    gpu.to_host(result, address)
    gpu.synchronize()
    return result
