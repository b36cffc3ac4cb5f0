"""Who may come in: a bounded number of requests at a time, none while the server drains, each with a deadline.

A request counts from before its body is read until its answer is complete, clip decoding included: the bound is on all work and
all memory, and a client that is told 429 has cost next to nothing.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from runtime.server.errors import ApiError
from runtime.server.options import ServerOptions


class Admission:
    """`accepted` now; `draining` once SIGTERM came."""

    def __init__(self, options: ServerOptions):
        self.options = options
        self.limit = options.batch + options.queue
        self.accepted = 0
        self.draining = False
        self._seconds = 1.0  # a running mean of how long a request takes

    @contextmanager
    def request(self) -> Iterator[float]:
        """Hold a place and yield the deadline, of time.monotonic(). ApiError 429 with Retry-After, or 503."""
        self.check_open()
        if self.accepted >= self.limit:
            # when about one place in the batch should be free again
            wait = max(1, min(60, round(self._seconds / self.options.batch)))
            message = f"{self.accepted} requests are being worked on, the most that this server takes; try again in {wait} s"
            raise ApiError(429, message, "queue_full", headers={"Retry-After": str(wait)})
        self.accepted += 1
        start = time.monotonic()
        try:
            yield start + self.options.deadline
        finally:
            self.accepted -= 1
            self._seconds += 0.1 * (time.monotonic() - start - self._seconds)

    def check_open(self) -> None:
        if self.draining:
            raise ApiError(503, "the server is shutting down; ask another one", "draining", headers={"Retry-After": "5"})
