"""Memory that OpenVINO would hold and not use, on Linux; elsewhere nothing is done.

released_after   It maps the file of the weights, packs them for its kernels and keeps the map, so each weight is resident twice. It need
                 not be: whoever reads such a page again has it back from the file.
large_blocks_apart   Its buffers grow with the positions that a run reads. glibc takes the size of a block that was freed, up to 32 MB, for
                 one that will soon be asked for again and keeps blocks up to it in the heap, where the next one, a little larger, does
                 not fit: a prefill of 5,441 positions at 0.5B size leaves 0.85 GB of holes. A threshold that was set stays.
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
_LARGE = 4 << 20  # bytes: above a 720p frame, which is asked for again
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


def large_blocks_apart() -> bool:
    """From now on large blocks are mapped one by one and leave memory when they are freed; False where that is not to be had.

    Holds for the whole process; MALLOC_MMAP_THRESHOLD_, the user's own choice, is left as it is.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # no glibc
        return False
    return "MALLOC_MMAP_THRESHOLD_" not in os.environ and bool(mallopt(_MMAP_THRESHOLD, _LARGE))
