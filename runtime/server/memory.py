"""A limit on the bytes that requests hold in memory: bodies that are being read, and clips that wait to be encoded.

A request may grow until it is as large as the rest of the capacity. So n equal requests get 1/(n + 1) of it each, and a small
request is still accepted however many large ones there are.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

from runtime.server.errors import ApiError


class Memory:
    """`held` of `capacity` bytes; for the event loop only. parsing: admits one large body at a time, as that doubles its memory."""

    def __init__(self, capacity: int):
        self.capacity, self.held = capacity, 0
        self.parsing = asyncio.Semaphore(1)

    @contextmanager
    def hold(self) -> Iterator[Held]:
        """A request's share, which is released at the end."""
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
        """Add `count` bytes. If the request may not have them, its share is released and ApiError 429 raised."""
        if self.size + count > self.memory.capacity - self.memory.held - count:
            others = self.memory.held - self.size
            self.shrink(0)  # at once, so that of requests that grow together not all are refused
            message = f"other requests hold {others} of the {self.memory.capacity} bytes for all requests; try again"
            raise ApiError(429, message, "memory_full", headers={"Retry-After": "2"})
        self.size += count
        self.memory.held += count

    def shrink(self, size: int) -> None:
        """Release all but `size` bytes."""
        self.memory.held -= self.size - min(size, self.size)
        self.size = min(size, self.size)
