"""Damage that keeps a box structure (mp4, mov, HEIF): sizes, types and table entries changed, boxes dropped, doubled, moved."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass

from benchmarks.campaign.mutate_bytes import NUMBERS

_PARENTS = (b"moov", b"trak", b"mdia", b"minf", b"stbl", b"edts", b"dinf", b"udta", b"moof", b"traf", b"mvex", b"iprp", b"ipco")


@dataclass(frozen=True)
class Box:
    """start … end in the file; body: where its contents begin."""

    kind: bytes
    start: int
    body: int
    end: int


def boxes(data: bytes, start: int = 0, end: int | None = None) -> Iterator[Box]:
    """All boxes of a file, parents before their children."""
    end = len(data) if end is None else end
    while start + 8 <= end:
        size, kind = int.from_bytes(data[start : start + 4], "big"), data[start + 4 : start + 8]
        body = start + 8
        if size == 1:
            size, body = int.from_bytes(data[start + 8 : start + 16], "big"), start + 16
        stop = end if size == 0 else start + size
        if stop < body or stop > end:
            return
        yield Box(kind, start, body, stop)
        if kind in _PARENTS:
            yield from boxes(data, body, stop)
        elif kind == b"meta":
            yield from boxes(data, body + 4, stop)
        start = stop


def mutated(rng: random.Random, data: bytes) -> bytes:
    """A damaged copy; the same bytes where the file has no boxes."""
    for _ in range(rng.choice((1, 1, 2, 3))):
        found = list(boxes(data))
        if not found:
            return data
        box, copy = rng.choice(found), bytearray(data)
        way = rng.randrange(6)
        if way == 0:
            copy[box.start : box.start + 4] = (rng.choice(NUMBERS) & 0xFFFFFFFF).to_bytes(4, "big")
        elif way == 1:
            copy[box.start + 4 : box.start + 8] = rng.choice(found).kind if rng.random() < 0.7 else rng.randbytes(4)
        elif way == 2:
            del copy[box.start : box.end]
        elif way == 3:
            other = rng.choice(found)
            copy[other.start : other.start] = data[box.start : box.end]
        elif box.end - box.body >= 4:  # an entry of a table, which a demuxer believes
            at = box.body + 4 * rng.randrange(max(1, min(64, (box.end - box.body) // 4)))
            copy[at : at + 4] = (rng.choice(NUMBERS) & 0xFFFFFFFF).to_bytes(4, "big") if way < 5 else rng.randbytes(4)
        data = bytes(copy)
    return data
