"""Memory that OpenVINO would hold without using it, on Linux; elsewhere nothing is done.

release_mapped_pages   OpenVINO maps the weights' file, repacks them for its kernels and keeps the map, so each weight is resident
                       twice. That can be undone: a released page is read from the file again should anything access it.
lower_mmap_threshold   OpenVINO's buffers grow with the positions that a run reads. When a block of up to 32 MB is freed, glibc keeps
                       later blocks of its size in the heap, where the next one, a little larger, does not fit: a prefill of 5,441
                       positions at 0.5B size leaves 0.85 GB of holes. A threshold that was set explicitly stays.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_MAPS = Path("/proc/self/maps")
_MMAP_THRESHOLD = -3  # M_MMAP_THRESHOLD of glibc's malloc.h
_LARGE = 4 << 20  # bytes: above a 720p frame, which is allocated again and again
_loading = threading.Lock()


@contextmanager
def release_mapped_pages(directory: Path) -> Iterator[None]:
    """At the end of the block, release the pages of read-only maps that it made of files under `directory`.

    Whatever the block maps must stay mapped until then. One block runs at a time, so that new maps are its own: those of another could
    be gone by now, and something else be at their addresses. Does nothing on a system without /proc.
    """
    with _loading:
        before = _maps_of(directory)
        yield
        for start, stop in _maps_of(directory) - before:
            ctypes.CDLL(None).madvise(ctypes.c_void_p(start), ctypes.c_size_t(stop - start), mmap.MADV_DONTNEED)


def lower_mmap_threshold() -> bool:
    """From now on large blocks are mapped one by one and return to the system when they are freed; False where that is not possible.

    This affects the entire process; MALLOC_MMAP_THRESHOLD_, the user's own choice, takes precedence.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # no glibc
        return False
    return "MALLOC_MMAP_THRESHOLD_" not in os.environ and bool(mallopt(_MMAP_THRESHOLD, _LARGE))


def _maps_of(directory: Path) -> set[tuple[int, int]]:
    """(first address, address after the last) of each read-only map; a writable one can contain changes and is left out."""
    if not _MAPS.exists():
        return set()
    below, found = f"{directory.resolve()}/", set()
    for line in _MAPS.read_text(encoding="utf-8", errors="surrogateescape").splitlines():
        fields = line.split(maxsplit=5)  # addresses, permissions, offset, device, inode and, of a file, its path
        if len(fields) == 6 and fields[5].startswith(below) and "w" not in fields[1]:
            start, stop = (int(address, 16) for address in fields[0].split("-"))
            found.add((start, stop))
    return found
