"""What a connection may cost before its request is complete: bytes and seconds of its headers, and its place among others."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import threading

import httpx
import numpy as np
import pytest
import uvicorn
from http_server import NAME, question, until
from loop_time import pass_time
from raw_http import Raw, head, post
from uvicorn.server import ServerState

from runtime.server import protocol

SHORT = {"model": NAME, "messages": question("what is it ?"), "max_tokens": 1}


@pytest.mark.parametrize(
    "endless", ["GET / HTTP/1.1\r\nHost: localhost\r\nA: ", "GET / HTTP/1.1\r\nHost: localhost\r\n", "GET /", ""],
    ids=["value", "name", "path", "method"],
)  # fmt: skip
def test_headers_without_end_are_refused_after_64_kib(server, endless):
    with Raw(server) as one:
        one.send(endless)
        with contextlib.suppress(ConnectionError):
            for _ in range(64):
                one.send(b"a" * 16384)
        assert one.answer()[0] in (431, 0)  # 0: where the reset was faster


def test_too_long_headers_are_told_so(server):
    """The last byte is the first beyond the limit: a server that closes before it has read everything resets the connection."""
    with Raw(server) as one:
        status, content = one.send("GET / HTTP/1.1\r\nA: ".ljust(65_537, "a")).answer()
        assert status == 431 and json.loads(content)["error"]["code"] == "headers_too_large"


@pytest.mark.parametrize("where", ["header", "headers", "path"])
def test_complete_headers_have_the_same_limit(server, where):
    path = "/health" + "?" + "a" * 65_537 if where == "path" else "/health"
    more = {"header": {"A": "a" * 65_537}, "headers": {f"A{i}": "a" * 662 for i in range(99)}}.get(where, {})
    with Raw(server) as one:
        status, content = one.send(head(path, "GET", **more)).answer()
        assert status == 431 and json.loads(content)["error"]["code"] == "headers_too_large"


def test_what_is_not_http_is_told_in_the_server_s_form(server):
    with Raw(server) as one:
        status, content = one.send("\x16\x03\x01 hello\r\n\r\n").answer()
        assert status == 400 and json.loads(content)["error"]["code"] == "invalid_http"


@pytest.mark.parametrize("path", ["/health", "/nowhere", "/v1/chat/completions"])
def test_a_body_that_is_not_http_is_refused_once(server, path, caplog):
    server.until_idle()
    with caplog.at_level(logging.ERROR), Raw(server) as one:
        one.send(f"GET {path} HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\nno length\r\n")
        status, content = one.answer()
        assert status == 400 and json.loads(content)["error"]["code"] == "invalid_http" and one.closed()
    server.until_idle()
    assert not [record.getMessage() for record in caplog.records if record.name.startswith(("runtime", "uvicorn"))]


@pytest.mark.parametrize("sent", ["", "GET / HTTP/1.1\r\nHost: loc"])
def test_headers_have_a_time_limit(start, sent):
    server = start()
    with Raw(server) as one:
        one.send(sent)
        server.until_connected(1)
        server.pass_time(10)
        assert one.answer()[0] == 408 and one.closed()


def test_headers_of_a_later_request_have_the_same_time_limit(start):
    server = start()
    with Raw(server) as one:
        assert one.send(head("/health", "GET")).answer()[0] == 200
        one.send("GET /health HTTP/1.1\r\n")
        (connection,) = server.server.server_state.connections
        until(lambda: connection._headers_due)
        server.pass_time(9)
        assert connection._headers_due
        server.pass_time(1)
        assert one.answer()[0] == 408 and one.closed()


def test_silent_connections_make_room_for_those_who_ask(start, monkeypatch):
    monkeypatch.setattr(protocol, "connection_limit", lambda: 5)
    server = start()
    silent = [Raw(server) for _ in range(30)]
    try:
        with Raw(server) as one:
            assert one.send(head("/health", "GET")).answer()[0] == 200
        assert sum(one.closed() for one in silent[:24]) == 24
    finally:
        for one in silent:
            one.socket.close()


def test_connections_that_all_work_leave_no_room(start, monkeypatch):
    monkeypatch.setattr(protocol, "connection_limit", lambda: 2)
    server = start()
    with Raw(server) as one, Raw(server) as other:
        for busy in (one, other):
            busy.send(head(Content_Length=100, Expect="100-continue"))
            assert busy.socket.recv(1024).startswith(b"HTTP/1.1 100")  # its body is being read
        with Raw(server) as third:
            status, content = third.answer()
        assert status in (503, 0) and (not content or json.loads(content)["error"]["code"] == "too_many_connections")


@pytest.mark.parametrize(
    ("sizes", "cut"), [([300_000] * 20, True), ([300_000, 200_000, 100_000, 30_000], False), ([300_000, 299_000] * 9, True)]
)
def test_a_client_that_does_not_read_its_answer_is_cut_off(sizes, cut):
    """sizes: what is buffered for it each time that somebody looks; then it has read all."""

    class Transport(asyncio.Transport):
        aborted, left = False, list(sizes)

        def get_write_buffer_size(self):
            if len(self.left) == 1:
                asyncio.get_running_loop().call_soon(connection.resume_writing)
            return self.left.pop(0)

        def abort(self):
            self.aborted = True
            connection._stop_watching()

    async def main():
        nonlocal connection
        connection = protocol.bounded_protocol(10)(uvicorn.Config(lambda: None, log_level="error"), ServerState(), {})
        connection.connection_made(transport := Transport())
        connection.pause_writing()
        for _ in sizes:
            await pass_time(30)
        connection.connection_lost(ConnectionError())
        assert transport.aborted or not transport.left
        return transport.aborted

    connection = None
    assert asyncio.run(main()) == cut


def test_the_limit_of_connections_leaves_files_to_open():
    assert 16 <= protocol.connection_limit() <= 1000


def test_random_bytes_are_answered_or_hung_up_on(start):
    """A long campaign is in benchmarks; this is a taste of it."""
    server, ended = start(), threading.Event()

    def hurry() -> None:
        """What waits for more is given up soon."""
        while not ended.wait(0.05):
            server.pass_time(21)

    rng = np.random.default_rng(7)
    whole, sent = post(SHORT), []
    for _ in range(40):
        data = bytearray(whole)
        for _ in range(rng.integers(1, 6)):
            at, kind = rng.integers(len(data)), rng.integers(3)
            if kind == 0:
                data[at] = rng.integers(256)
            elif kind == 1:
                del data[at : at + rng.integers(1, 20)]
            else:
                data[at:at] = rng.bytes(3)
        sent.append((bytes(data), Raw(server).send(bytes(data))))
    clock = threading.Thread(target=hurry)
    clock.start()
    try:
        for data, one in sent:
            with one:
                status, content = one.answer()
                assert status in (0, 200, 400, 403, 404, 405, 408, 411, 413, 415, 431, 501), (status, data, content)
    finally:
        ended.set()
        clock.join()
    server.until_idle()
    assert httpx.get(f"{server.url}/health").status_code == 200
