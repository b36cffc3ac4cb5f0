"""`st_gridpool(x, spec)` on a GPU: any CUDA array in, an array of the same kind out, on the caller's stream, without a copy.

The first call with a spec, D, dtype and GPU compiles the kernel by NVRTC, and the first call with a shape uploads its plan, a few
kilobytes: make it before capturing a CUDA graph.

T frames, H, W patch rows and columns, D hidden, H', W' windows.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from plugins.driver import Device, call_driver, driver
from plugins.errors import EngineError, SpecError
from plugins.kernel.arrays import View, empty_like, stream_of, view
from plugins.kernel.compile import KERNEL, compile_kernel
from plugins.kernel.variants import BYTES, Args, Variant, args_of, few_windows, launches, variant_for
from plugins.op import StGridPool, not_covered, output_shape, spec_from_text
from plugins.plan import Plan, make_plan


def st_gridpool(x: Any, spec: StGridPool | str, *, out: Any = None, stream: Any = None) -> Any:
    """[T, H, W, D] -> [T, H', W', D], queued on `stream` (if None, the current stream of x's package).

    x: float32, float16 or bfloat16 CUDA array, contiguous, of torch, CuPy, or anything with DLPack or `__cuda_array_interface__`;
    others need `out`, of the right shape, dtype and device. UserError where the kernel does not cover spec, shape or array.
    """
    spec = spec_from_text(spec) if isinstance(spec, str) else spec
    handle = stream_of(x, stream)
    source = view(x, handle)
    reason = not_covered(spec, source.shape, source.dtype)
    if reason:
        raise SpecError(f"the kernel does not cover this: {reason}; use the plain graph, or export.compress")
    shape = output_shape(spec, source.shape)
    _refuse_layout("x", source)
    gpu = _gpu(_device_of(source))
    result = empty_like(x, shape, handle) if out is None else out
    if result is None:
        raise EngineError(f"cannot allocate an array of {type(x).__module__}; pass out=, {source.dtype} of shape {list(shape)}")
    target = view(result, handle)
    _refuse_layout("out", target)
    if (target.shape, target.dtype, _device_of(target)) != (shape, source.dtype, gpu.ordinal):
        got = f"{target.dtype} {list(target.shape)} on GPU {_device_of(target)}"
        raise EngineError(f"out is {got}; expected {source.dtype} {list(shape)} on GPU {gpu.ordinal}")
    call = _prepare(spec, source.shape, source.dtype, gpu.shared, gpu.multiprocessors)
    with gpu.active(), gpu.scratch(call.scratch_bytes, handle) as scratch:
        gpu.launch(call, source.pointer, scratch, target.pointer, handle)
    return result


@dataclass(frozen=True)
class _Call:
    """What calls with one spec, shape and dtype share, so that a call costs microseconds."""

    plan: Plan
    variant: Variant
    args: Args
    launches: tuple[tuple[int, ...], ...]
    scratch_bytes: int


@functools.cache
def _prepare(spec: StGridPool, shape: tuple[int, ...], dtype: str, shared: int, multiprocessors: int) -> _Call:
    plan = make_plan(spec, *shape[:3])
    variant = variant_for(spec, shape[3], dtype, shared=shared, few=few_windows(plan, multiprocessors))
    scratch = plan.scratch_tokens * shape[3] * BYTES[dtype]
    return _Call(plan, variant, args_of(plan, spec, shape[3], dtype), launches(plan, variant), scratch)


class _Gpu(Device):
    """One device, the kernels compiled for it and the plans uploaded to it."""

    def __init__(self, ordinal: int):
        super().__init__(ordinal)
        major, minor = self.capability
        if self.capability < (8, 0):
            raise EngineError(f"GPU {ordinal} is of compute capability {major}.{minor}; expected 8.0 or newer, use the plain graph")
        self.target = f"sm_{major}{minor}"
        self.shared = self.attribute("MAX_SHARED_MEMORY_PER_BLOCK_OPTIN")
        self.multiprocessors = self.attribute("MULTIPROCESSOR_COUNT")
        # programmatic dependent launch, where a driver can also capture it into a graph
        self.overlaps = self.capability >= (9, 0) and call_driver("cuDriverGetVersion") >= 12030
        self.kernel = functools.cache(self._kernel)
        self.upload = functools.cache(self._upload)

    @contextlib.contextmanager
    def scratch(self, size: int, stream: int) -> Iterator[int]:
        """Stream-ordered memory, freed when the kernels that use it have run."""
        pointer = call_driver("cuMemAllocAsync", size, stream) if size else 0
        try:
            yield int(pointer)
        finally:
            if size:
                driver().cuMemFreeAsync(pointer, stream)

    def launch(self, call: _Call, x: int, scratch: int, out: int, stream: int) -> None:
        kernel, tables = self.kernel(call.variant), self.upload(call.plan)
        pointers = [ctypes.c_void_p(pointer) for pointer in (tables, x, scratch, out)]
        for number, (*launch, blocks) in enumerate(call.launches):
            values = [call.args, *pointers, (ctypes.c_int * 4)(*launch)]
            parameters = (ctypes.c_void_p * len(values))(*map(ctypes.addressof, values))
            # The first launch must not begin before what writes x has ended.
            config = _config(blocks, call.variant, stream, overlaps=self.overlaps and number > 0)
            call_driver("cuLaunchKernelEx", config, kernel, ctypes.addressof(parameters), 0)

    def _kernel(self, variant: Variant) -> Any:
        module = call_driver("cuModuleLoadData", compile_kernel(variant, self.target).code)
        function = call_driver("cuModuleGetFunction", module, KERNEL.encode())
        attribute = driver().CUfunction_attribute.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
        call_driver("cuFuncSetAttribute", function, attribute, variant.shared_bytes)
        return function

    def _upload(self, plan: Plan) -> int:
        tables = (ctypes.c_int * len(plan.ints))(*plan.ints)
        size = ctypes.sizeof(tables)
        pointer = call_driver("cuMemAlloc", size)
        call_driver("cuMemcpyHtoD", pointer, ctypes.addressof(tables), size)
        return int(pointer)


_gpu = functools.cache(_Gpu)


@functools.lru_cache(maxsize=256)
def _config(blocks: int, variant: Variant, stream: int, overlaps: bool) -> Any:
    """overlaps: the launch may begin while the one before it ends; the kernel waits where it reads what that one writes."""
    config = driver().CUlaunchConfig()
    config.gridDimX, config.gridDimY, config.gridDimZ = blocks, 1, 1
    config.blockDimX, config.blockDimY, config.blockDimZ = variant.threads, variant.groups, 1
    config.sharedMemBytes = variant.shared_bytes
    config.hStream = stream
    if overlaps:
        attribute = driver().CUlaunchAttribute()
        attribute.id = driver().CUlaunchAttributeID.CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION
        attribute.value.programmaticStreamSerializationAllowed = 1
        config.attrs = [attribute]
        config.numAttrs = 1
    return config


def _device_of(array: View) -> int:
    if array.device is not None:
        return array.device
    attribute = driver().CUpointer_attribute.CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL
    return int(call_driver("cuPointerGetAttribute", attribute, array.pointer))


def _refuse_layout(name: str, array: View) -> None:
    if not array.contiguous:
        raise EngineError(f"{name} is not contiguous; expected [T, H, W, D] in row order, make it so with .contiguous()")
    if array.pointer % 16:
        raise EngineError(f"{name} begins at an address that is not a multiple of 16 bytes; copy it")
