"""Pointer, shape and dtype of a CUDA array, without a copy: torch, CuPy, and anything with DLPack or `__cuda_array_interface__`
(JAX, Numba, …). None of these packages is imported: the one that an array comes from is loaded already.
"""

from __future__ import annotations

import ctypes
import math
import struct
import sys
from dataclasses import dataclass
from typing import Any

from plugins.errors import EngineError

_TYPESTR = {"<f4": "float32", "<f2": "float16"}
_DLPACK = {(2, 32): "float32", (2, 16): "float16", (4, 16): "bfloat16"}  # (type code, bits)
_CUDA, _CUDA_MANAGED = 2, 13
# DLTensor of dlpack.h: data, device type and number, ndim, type code, bits, lanes, shape, strides, byte offset
_TENSOR = struct.Struct("@QiiiBBHPPQ")


@dataclass(frozen=True)
class View:
    """pointer and device (None where only the driver knows it); `owner` must live until the work is queued."""

    pointer: int
    shape: tuple[int, ...]
    dtype: str
    contiguous: bool
    device: int | None
    owner: Any


def view(array: Any, stream: int) -> View:
    """The view of an array on a GPU; EngineError for anything else. With DLPack, `stream` waits for what writes the array."""
    if _package(array) == "torch":
        if not array.is_cuda:
            raise EngineError(f"x is on {array.device}; expected a CUDA array, move it with .cuda()")
        dtype = str(array.dtype).removeprefix("torch.")
        return View(array.data_ptr(), tuple(array.shape), dtype, array.is_contiguous(), array.device.index, array)
    try:
        interface = getattr(array, "__cuda_array_interface__", None)
    except (TypeError, ValueError, RuntimeError):  # a dtype that the interface has no name for: bfloat16
        interface = None
    if interface is not None:
        shape, typestr = tuple(interface["shape"]), interface["typestr"]
        size = int(typestr[2:])
        strides = interface.get("strides")
        contiguous = strides is None or tuple(strides) == _strides(shape, size)
        return View(interface["data"][0], shape, _TYPESTR.get(typestr, typestr), contiguous, None, array)
    if hasattr(array, "__dlpack__"):
        kind, device = array.__dlpack_device__()
        if int(kind) not in (_CUDA, _CUDA_MANAGED):
            raise EngineError(f"x is on DLPack device type {int(kind)}; expected a CUDA array (type {_CUDA})")
        return view_of_capsule(array.__dlpack__(stream=stream or 1), device)  # 1 is DLPack's name for stream 0
    raise EngineError(f"x is {type(array).__name__}; expected a CUDA array: torch, CuPy, DLPack or __cuda_array_interface__")


def view_of_capsule(capsule: Any, device: int | None) -> View:
    """The view of an unversioned DLPack capsule. The capsule owns the memory: it is not marked as used, so it will free it."""
    get = ctypes.pythonapi.PyCapsule_GetPointer
    get.restype, get.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]
    tensor = ctypes.string_at(get(capsule, b"dltensor"), _TENSOR.size)
    data, _, _, ndim, code, bits, lanes, shape_at, strides_at, offset = _TENSOR.unpack(tensor)
    integers = ctypes.c_int64 * ndim
    shape = tuple(integers.from_address(shape_at))
    contiguous = not strides_at or tuple(integers.from_address(strides_at)) == _strides(shape, 1)
    dtype = _DLPACK.get((code, bits), f"DLPack type {code} of {bits} bits") + (f" x {lanes}" if lanes != 1 else "")
    return View(data + offset, shape, dtype, contiguous, device, capsule)


def stream_of(array: Any, stream: Any) -> int:
    """The CUDA stream's handle: of `stream` (a handle, or an object of torch, CuPy or cuda-python), else the array's package's current one."""
    if stream is None:
        package = _package(array)
        if package == "torch":
            return sys.modules["torch"].cuda.current_stream(array.device).cuda_stream if array.is_cuda else 0
        return sys.modules["cupy"].cuda.get_current_stream().ptr if package == "cupy" else 0
    for name in ("cuda_stream", "ptr", "handle"):
        if hasattr(stream, name):
            return int(getattr(stream, name))
    if hasattr(stream, "__cuda_stream__"):
        return int(stream.__cuda_stream__()[1])
    try:
        return int(stream)
    except (TypeError, ValueError):
        expected = "a handle or a stream of torch, CuPy or cuda-python"
        raise EngineError(f"stream is {type(stream).__name__}; expected {expected}") from None


def empty_like(array: Any, shape: tuple[int, ...], stream: int) -> Any:
    """A new array of the same package, dtype and device, whose memory belongs to `stream`; None where the package is not known."""
    package = _package(array)
    module: Any = sys.modules.get(package)
    if package == "torch":
        if stream == module.cuda.current_stream(array.device).cuda_stream:  # 0 too, which ExternalStream takes for "any stream"
            return array.new_empty(shape)
        with module.cuda.stream(module.cuda.ExternalStream(stream, array.device)):
            return array.new_empty(shape)
    if package == "cupy":
        with module.cuda.ExternalStream(stream):
            return module.empty(shape, array.dtype)
    return None


def _package(array: Any) -> str:
    return type(array).__module__.partition(".")[0]


def _strides(shape: tuple[int, ...], size: int) -> tuple[int, ...]:
    return tuple(size * math.prod(shape[i + 1 :]) for i in range(len(shape)))
