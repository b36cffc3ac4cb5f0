"""One dense tensor in the file format of torch.save, written with NumPy and the standard library: `torch_save(array)`.

A zip archive, stored, of a pickle that rebuilds the tensor from a storage, that storage's bytes, and two small entries. Servers
load it with torch.load(weights_only=True), which takes exactly such pickles. Every entry's data begins at a multiple of 64
bytes, as torch writes it, so that it can be mapped.

The pickle's opcodes are those of protocol 2 (Lib/pickletools.py of CPython describes them), its names those that
torch.serialization writes.
"""

from __future__ import annotations

import struct
import zipfile
from io import BytesIO

import numpy as np

_ALIGNMENT = 64
_STORAGE = {np.dtype(np.float32): "FloatStorage", np.dtype(np.float16): "HalfStorage"}


def torch_save(array: np.ndarray, bfloat16: bool = False) -> bytes:
    """The file for float16 or float32 `array`; bfloat16: the tensor is bfloat16, rounded to nearest from float32."""
    if bfloat16:
        data, storage = _bfloat16(array), "BFloat16Storage"
    else:
        data, storage = np.ascontiguousarray(array), _STORAGE[array.dtype]
    buffer = BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        for name, content in (
            ("data.pkl", _pickle(data.shape, storage)),
            ("byteorder", b"little"),
            ("data/0", data.astype(data.dtype.newbyteorder("<"), copy=False).tobytes()),
            ("version", b"3\n"),
        ):
            _write(archive, buffer, f"archive/{name}", content)
    return buffer.getvalue()


def _bfloat16(array: np.ndarray) -> np.ndarray:
    """The upper 16 bits of float32 values, rounded to nearest, ties to even: uint16."""
    bits = np.ascontiguousarray(array, np.float32).view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)


def _write(archive: zipfile.ZipFile, buffer: BytesIO, name: str, content: bytes) -> None:
    info = zipfile.ZipInfo(name)  # 1980-01-01: equal tensors make equal files
    header = 30 + len(name) + 4  # a local header, and that of the extra field that pads it
    info.extra = struct.pack("<2sH", b"FB", padding := -(buffer.tell() + header) % _ALIGNMENT) + b"Z" * padding
    archive.writestr(info, content)


def _pickle(shape: tuple[int, ...], storage: str) -> bytes:
    """torch._utils._rebuild_tensor_v2(storage "0" on the cpu, offset 0, shape, strides, no gradient, no hooks)."""
    size = int(np.prod(shape))
    strides = [int(np.prod(shape[axis + 1 :])) for axis in range(len(shape))]
    persistent = b"(" + _text("storage") + _global("torch", storage) + _text("0") + _text("cpu") + _int(size) + b"tQ"
    hooks = _global("collections", "OrderedDict") + b")R"
    arguments = b"(" + persistent + _int(0) + _tuple(shape) + _tuple(strides) + b"\x89" + hooks + b"t"
    return b"\x80\x02" + _global("torch._utils", "_rebuild_tensor_v2") + arguments + b"R."


def _text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value)) + value.encode()


def _int(value: int) -> bytes:
    if value < 1 << 31:
        return b"J" + struct.pack("<i", value)
    return b"\x8a\x08" + struct.pack("<q", value)


def _tuple(values: tuple[int, ...] | list[int]) -> bytes:
    return b"(" + b"".join(map(_int, values)) + b"t"


def _global(module: str, name: str) -> bytes:
    return f"c{module}\n{name}\n".encode()
