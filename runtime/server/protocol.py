"""HTTP/1.1 on uvicorn's h11 protocol, with bounds on what a connection may cost before its request is complete.

Headers end within 64 KiB and some seconds. The number of connections is limited; beyond it the one that has been without a
request for longest makes room. A client that does not read its answer is cut off. (uvicorn's faster protocol, httptools,
limits none of this.) What is not HTTP gets an error in the server's form.
"""

from __future__ import annotations

import asyncio
import json
import resource
from typing import Any, ClassVar

import h11
from uvicorn.protocols.http.h11_impl import STATUS_PHRASES, H11Protocol

from runtime.server.errors import ApiError

HEADER_BYTES = 1 << 16
_STALL = 30.0  # seconds in which a client must read something of what is buffered for it
_STEP = 1 << 16  # bytes: that something


def bounded_protocol(header_seconds: float) -> type[H11Protocol]:
    """The protocol class of one server."""
    limit = connection_limit()

    class OfOneServer(BoundedH11):
        waiting: ClassVar[dict[BoundedH11, None]] = {}

    OfOneServer.header_seconds, OfOneServer.limit = header_seconds, limit
    return OfOneServer


def connection_limit() -> int:
    """The most connections of a server: three quarters of the files that the process may open, at most 1,000."""
    files = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return 1000 if files == resource.RLIM_INFINITY else max(16, min(1000, files * 3 // 4))


def headers_too_large() -> ApiError:
    return ApiError(431, f"the headers are longer than {HEADER_BYTES} bytes", "headers_too_large")


class BoundedH11(H11Protocol):
    """header_seconds, limit: see the module; waiting: the connections without a request, the longest first."""

    header_seconds: ClassVar[float]
    limit: ClassVar[int]
    waiting: ClassVar[dict[BoundedH11, None]]

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self._headers_due: asyncio.TimerHandle | None = None
        self._reading_due: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if len(self.connections) > self.limit:
            longest = next(iter(self.waiting), None)
            if longest is None:
                self._refuse(ApiError(503, "the server has too many connections; try again", "too_many_connections"))
                return
            longest.transport.abort()
            longest._forget()
        self._wait_for_headers()

    def connection_lost(self, exc: Exception | None) -> None:
        self._forget()
        self._stop_watching()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._look()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self.transport.is_closing():
            self.loop.call_later(_STALL, self.transport.abort)  # a close waits for a client that reads nothing
        elif self.conn.their_state is h11.IDLE:
            self.waiting[self] = None  # uvicorn's own timer ends an idle connection
        else:
            self._look()

    def timeout_keep_alive_handler(self) -> None:
        super().timeout_keep_alive_handler()
        self.loop.call_later(_STALL, self.transport.abort)

    def send_400_response(self, msg: str) -> None:
        too_long = len(self.conn.trailing_data[0]) > HEADER_BYTES
        if too_long:
            self._refuse(headers_too_large())
        else:
            self._refuse(ApiError(400, "this is not an HTTP/1.1 request", "invalid_http"))

    def pause_writing(self) -> None:
        super().pause_writing()
        self._watch(self.transport.get_write_buffer_size())

    def resume_writing(self) -> None:
        super().resume_writing()
        self._stop_watching()

    def _look(self) -> None:
        """Start or stop the time for a head: one is due between requests, and where a body goes on that nobody reads any more."""
        due = self.conn.their_state is h11.IDLE or self.conn.our_state is h11.DONE
        if not due:
            self._forget()
        elif self._headers_due is None and not self.transport.is_closing():
            self._wait_for_headers()

    def _wait_for_headers(self) -> None:
        self.waiting[self] = None
        self._headers_due = self.loop.call_later(self.header_seconds, self._headers_late)

    def _forget(self) -> None:
        self.waiting.pop(self, None)
        if self._headers_due is not None:
            self._headers_due.cancel()
            self._headers_due = None

    def _headers_late(self) -> None:
        self._headers_due = None
        self._refuse(ApiError(408, f"no complete request came in {self.header_seconds:g} s", "request_timeout"))

    def _refuse(self, error: ApiError) -> None:
        """Send the error, unless an answer has begun already, and hang up."""
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE) and not self.transport.is_closing():
            content = json.dumps(error.body()).encode()
            headers = [("Content-Type", "application/json"), ("Content-Length", str(len(content))), ("Connection", "close")]
            reason = STATUS_PHRASES[error.status]
            head = h11.Response(status_code=error.status, headers=headers, reason=reason)
            for event in (head, h11.Data(data=content), h11.EndOfMessage()):
                self.transport.write(self.conn.send(event) or b"")
            # where it is the body that is wrong, the application may be at work on an answer that nobody hears
            if self.cycle is not None and not self.cycle.response_complete:
                self.cycle.disconnected = True
                self.cycle.message_event.set()
        self.transport.close()
        self.loop.call_later(_STALL, self.transport.abort)

    def _watch(self, buffered: int) -> None:
        """In a while, less must be buffered than is now."""
        self._stop_watching()
        self._reading_due = self.loop.call_later(_STALL, self._still_reading, buffered)

    def _still_reading(self, before: int) -> None:
        now = self.transport.get_write_buffer_size()
        if now > before - _STEP:
            self.transport.abort()
        else:
            self._watch(now)

    def _stop_watching(self) -> None:
        if self._reading_due is not None:
            self._reading_due.cancel()
            self._reading_due = None
