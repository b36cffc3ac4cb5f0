"""Weights that an engine mapped, packed a copy of, and does not let go: their pages leave this process's memory.

OpenVINO maps the file of the weights, packs them for its kernels and keeps the map, so each weight is resident twice. It need not be:
whoever reads such a page again has it back from the file.
"""

from __future__ import annotations

import ctypes
import mmap
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_MAPS = Path("/proc/self/maps")
_loading = threading.Lock()


@contextmanager
def released_after(directory: Path) -> Iterator[None]:
    """Around a load: what it mapped of the files under `directory`, and may not write, loses its pages at the end.

    Whatever the block maps must stay mapped until then. One load at a time, so that new maps are the block's own: those of another could be
    gone by now, and something else be at their addresses. Does nothing on a system without /proc.
    """
    with _loading:
        before = _maps_of(directory)
        yield
        for start, stop in _maps_of(directory) - before:
            ctypes.CDLL(None).madvise(ctypes.c_void_p(start), ctypes.c_size_t(stop - start), mmap.MADV_DONTNEED)


def _maps_of(directory: Path) -> set[tuple[int, int]]:
    """(first address, address behind the last) of each map; one that may be written to can hold changes, and is left out."""
    if not _MAPS.exists():
        return set()
    below, found = f"{directory.resolve()}/", set()
    for line in _MAPS.read_text(encoding="utf-8", errors="surrogateescape").splitlines():
        fields = line.split(maxsplit=5)  # addresses, permissions, offset, device, inode and, of a file, its path
        if len(fields) == 6 and fields[5].startswith(below) and "w" not in fields[1]:
            start, stop = (int(address, 16) for address in fields[0].split("-"))
            found.add((start, stop))
    return found
