"""Damage to any file: flipped bits, numbers at their limits, stretches dropped, doubled, moved or zeroed, ends cut off, splices."""

from __future__ import annotations

import random
from collections.abc import Sequence

LENGTHS = (1, 1, 2, 4, 4, 16, 64, 256, 4096)
NUMBERS = (0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0x8000, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFE, 0xFFFFFFFF, 1 << 63, (1 << 64) - 1)


def mutated(rng: random.Random, data: bytes, others: Sequence[bytes] = ()) -> bytes:
    """A damaged copy; `others` are files that stretches may come from."""
    copy = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 4, 16))):
        rng.choice(_WAYS)(rng, copy, others)
    return bytes(copy)


def _flip(rng: random.Random, data: bytearray, _: Sequence[bytes]) -> None:
    if data:
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)


def _random(rng: random.Random, data: bytearray, _: Sequence[bytes]) -> None:
    at, length = _stretch(rng, data)
    data[at : at + length] = rng.randbytes(length)


def _number(rng: random.Random, data: bytearray, _: Sequence[bytes]) -> None:
    size, order = rng.choice((1, 2, 4, 4, 8)), rng.choice(("big", "little"))
    at = _place(rng, data)
    value = rng.choice(NUMBERS) & ((1 << 8 * size) - 1)
    data[at : at + size] = value.to_bytes(size, order)


def _add(rng: random.Random, data: bytearray, _: Sequence[bytes]) -> None:
    size, order = rng.choice((1, 2, 4)), rng.choice(("big", "little"))
    at = _place(rng, data)
    value = int.from_bytes(data[at : at + size], order) + rng.randint(-16, 16)
    data[at : at + size] = (value & ((1 << 8 * size) - 1)).to_bytes(size, order)


def _zero(rng: random.Random, data: bytearray, _: Sequence[bytes]) -> None:
    at, length = _stretch(rng, data)
    data[at : at + length] = bytes(length)


def _drop(rng: random.Random, data: bytearray, _: Sequence[bytes]) -> None:
    at, length = _stretch(rng, data)
    del data[at : at + length]


def _double(rng: random.Random, data: bytearray, _: Sequence[bytes]) -> None:
    at, length = _stretch(rng, data)
    data[at:at] = data[at : at + length]


def _move(rng: random.Random, data: bytearray, _: Sequence[bytes]) -> None:
    at, length = _stretch(rng, data)
    part = data[at : at + length]
    del data[at : at + length]
    to = _place(rng, data)
    data[to:to] = part


def _cut(rng: random.Random, data: bytearray, _: Sequence[bytes]) -> None:
    if rng.random() < 0.4:
        del data[_place(rng, data) :]


def _splice(rng: random.Random, data: bytearray, others: Sequence[bytes]) -> None:
    if others:
        other = rng.choice(others)
        at, to = _place(rng, data), _place(rng, other)
        length = rng.choice((4, 64, 1024, len(other)))
        data[at : at + (length if rng.random() < 0.5 else 0)] = other[to : to + length]


_WAYS = (_flip, _flip, _random, _number, _number, _add, _zero, _drop, _double, _move, _cut, _splice)


def _place(rng: random.Random, data: Sequence[int]) -> int:
    """Anywhere, headers more often."""
    return rng.randrange(1 + (min(len(data), 512) if rng.random() < 0.3 else len(data)))


def _stretch(rng: random.Random, data: bytearray) -> tuple[int, int]:
    at = _place(rng, data)
    return at, min(rng.choice(LENGTHS), len(data) - at)
