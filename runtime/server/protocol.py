"""HTTP/1.1 on uvicorn's h11 protocol, with limits on what a connection may cost before its request is complete.

Headers must be complete within 64 KiB and a few seconds. The number of connections is limited; one more closes the connection that
has been without a request for the longest time. A client that does not read its response is disconnected. (uvicorn's faster
protocol, httptools, limits none of this.) What is not HTTP gets an error in the server's usual form.
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
_STALL = 30.0  # seconds within which a client must read _STEP of what is buffered for it
_STEP = 1 << 16  # bytes


def bounded_protocol(header_seconds: float) -> type[H11Protocol]:
    """The protocol class of one server."""
    attributes = {"header_seconds": header_seconds, "limit": connection_limit(), "waiting": {}}
    return type("BoundedH11OfOneServer", (BoundedH11,), attributes)


def connection_limit() -> int:
    """How many connections a server takes: three quarters of the files that the process may open, at most 1,000."""
    files = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return 1000 if files == resource.RLIM_INFINITY else max(16, min(1000, files * 3 // 4))


def headers_too_large() -> ApiError:
    return ApiError(431, f"the headers are longer than {HEADER_BYTES} bytes", "headers_too_large")


class BoundedH11(H11Protocol):
    """header_seconds: for the headers; limit: of connections; waiting: those without a request, the one waiting longest first."""

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
            self.loop.call_later(_STALL, self.transport.abort)  # closing waits for the client to read
        elif self.conn.their_state is h11.IDLE:
            self.waiting[self] = None  # uvicorn's own timer ends an idle connection
        else:
            self._look()

    def timeout_keep_alive_handler(self) -> None:
        super().timeout_keep_alive_handler()
        self.loop.call_later(_STALL, self.transport.abort)

    def send_400_response(self, msg: str) -> None:
        too_long = len(self.conn.trailing_data[0]) > HEADER_BYTES
        self._refuse(headers_too_large() if too_long else ApiError(400, "this is not an HTTP/1.1 request", "invalid_http"))

    def pause_writing(self) -> None:
        super().pause_writing()
        self._watch(self.transport.get_write_buffer_size())

    def resume_writing(self) -> None:
        super().resume_writing()
        self._stop_watching()

    def _look(self) -> None:
        """Start or stop the timer for headers. They are due between requests, and after a response while the body still arrives."""
        if self.conn.their_state is not h11.IDLE and self.conn.our_state is not h11.DONE:
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
        self._refuse(ApiError(408, f"no complete request arrived within {self.header_seconds:g} s", "request_timeout"))

    def _refuse(self, error: ApiError) -> None:
        """Send the error, unless a response has begun already, and close the connection."""
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE) and not self.transport.is_closing():
            content = json.dumps(error.body()).encode()
            headers = [("Content-Type", "application/json"), ("Content-Length", str(len(content))), ("Connection", "close")]
            reason = STATUS_PHRASES[error.status]
            response = h11.Response(status_code=error.status, headers=headers, reason=reason)
            for event in (response, h11.Data(data=content), h11.EndOfMessage()):
                self.transport.write(self.conn.send(event) or b"")
            # if the body is what is wrong, the application may be working on a response that can no longer be sent
            if self.cycle is not None and not self.cycle.response_complete:
                self.cycle.disconnected = True
                self.cycle.message_event.set()
        self.transport.close()
        self.loop.call_later(_STALL, self.transport.abort)

    def _watch(self, buffered: int) -> None:
        """Disconnect unless clearly less is buffered _STALL seconds from now."""
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
