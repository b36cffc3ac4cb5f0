"""How many bytes of requests are in memory at once: bodies that are being read, and clips that wait for their encoding.

A request may grow as long as it is no larger than what is left of the capacity, so n equal ones get 1/(n + 1) of it each, and however
many large ones there are, a small one is still accepted.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

from runtime.server.errors import ApiError


class Memory:
    """`held` of `capacity` bytes, used from the event loop alone; parsing: one large body at a time, which is in memory twice then."""

    def __init__(self, capacity: int):
        self.capacity, self.held = capacity, 0
        self.parsing = asyncio.Semaphore(1)

    @contextmanager
    def hold(self) -> Iterator[Held]:
        """A request's share, released at the end."""
        share = Held(self)
        try:
            yield share
        finally:
            share.shrink(0)


class Held:
    """One request's share: `size` bytes."""

    def __init__(self, memory: Memory):
        self.memory, self.size = memory, 0

    def grow(self, count: int) -> None:
        """`count` bytes more; ApiError 429 if that is more than this request may have, whose share is then released."""
        if self.size + count > self.memory.capacity - self.memory.held - count:
            others = self.memory.held - self.size
            self.shrink(0)  # at once, so that not all that grow together are refused
            message = f"other requests hold {others} bytes of the {self.memory.capacity} that all may; try again"
            raise ApiError(429, message, "memory_full", headers={"Retry-After": "2"})
        self.size += count
        self.memory.held += count

    def shrink(self, size: int) -> None:
        """`size` bytes are left."""
        self.memory.held -= self.size - min(size, self.size)
        self.size = min(size, self.size)
