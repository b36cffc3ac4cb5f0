"""torch itself loads what is written without it, bit for bit."""

from __future__ import annotations

import io
import pickle
import struct
import zipfile

import numpy as np
import pytest
import torch

from runtime.llm.torch_format import _int, torch_save

SHAPES = [(5, 8), (1, 1), (257, 128), (3,), (0, 4), (2, 3, 4)]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_torch_loads_the_same_values(shape, dtype):
    array = np.random.default_rng(0).normal(0, 3, shape).astype(dtype)
    loaded = torch.load(io.BytesIO(torch_save(array)), weights_only=True)
    assert loaded.dtype == torch.from_numpy(array).dtype and loaded.is_contiguous() and not loaded.requires_grad
    np.testing.assert_array_equal(loaded.numpy(), array)


def test_bfloat16_is_rounded_as_torch_rounds():
    values = np.random.default_rng(1).normal(0, 1, (64, 33)).astype(np.float32)
    values[0, :5] = [1 + 2**-8, 1 + 3 * 2**-8, 65504, 1e-40, -0.0]  # ties, both ways
    loaded = torch.load(io.BytesIO(torch_save(values, bfloat16=True)), weights_only=True)
    assert torch.equal(loaded, torch.from_numpy(values).bfloat16())


def test_a_view_is_written_as_it_looks():
    array = np.arange(24, dtype=np.float32).reshape(4, 6).T[::2]
    np.testing.assert_array_equal(torch.load(io.BytesIO(torch_save(array)), weights_only=True).numpy(), array)


def test_data_can_be_mapped_and_equal_tensors_make_equal_files(tmp_path):
    array = np.random.default_rng(2).normal(size=(9, 16)).astype(np.float16)
    (tmp_path / "a.pt").write_bytes(torch_save(array))
    assert torch_save(array) == (tmp_path / "a.pt").read_bytes()
    assert torch.equal(torch.load(tmp_path / "a.pt", mmap=True, weights_only=True), torch.from_numpy(array))
    with zipfile.ZipFile(tmp_path / "a.pt") as archive:
        info = archive.getinfo("archive/data/0")
    content = (tmp_path / "a.pt").read_bytes()
    begin = info.header_offset + 30 + sum(np.frombuffer(content[info.header_offset + 26 : info.header_offset + 30], "<u2"))
    assert begin % 64 == 0 and content[begin : begin + array.nbytes] == array.tobytes()


@pytest.mark.parametrize(
    ("value", "written"),
    [
        (0, b"J\0\0\0\0"),
        (258, b"J\2\1\0\0"),
        (2**31 - 1, b"J\xff\xff\xff\x7f"),
        (2**31, b"\x8a\x08\0\0\0\x80\0\0\0\0"),
        (2**40 + 3, b"\x8a\x08\3\0\0\0\0\1\0\0"),
    ],
)
def test_sizes_past_32_bits_are_numbers_of_64(value, written):
    assert _int(value) == written and pickle.loads(b"\x80\x02" + written + b".") == value


def test_every_entry_begins_at_a_multiple_of_64_bytes():
    content = torch_save(np.zeros((3, 5), np.float32))
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        assert archive.namelist() == [f"archive/{name}" for name in ("data.pkl", "byteorder", "data/0", "version")]
        for info in archive.infolist():
            name, extra = struct.unpack("<HH", content[info.header_offset + 26 : info.header_offset + 30])
            assert (info.header_offset + 30 + name + extra) % 64 == 0 and extra < 4 + 64
            assert info.compress_type == zipfile.ZIP_STORED and info.date_time == (1980, 1, 1, 0, 0, 0)
        assert (archive.read("archive/byteorder"), archive.read("archive/version")) == (b"little", b"3\n")
