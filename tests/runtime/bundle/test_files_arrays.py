"""Arrays of a bundle: what a header claims is looked at before anything is believed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from refusal import naming

from runtime.bundle.files import read_array
from runtime.core.errors import BundleError


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_floats_are_mapped_and_not_read(tmp_path, dtype):
    np.save(tmp_path / "a.npy", np.arange(6, dtype=dtype).reshape(2, 3))
    array = read_array(tmp_path / "a.npy", 2)
    assert isinstance(array, np.memmap) and array.dtype == dtype and array.tolist() == [[0, 1, 2], [3, 4, 5]]


@pytest.mark.parametrize(
    ("array", "axes", "dtypes", "named"),
    [
        (np.zeros((2, 3), np.float32), 1, ("float32",), ("float32 [2, 3]", "1 axes")),
        (np.zeros(2, np.float32), 2, ("float32",), ("float32 [2]", "2 axes")),
        (np.zeros(2, np.float64), 1, ("float32", "int8"), ("float64 [2]", "float32", "int8", "1 axes")),
        (None, 1, ("int8",), ("archive", "int8", "1 axes")),
    ],
)
def test_another_array_is_refused_by_what_it_is(tmp_path: Path, array, axes, dtypes, named):
    path = tmp_path / "a.npy"
    with open(path, "wb") as file:
        np.savez(file, a=np.zeros(1)) if array is None else np.save(file, array)
    with pytest.raises(BundleError, match=naming(path, *named)):
        read_array(path, axes, dtypes)


def test_a_file_that_is_no_array_is_refused_in_one_line(tmp_path):
    (tmp_path / "a.npy").write_bytes(b"no\narray")
    with pytest.raises(BundleError, match=naming(tmp_path / "a.npy")):
        read_array(tmp_path / "a.npy", 1)
