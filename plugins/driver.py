"""The CUDA driver, through cuda-bindings: the only file of this project that loads it, at the first call.

The driver API needs no CUDA runtime library; memory and streams are those of a device's primary context, which PyTorch, ONNX
Runtime and TensorRT use too.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator
from typing import Any

from plugins.errors import EngineError


@functools.cache
def driver() -> Any:
    """The module cuda.bindings.driver, initialised. EngineError where the package, a driver or a GPU is missing."""
    try:
        from cuda.bindings import driver as bindings
    except ImportError as error:
        problem = 'a GPU needs the package "cuda-bindings", which is not installed'
        raise EngineError(f'{problem}; pip install "cuda-bindings>=12.9", or use the CPU') from error
    try:
        (status,) = bindings.cuInit(0)
    except RuntimeError as error:  # libcuda is not there
        raise EngineError("no NVIDIA driver (libcuda.so.1); run on a machine with an NVIDIA GPU, or use the CPU") from error
    if int(status):
        raise EngineError(f"the driver sees no GPU ({status.name}); check nvidia-smi and CUDA_VISIBLE_DEVICES, or use the CPU")
    return bindings


def call_driver(function: str, *arguments: Any, doing: str = "") -> Any:
    """The value that a function of the driver returns; EngineError with CUDA's message if it fails. doing: what it is for."""
    status, *values = getattr(driver(), function)(*arguments)
    if int(status):
        _, words = driver().cuGetErrorString(status)
        raise EngineError(f"{doing or function}: CUDA says {words.decode()} (error {int(status)})")
    return values[0] if values else None


class Device:
    """A GPU and its primary context.

    ordinal     its number among the visible ones
    capability  (major, minor) of its compute capability
    """

    def __init__(self, ordinal: int):
        self.ordinal = ordinal
        self.handle = call_driver("cuDeviceGet", ordinal)
        major, minor = (self.attribute(f"COMPUTE_CAPABILITY_{part}") for part in ("MAJOR", "MINOR"))
        self.capability = (major, minor)

    def attribute(self, name: str) -> int:
        """The value of CU_DEVICE_ATTRIBUTE_<name>."""
        attribute = getattr(driver().CUdevice_attribute, f"CU_DEVICE_ATTRIBUTE_{name}")
        return int(call_driver("cuDeviceGetAttribute", attribute, self.handle))

    @functools.cached_property
    def context(self) -> Any:
        """The primary context, kept until the process ends."""
        return call_driver("cuDevicePrimaryCtxRetain", self.handle)

    @contextlib.contextmanager
    def active(self) -> Iterator[None]:
        """Calls from this thread within the block are for this device."""
        call_driver("cuCtxPushCurrent", self.context)
        try:
            yield
        finally:
            driver().cuCtxPopCurrent()
