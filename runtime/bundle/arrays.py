"""Reading a bundle's .npy files, memory-mapped: a header alone never makes this process allocate what it claims."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from runtime.core.errors import BundleError

FLOATS = ("float32", "float16")


def read_array(path: Path, axes: int, dtypes: tuple[str, ...] = FLOATS) -> np.ndarray:
    """The array in `path`, with `axes` axes and one of `dtypes`; only what is indexed is read. BundleError for anything else."""
    try:
        array = np.load(path, mmap_mode="r")
    except Exception as error:  # NumPy parses the header with Python's own tokenizer, whose errors have no common class
        raise BundleError(f"{path} is not a .npy file ({' '.join(str(error).split())}); export the bundle again") from None
    if not isinstance(array, np.ndarray) or array.ndim != axes or str(array.dtype) not in dtypes:
        found = f"{array.dtype} {list(array.shape)}" if isinstance(array, np.ndarray) else "an archive"
        raise BundleError(f"{path} holds {found}; expected {' or '.join(dtypes)} with {axes} axes, export the bundle again")
    return array
