"""One connection on a stand-in for its transport: how long a head may take, and what becomes of an answer that nobody waits for."""

from __future__ import annotations

import asyncio
import resource
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import ClassVar

import h11
import pytest
import uvicorn
from loop_time import pass_time
from uvicorn.server import ServerState

from runtime.server import protocol
from runtime.server.errors import ApiError

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


def connected(app: Callable, header_seconds: float = 20) -> tuple[protocol.BoundedH11, Transport]:
    one = protocol.bounded_protocol(header_seconds)(
        uvicorn.Config(app, log_level="error", timeout_keep_alive=75), ServerState(), {}
    )
    transport = Transport()
    one.connection_made(transport)
    return one, transport


async def until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 60
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
        await pass_time(19)
        one.data_received(GET)
        await pass_time(60)
        assert not transport.written and not transport.closing and not one.waiting
        go.set()
        await until(lambda: transport.written.endswith(b"ok"))
        assert transport.written.startswith(b"HTTP/1.1 200 ")
        await until(lambda: list(one.waiting) == [one])  # for the next head
        await pass_time(60)
        assert not transport.closing
        await pass_time(16)
        assert transport.closing  # by uvicorn's own timer
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
        await pass_time(19)
        assert not transport.closing
        await pass_time(1)
        assert transport.closing
        return transport.written

    assert asyncio.run(main()).startswith(b"HTTP/1.1 408 ")


def test_a_body_that_was_not_read_has_the_time_of_a_head_to_end():
    async def main() -> bytes:
        async def app(scope, receive, send):
            await answer(send)

        one, transport = connected(app)
        one.data_received(CHUNKED)
        await until(lambda: transport.written.endswith(b"ok"))
        await pass_time(19)
        assert not transport.closing
        await pass_time(1)
        assert transport.closing
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


def test_an_idle_connection_outlives_what_clients_keep_it_for(server):
    """httpx, and openai with it, give a connection up after 5 seconds; a server that hung up first would reset a request now and then."""
    config = server.server.config

    async def main() -> None:
        class OnItsOwn(config.http_protocol_class):
            waiting: ClassVar[dict] = {}  # the server's own holds connections that other tests left open

        one = OnItsOwn(config, ServerState(), {})
        one.connection_made(transport := Transport())
        for _ in range(2):
            transport.written = b""
            one.data_received(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
            await until(lambda: transport.written.startswith(b"HTTP/1.1 200 ") and list(one.waiting) == [one])
            await pass_time(30)
            assert not transport.closing
        one.connection_lost(None)

    asyncio.run(main())


@pytest.mark.parametrize(
    ("files", "connections"),
    [(0, 16), (21, 16), (24, 18), (1024, 768), (1333, 999), (1334, 1000), (1 << 20, 1000), (resource.RLIM_INFINITY, 1000)],
)
def test_connections_take_three_quarters_of_the_files_that_may_be_open(monkeypatch, files, connections):
    monkeypatch.setattr(resource, "getrlimit", lambda kind: {resource.RLIMIT_NOFILE: (files, 7)}[kind])
    assert protocol.connection_limit() == connections


class TestTimes:
    """A loop that only notes what is to happen when; `later` is what was asked for since, (seconds, what)."""

    @pytest.fixture
    def connection(self, monkeypatch):
        """connection(buffered): one that has sent nothing yet, `buffered` what its client has still to read."""

        def connect(buffered: int = 0):
            async def main():
                one, transport = connected(answer, 7.5)
                one._forget()
                later = []
                timer = SimpleNamespace(cancel=lambda: later.append("cancelled"))
                one.loop = SimpleNamespace(call_later=lambda seconds, *what: later.append((seconds, *what)) or timer)
                transport.get_write_buffer_size = lambda: buffered
                return one, transport, later

            return asyncio.run(main())

        return connect

    def test_a_client_has_half_a_minute_to_read_64_kib_of_what_is_buffered(self, connection):
        for before, aborted in ((300_000, True), (365_535, True), (365_536, False), (500_000, False)):
            one, transport, later = connection(300_000)
            one._still_reading(before)
            assert transport.closing is aborted
            assert later == ([] if aborted else [(30, one._still_reading, 300_000)])

    def test_reading_is_watched_from_a_full_buffer_until_there_is_room(self, connection):
        one, _, later = connection(7)
        one.pause_writing()
        assert later == [(30, one._still_reading, 7)]
        one.resume_writing()
        assert later[1:] == ["cancelled"] and one._reading_due is None
        one._stop_watching()
        assert later[1:] == ["cancelled"]
        one._watch(9), one._watch(8)
        assert later[2:] == [(30, one._still_reading, 9), "cancelled", (30, one._still_reading, 8)]

    def test_what_is_closed_is_cut_off_half_a_minute_later(self, connection):
        one, transport, later = connection()
        one._headers_late()
        assert transport.closing and later == [(30, transport.abort)] and one._headers_due is None
        assert b"7.5 s" in transport.written and b'"request_timeout"' in transport.written
        assert transport.written.startswith(b"HTTP/1.1 408 Request Timeout\r\n")
        head, _, content = transport.written.lower().partition(b"\r\n\r\n")
        for header in ("connection: close", "content-type: application/json", f"content-length: {len(content)}"):
            assert header.encode() in head.split(b"\r\n")
        one, transport, later = connection()
        one.timeout_keep_alive_handler()
        assert transport.closing and later[-1] == (30, transport.abort)

    def test_the_time_for_a_head_is_the_server_s_and_counts_once(self, connection):
        one, transport, later = connection()
        one._look()
        one._look()
        assert later == [(7.5, one._headers_late)] and list(one.waiting) == [one]
        one._forget()
        one._forget()
        assert later[1:] == ["cancelled"] and not one.waiting
        transport.closing = True
        one._look()
        assert later[2:] == []

    @pytest.mark.parametrize(
        ("size", "status", "code"), [(0, 400, b"invalid_http"), (65_536, 400, b"invalid_http"), (65_537, 431, b"headers_too_large")]
    )
    def test_what_is_no_http_is_a_bad_request_unless_it_is_too_long(self, connection, size, status, code):
        one, transport, _ = connection()
        one.conn.receive_data(b"a" * size)
        one.send_400_response("")
        assert transport.written.startswith(f"HTTP/1.1 {status} ".encode()) and code in transport.written

    def test_where_an_answer_has_begun_or_the_line_is_closed_nothing_is_said(self, connection):
        for closing in (True, False):
            one, transport, later = connection()
            if closing:
                transport.closing = True
            else:
                one.conn.receive_data(GET)
                one.conn.next_event()
                one.conn.send(h11.Response(status_code=200, headers=[("Content-Length", "2")]))
            one._refuse(ApiError(400, "why"))
            assert not transport.written and transport.closing and later == [(30, transport.abort)]


def test_the_longest_without_a_request_makes_room_and_where_all_work_the_new_one_goes(monkeypatch):
    monkeypatch.setattr(protocol, "connection_limit", lambda: 2)

    async def main():
        state, kind = ServerState(), protocol.bounded_protocol(50)
        made = []

        def connect():
            one = kind(uvicorn.Config(answer, log_level="error"), state, {})
            one.connection_made(transport := Transport())
            made.append((one, transport))

        for _ in range(3):
            connect()
        assert [transport.closing for _, transport in made] == [True, False, False]
        assert list(kind.waiting) == [made[1][0], made[2][0]] and kind.header_seconds == 50
        made[0][0].connection_lost(None)
        for one, _ in made[1:]:
            one._forget()
        connect()
        assert [transport.closing for _, transport in made[1:]] == [False, False, True]
        assert made[3][1].written.startswith(b"HTTP/1.1 503 ") and b"too_many_connections" in made[3][1].written
        assert not kind.waiting and protocol.bounded_protocol(50).waiting is not kind.waiting
        for one, _ in made[1:]:
            one.connection_lost(None)

    asyncio.run(main())
