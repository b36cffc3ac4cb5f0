"""Which requests are accepted: a bounded number at a time, none while the server drains, each with a deadline.

A request counts from the end of its body until its answer is complete, clip decoding included. It does not count while its body is
read: body.py and memory.py bound how long that may last and how many bytes it may take.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn

from runtime.server.errors import ApiError
from runtime.server.options import ServerOptions


class Admission:
    """`accepted` requests now; `draining` from SIGTERM on."""

    def __init__(self, options: ServerOptions):
        self.options = options
        self.limit = options.batch + options.queue
        self.accepted = 0
        self.draining = False
        self._closing, self._ended = asyncio.Event(), asyncio.Event()
        self._seconds = 1.0  # a running mean of how long a request takes

    @contextmanager
    def request(self) -> Iterator[float]:
        """Count a request and yield its deadline, of time.monotonic(). ApiError 429 with Retry-After, or 503."""
        self.check()
        self.accepted += 1
        start = time.monotonic()
        try:
            yield start + self.options.deadline
        finally:
            self.accepted -= 1
            self._seconds += 0.1 * (time.monotonic() - start - self._seconds)

    def check(self) -> None:
        """ApiError if no request can be accepted now."""
        self.check_open()
        if self.accepted >= self.limit:
            # about when one of the batch should be done
            wait = max(1, min(60, round(self._seconds / self.options.batch)))
            message = f"{self.accepted} requests are being worked on, the most that this server takes; try again in {wait} s"
            raise ApiError(429, message, "queue_full", headers={"Retry-After": str(wait)})

    def check_open(self) -> None:
        if self.draining:
            raise _closed()

    def drain(self) -> None:
        """Accept nothing more, bodies that are not complete included; call it in the event loop."""
        self.draining = True
        self._closing.set()

    def end(self) -> None:
        """Give up what is not answered yet; call it in the event loop."""
        self._ended.set()

    async def until_draining(self) -> NoReturn:
        await self._closing.wait()
        raise _closed()

    async def until_ended(self) -> NoReturn:
        await self._ended.wait()
        raise ApiError(503, "the server has shut down before this answer was complete; ask another one", "draining")


def _closed() -> ApiError:
    return ApiError(503, "the server is shutting down; ask another one", "draining", headers={"Retry-After": "5"})
