"""One connection on a stand-in for its transport: how long a head may take, and what becomes of an answer that nobody waits for."""

from __future__ import annotations

import asyncio
import resource
import time
from collections.abc import Callable

import pytest
import uvicorn
from uvicorn.server import ServerState

from runtime.server import protocol

GET = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"
CHUNKED = b"POST / HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"


class Transport(asyncio.Transport):
    """written: what was sent; closing: since `close`."""

    def __init__(self) -> None:
        super().__init__()
        self.written, self.closing = b"", False

    def write(self, data: bytes) -> None:
        self.written += data

    def is_closing(self) -> bool:
        return self.closing

    def close(self) -> None:
        self.closing = True

    abort = close

    def pause_reading(self) -> None: ...

    resume_reading = pause_reading


async def answer(send: Callable) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
    await send({"type": "http.response.body", "body": b"ok"})


def connected(app: Callable, header_seconds: float = 0.05) -> tuple[protocol.BoundedH11, Transport]:
    one = protocol.bounded_protocol(header_seconds)(
        uvicorn.Config(app, log_level="error", timeout_keep_alive=75), ServerState(), {}
    )
    transport = Transport()
    one.connection_made(transport)
    return one, transport


async def until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < end, "it did not happen in time"
        await asyncio.sleep(0.005)


def test_the_time_for_a_head_ends_with_it_however_long_the_answer_takes():
    async def main() -> None:
        go = asyncio.Event()

        async def app(scope, receive, send):
            await go.wait()
            await answer(send)

        one, transport = connected(app)
        assert list(one.waiting) == [one]
        one.data_received(GET)
        await asyncio.sleep(0.1)
        assert not transport.written and not transport.closing and not one.waiting
        go.set()
        await until(lambda: transport.written.endswith(b"ok"))
        assert transport.written.startswith(b"HTTP/1.1 200 ")
        await until(lambda: list(one.waiting) == [one])  # for the next head; uvicorn ends it
        await asyncio.sleep(0.1)
        assert not transport.closing
        one.connection_lost(None)
        assert not one.waiting

    asyncio.run(main())


@pytest.mark.parametrize("sent", [b"", GET[:-4]])
def test_a_head_that_does_not_end_in_time_is_refused(sent):
    async def main() -> bytes:
        async def app(scope, receive, send): ...

        one, transport = connected(app)
        if sent:
            one.data_received(sent)
        await until(lambda: transport.closing)
        return transport.written

    assert asyncio.run(main()).startswith(b"HTTP/1.1 408 ")


def test_a_body_that_was_not_read_has_the_time_of_a_head_to_end():
    async def main() -> bytes:
        async def app(scope, receive, send):
            await answer(send)

        one, transport = connected(app)
        one.data_received(CHUNKED)
        await until(lambda: transport.closing)
        return transport.written

    written = asyncio.run(main())
    assert written.startswith(b"HTTP/1.1 200 ") and written.endswith(b"ok")  # and nothing of the refusal


def test_the_application_hears_that_nobody_waits_for_an_answer_where_a_body_is_not_http():
    async def main() -> tuple[bytes, list[str]]:
        heard: list[str] = []

        async def app(scope, receive, send):
            while "http.disconnect" not in heard:
                heard.append((await receive())["type"])

        one, transport = connected(app)
        one.data_received(CHUNKED)
        await asyncio.sleep(0)
        one.data_received(b"no length\r\n")
        await until(lambda: "http.disconnect" in heard)
        return transport.written, heard

    written, heard = asyncio.run(main())
    assert written.startswith(b"HTTP/1.1 400 ") and written.count(b"HTTP/1.1 4") == 1 and b'"code": "invalid_http"' in written
    assert heard[-1] == "http.disconnect"


@pytest.mark.parametrize(
    ("files", "connections"),
    [(0, 16), (21, 16), (24, 18), (1024, 768), (1333, 999), (1334, 1000), (1 << 20, 1000), (resource.RLIM_INFINITY, 1000)],
)
def test_connections_take_three_quarters_of_the_files_that_may_be_open(monkeypatch, files, connections):
    monkeypatch.setattr(resource, "getrlimit", lambda kind: {resource.RLIMIT_NOFILE: (files, 7)}[kind])
    assert protocol.connection_limit() == connections
