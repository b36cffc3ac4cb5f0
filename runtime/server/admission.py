"""Which requests are accepted: a bounded number at a time, none while the server drains, each with a deadline.

A request counts from the end of its body until its answer is complete, clip decoding included. While its body is still being read
it does not count: body.py and memory.py limit how long that takes and how much memory it uses.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from typing import Any, NoReturn, TypeVar

from runtime.server.errors import ApiError
from runtime.server.options import ServerOptions

_Result = TypeVar("_Result")


class Admission:
    """`accepted`: requests in progress; `draining`: True once SIGTERM has arrived."""

    def __init__(self, options: ServerOptions):
        self.options = options
        self.limit = options.batch + options.queue
        self.accepted = 0
        self.draining = False
        self._closing, self._ended = asyncio.Event(), asyncio.Event()
        self._seconds = 1.0  # running mean of a request's duration

    @contextmanager
    def request(self) -> Iterator[float]:
        """Count a request and yield its deadline, in time of time.monotonic(). ApiError 429 with Retry-After, or 503."""
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
            # by then one of the running answers should be finished
            wait = max(1, min(60, round(self._seconds / self.options.batch)))
            message = f"the queue is full: {self.accepted} requests are in progress; try again in {wait} s"
            raise ApiError(429, message, "queue_full", headers={"Retry-After": str(wait)})

    def check_open(self) -> None:
        if self.draining:
            raise _closed()

    def drain(self) -> None:
        """Refuse all further requests, including those whose bodies are incomplete. Call it in the event loop."""
        self.draining = True
        self._closing.set()

    def end(self) -> None:
        """Abandon the answers that are still in progress. Call it in the event loop."""
        self._ended.set()

    async def until_draining(self) -> NoReturn:
        await self._closing.wait()
        raise _closed()

    async def until_ended(self) -> NoReturn:
        await self._ended.wait()
        raise ApiError(503, "the server shut down before this answer was complete; try another server", "draining")


async def unless(work: Coroutine[Any, Any, _Result], *reasons: Coroutine[Any, Any, NoReturn]) -> _Result:
    """The result of `work`, which is cancelled as soon as one of `reasons` raises; that error is then raised here."""
    task = asyncio.ensure_future(work)
    others = [asyncio.ensure_future(reason) for reason in reasons]
    try:
        done, _ = await asyncio.wait({task, *others}, return_when=asyncio.FIRST_COMPLETED)
        return (task if task in done else done.pop()).result()
    finally:
        for one in (task, *others):
            one.cancel()
        await asyncio.gather(task, *others, return_exceptions=True)


def _closed() -> ApiError:
    return ApiError(503, "the server is shutting down; try another server", "draining", headers={"Retry-After": "5"})
