"""runtime/engine/cuda.py on a GPU: copies, and what a captured graph does when it is replayed."""

from __future__ import annotations

import numpy as np
import pytest
from on_gpu import NEEDS_GPU, gpu, to_device, to_host

from runtime.core.errors import EngineError
from runtime.engine import cuda
from runtime.engine.cuda import Cuda

pytestmark = NEEDS_GPU
__all__ = ["gpu"]


def test_every_gpu_has_a_name_memory_and_the_compute_capability_that_the_driver_says():
    driver = pytest.importorskip("cuda.bindings.driver", reason="cuda-bindings is not installed")
    number = driver.CUdevice_attribute
    for ordinal, found in enumerate(cuda.gpus()):
        _, device = driver.cuDeviceGet(ordinal)
        _, major = driver.cuDeviceGetAttribute(number.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR, device)
        _, minor = driver.cuDeviceGetAttribute(number.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR, device)
        assert found.name and found.memory > 1 << 30 and found.capability == (major, minor)


def test_what_is_copied_to_the_device_comes_back(gpu: Cuda):
    values = np.random.default_rng(0).standard_normal((1000, 333)).astype(np.float32)
    np.testing.assert_array_equal(to_host(gpu, to_device(gpu, values), values.shape, values.dtype), values)
    staged = gpu.host(values.shape, values.dtype)
    staged[...] = values
    np.testing.assert_array_equal(to_host(gpu, to_device(gpu, staged), values.shape, values.dtype), values)


def test_a_captured_launch_runs_when_it_is_replayed_and_not_before(gpu: Cuda):
    address = to_device(gpu, np.ones(8, np.float32))
    graph = gpu.capture(lambda: gpu.zero(address, 16))
    assert to_host(gpu, address, (8,), np.dtype(np.float32)).tolist() == [1] * 8
    gpu.replay(graph)
    assert to_host(gpu, address, (8,), np.dtype(np.float32)).tolist() == [0] * 4 + [1] * 4
    gpu.drop_graph(graph)


def test_a_stream_goes_on_after_a_launch_that_failed_in_capture(gpu: Cuda):
    address = to_device(gpu, np.ones(4, np.float32))

    def launch() -> None:
        gpu.zero(address, 16)
        raise EngineError("no")

    with pytest.raises(EngineError, match="no"):
        gpu.capture(launch)
    assert to_host(gpu, address, (4,), np.dtype(np.float32)).tolist() == [1] * 4


def test_more_memory_than_there_is_is_an_error_in_cudas_words(gpu: Cuda):
    with pytest.raises(EngineError, match=r"on the GPU: CUDA says out of memory \(error 2\)"):
        gpu.allocate(1 << 60)
    to_device(gpu, np.ones(4, np.float32))  # and the next call does not report it again
