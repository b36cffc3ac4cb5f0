"""What `plugins.st_gridpool` says of arrays it can't take, and what it reads of those it can, without a GPU."""

from __future__ import annotations

import contextlib
import ctypes
import re
import struct
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from refusal import naming

import plugins
from plugins.kernel.arrays import empty_like, stream_of, view, view_of_capsule
from plugins.kernel.variants import Args, args_of
from plugins.op import StGridPool
from plugins.plan import make_plan
from runtime.core.errors import EngineError, SpecError, UserError


def cuda_array(shape=(8, 6, 6, 16), typestr="<f2", strides=None, pointer=1 << 20):
    return SimpleNamespace(
        __cuda_array_interface__={"shape": shape, "typestr": typestr, "strides": strides, "data": (pointer, False), "version": 3}
    )


def test_an_array_on_the_cpu_is_refused():
    with pytest.raises(EngineError, match="x is on cpu"):
        plugins.st_gridpool(torch.zeros(8, 6, 6, 16), "nsp:window=2")
    with pytest.raises(EngineError, match="DLPack device type 1"):
        plugins.st_gridpool(np.zeros((8, 6, 6, 16), np.float32), "nsp:window=2")
    with pytest.raises(EngineError, match="x is list"):
        plugins.st_gridpool([1], "nsp:window=2")


@pytest.mark.parametrize(
    ("array", "spec", "words"),
    [
        (cuda_array((8, 6, 6, 12)), "nsp:window=2", "multiple of 8"),
        (cuda_array((6, 6, 16)), "nsp:window=2", r"shape \[6, 6, 16\]; expected \[T, H, W, D\]"),
        (cuda_array(typestr="<f8"), "nsp:window=2", "dtype <f8"),
        (cuda_array(), "nsp:window=7", "window 7 does not fit"),
        (cuda_array(), "ptg+nsp+evs", 'not "ptg'),
        (cuda_array(), StGridPool(order=9), "order 9"),
        (cuda_array(strides=(2304, 384, 32, 2)), "nsp:window=2", "not contiguous"),
        (cuda_array(pointer=(1 << 20) + 8), "nsp:window=2", "16 bytes"),
    ],
)
def test_what_the_kernel_does_not_cover_is_refused_before_a_gpu_is_asked_for(array, spec, words):
    with pytest.raises((SpecError, EngineError), match=words):
        plugins.st_gridpool(array, spec)


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_without_a_gpu_the_error_says_so():
    with pytest.raises(UserError, match="GPU"):
        plugins.st_gridpool(cuda_array(), "nsp:window=2")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_a_dlpack_capsule_is_read_without_a_copy(dtype):
    x = torch.zeros(4, 6, 5, 16, dtype=dtype)[1:]
    seen = view_of_capsule(x.__dlpack__(), 0)
    assert (seen.pointer, seen.shape, seen.dtype, seen.contiguous) == (x.data_ptr(), tuple(x.shape), str(dtype)[6:], True)
    assert not view_of_capsule(x.transpose(1, 2).__dlpack__(), 0).contiguous


def capsule(shape, strides, code, bits, lanes=1, offset=0):
    """A DLTensor at address 4096, written out as dlpack.h has it, and what must live as long."""
    numbers = [(ctypes.c_int64 * len(values))(*values) if values else None for values in (shape, strides)]
    pointers = [ctypes.addressof(values) if values else 0 for values in numbers]
    tensor = ctypes.create_string_buffer(struct.pack("@QiiiBBHPPQ", 4096, 2, 0, len(shape), code, bits, lanes, *pointers, offset))
    new = ctypes.pythonapi.PyCapsule_New
    new.restype, new.argtypes = ctypes.py_object, [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p]
    return new(ctypes.addressof(tensor), b"dltensor", None), (tensor, *numbers)


@pytest.mark.parametrize(("strides", "contiguous"), [(None, True), ((12, 4, 1), True), ((12, 1, 3), False), ((24, 4, 1), False)])
def test_a_capsule_without_strides_is_contiguous(strides, contiguous):
    made, _alive = capsule((2, 3, 4), strides, 2, 32, offset=64)
    seen = view_of_capsule(made, 3)
    assert (seen.pointer, seen.shape, seen.dtype, seen.contiguous, seen.device) == (4160, (2, 3, 4), "float32", contiguous, 3)
    assert seen.owner is made


@pytest.mark.parametrize(
    ("code", "bits", "lanes", "dtype"),
    [
        (2, 32, 1, "float32"), (2, 16, 1, "float16"), (4, 16, 1, "bfloat16"), (2, 64, 1, "DLPack type 2 of 64 bits"),
        (0, 32, 1, "DLPack type 0 of 32 bits"), (2, 32, 4, "float32 x 4"),
    ],
)  # fmt: skip
def test_the_type_of_a_capsule_is_named(code, bits, lanes, dtype):
    made, _alive = capsule((8,), None, code, bits, lanes)
    assert view_of_capsule(made, None).dtype == dtype


def test_strides_that_say_contiguous_are_contiguous():
    assert view(cuda_array((2, 3, 4, 8), strides=(192, 64, 16, 2)), 0).contiguous


def test_streams_of_every_kind_give_their_handle():
    assert stream_of(cuda_array(), None) == 0
    assert stream_of(cuda_array(), 7) == 7
    assert stream_of(cuda_array(), SimpleNamespace(cuda_stream=8)) == 8
    assert stream_of(cuda_array(), SimpleNamespace(ptr=9)) == 9
    assert stream_of(cuda_array(), SimpleNamespace(__cuda_stream__=lambda: (0, 10))) == 10
    with pytest.raises(EngineError, match="stream is str"):
        stream_of(cuda_array(), "fast")


@pytest.mark.parametrize(("asked", "entered"), [(0, []), (5, [5])])
def test_a_new_torch_array_belongs_to_the_stream_asked_for_and_not_to_any_when_that_is_the_current_one(monkeypatch, asked, entered):
    """torch takes 0, the default stream's handle, for "one of mine", so it must never be asked for by handle."""
    streams: list[int] = []

    @contextlib.contextmanager
    def stream(external):
        streams.append(external)
        yield

    cuda = SimpleNamespace(
        current_stream=lambda device: SimpleNamespace(cuda_stream=0), ExternalStream=lambda handle, device: handle, stream=stream
    )
    monkeypatch.setitem(sys.modules, "torch", SimpleNamespace(cuda=cuda))
    tensor = type("Tensor", (SimpleNamespace,), {"__module__": "torch"})(device=0, new_empty=lambda shape: shape)
    assert empty_like(tensor, (2, 3), asked) == (2, 3)
    assert streams == entered


def of_package(name: str, **attributes):
    return type("Array", (SimpleNamespace,), {"__module__": f"{name}.inner"})(**attributes)


def of_torch(**attributes):
    defaults = {"is_cuda": True, "dtype": torch.float16, "shape": torch.Size([2, 3]), "device": torch.device("cuda", 1)}
    methods = {"data_ptr": lambda: 4096, "is_contiguous": lambda: False}
    return of_package("torch", **defaults | methods | attributes)


def test_a_torch_tensor_is_asked_itself():
    tensor = of_torch()
    seen = view(tensor, 0)
    assert (seen.pointer, seen.shape, seen.dtype, seen.contiguous, seen.device) == (4096, (2, 3), "float16", False, 1)
    assert seen.owner is tensor and view(of_torch(is_contiguous=lambda: True), 0).contiguous


@pytest.mark.parametrize(
    ("shape", "typestr", "strides", "dtype", "contiguous"),
    [
        ([2, 3], "<f4", None, "float32", True),
        ([2, 3], "<f2", (6, 2), "float16", True),
        ([2, 3], "<f4", [12, 4], "float32", True),
        ([2, 3], "<f4", (6, 2), "float32", False),
        ([2, 3], "<f2", (2, 4), "float16", False),
        ([4], "<f8", (8,), "<f8", True),
        ([4], "<i4", (8,), "<i4", False),
        ([], "<f4", (), "float32", True),
    ],
)
def test_the_cuda_array_interface_is_read(shape, typestr, strides, dtype, contiguous):
    array = cuda_array(shape, typestr, strides, 8192)
    seen = view(array, 0)
    assert (seen.pointer, seen.shape, seen.dtype, seen.contiguous, seen.device) == (8192, tuple(shape), dtype, contiguous, None)
    assert seen.owner is array


@pytest.mark.parametrize(("device", "accepted"), [(2, True), (13, True), (1, False), (3, False), (12, False), (14, False)])
@pytest.mark.parametrize(("stream", "asked"), [(0, 1), (7, 7)])
def test_an_array_whose_interface_fails_is_read_through_dlpack_on_a_stream(device, accepted, stream, asked):
    class Array:
        streams = ()

        @property
        def __cuda_array_interface__(self):
            raise TypeError("bfloat16 has no name")

        def __dlpack_device__(self):
            return device, 5

        def __dlpack__(self, stream):
            self.streams = (*self.streams, stream)
            made, self.alive = capsule((8, 4), None, 4, 16)
            return made

    array = Array()
    if not accepted:
        with pytest.raises(EngineError, match=naming("x", f"type {device}", "type 2")):
            view(array, stream)
        return
    seen = view(array, stream)
    assert (seen.shape, seen.dtype, seen.contiguous, seen.device, array.streams) == ((8, 4), "bfloat16", True, 5, (asked,))


def test_without_a_stream_it_is_the_current_one_of_the_arrays_package(monkeypatch):
    devices: list[int] = []
    current = SimpleNamespace(current_stream=lambda device: devices.append(device) or SimpleNamespace(cuda_stream=21))
    monkeypatch.setitem(sys.modules, "torch", SimpleNamespace(cuda=current))
    monkeypatch.setitem(
        sys.modules, "cupy", SimpleNamespace(cuda=SimpleNamespace(get_current_stream=lambda: SimpleNamespace(ptr=22)))
    )
    assert stream_of(of_package("torch", is_cuda=True, device=3), None) == 21 and devices == [3]
    assert stream_of(of_package("torch", is_cuda=False, device=3), None) == 0 and devices == [3]
    assert stream_of(of_package("cupy"), None) == 22
    assert stream_of(of_package("jax"), None) == 0
    assert stream_of(of_package("cupy"), 5) == 5


def test_a_stream_says_its_handle_by_the_first_name_that_it_has():
    assert stream_of(cuda_array(), SimpleNamespace(handle="11")) == 11
    assert stream_of(cuda_array(), SimpleNamespace(handle=3, ptr=2, cuda_stream=1)) == 1
    assert stream_of(cuda_array(), 0) == 0
    with pytest.raises(EngineError, match=naming("stream", "list", "torch", "CuPy", "cuda-python")):
        stream_of(cuda_array(), [])


def test_a_new_cupy_array_is_made_on_the_stream_and_of_other_packages_none(monkeypatch):
    streams: list[int] = []

    @contextlib.contextmanager
    def external(handle):
        streams.append(handle)
        yield

    module = SimpleNamespace(
        cuda=SimpleNamespace(ExternalStream=external), empty=lambda shape, dtype: (shape, dtype, list(streams))
    )
    monkeypatch.setitem(sys.modules, "cupy", module)
    assert empty_like(of_package("cupy", dtype="float16"), (2, 3), 9) == ((2, 3), "float16", [9])
    assert empty_like(of_package("jax"), (2, 3), 9) is None and empty_like(cuda_array(), (2, 3), 9) is None


def test_the_kernels_arguments_have_the_layout_of_the_source():
    source = (Path(plugins.__file__).parent / "csrc" / "clip.cuh").read_text()
    body = re.search(r"struct Args \{(.*?)\};", source, re.S)[1]
    body = re.sub(r"//.*", "", body)
    members = [(kind, name) for kind, names in re.findall(r"(int|float) ([^;]+);", body) for name in names.split(", ")]
    types = {"int": ctypes.c_int, "float": ctypes.c_float}
    assert [(name, types[kind]) for kind, name in members] == list(Args._fields_)
    args = args_of(make_plan(StGridPool(), 32, 27, 27), StGridPool(), 896, "bfloat16")
    assert (args.frames, args.width, args.rows, args.window, args.padding, args.vecs) == (32, 27, 13, 2, 0, 112)
