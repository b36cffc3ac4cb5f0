"""What a connection may cost before its request is complete: bytes, seconds, places."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import gc
import json
import logging
import os
import re
import signal
import tempfile
import threading
import time
import weakref

import httpx
import numpy as np
import pytest
import uvicorn
from http_server import NAME, data_url, question
from loop_time import pass_time
from raw_http import Raw, head, post
from uvicorn.server import ServerState

from export.demo import CLIPS
from runtime.server import body, protocol
from runtime.server.errors import ApiError
from runtime.server.memory import Memory
from runtime.server.schema import ChatRequest, parse

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
    with Raw(server) as one:
        status, content = one.send("GET / HTTP/1.1\r\nA: " + "a" * 70_000).answer()
        assert status == 431 and json.loads(content)["error"]["code"] == "headers_too_large"


@pytest.mark.parametrize("where", ["header", "headers", "path"])
def test_a_head_that_comes_whole_has_the_same_limit(server, where):
    path = "/health" + "?" + "a" * 70_000 if where == "path" else "/health"
    more = {"header": {"A": "a" * 70_000}, "headers": {f"A{i}": "a" * 700 for i in range(99)}}.get(where, {})
    with Raw(server) as one:
        status, content = one.send(head(path, "GET", **more)).answer()
        assert status == 431 and json.loads(content)["error"]["code"] == "headers_too_large"


def test_what_is_not_http_is_told_in_the_server_s_form(server):
    with Raw(server) as one:
        status, content = one.send("\x16\x03\x01 hello\r\n\r\n").answer()
        assert status == 400 and json.loads(content)["error"]["code"] == "invalid_http"


@pytest.mark.parametrize("path", ["/health", "/nowhere", "/v1/chat/completions"])
def test_a_body_that_is_not_http_is_refused_once(server, path, caplog):
    with caplog.at_level(logging.ERROR), Raw(server) as one:
        one.send(f"GET {path} HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\nno length\r\n")
        status, content = one.answer()
        assert status == 400 and json.loads(content)["error"]["code"] == "invalid_http" and one.closed()
    server.until_idle()
    assert not [record.getMessage() for record in caplog.records]


@pytest.mark.parametrize("sent", ["", "GET / HTTP/1.1\r\nHost: loc"])
def test_headers_have_a_time_limit(start, sent):
    with Raw(start(header_seconds=0.3)) as one:
        one.send(sent)
        assert one.answer()[0] == 408 and one.closed()


def test_headers_that_trickle_have_the_same_limit_on_every_request_of_a_connection(start):
    with Raw(start(header_seconds=0.5)) as one:
        assert one.send(head("/health", "GET")).answer()[0] == 200
        begin = time.monotonic()
        with pytest.raises(ConnectionError):
            for character in "GET /health HTTP/1.1\r\n" + "A: b\r\n" * 1000:
                one.send(character)
                time.sleep(0.02)
        assert time.monotonic() - begin < 60


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


def test_a_body_has_a_short_time_of_its_own(start):
    server = start(body_seconds=0.3, deadline=300)
    with Raw(server) as one:
        status, content = one.send(head(Content_Length=1000) + "{").answer()
        assert status == 408 and json.loads(content)["error"]["code"] == "request_timeout" and one.closed()


def test_bodies_that_never_end_take_no_place(start):
    server = start(batch=1, queue=0)
    waiting = [Raw(server).send(head(Content_Length=90 << 20) + "{") for _ in range(10)]
    _until(lambda: server.state.memory.held == 10)
    try:
        assert server.state.admission.accepted == 0
        assert httpx.post(f"{server.url}/v1/chat/completions", json=SHORT, timeout=30).status_code == 200
    finally:
        for one in waiting:
            one.socket.close()
    _until(lambda: server.state.memory.held == 0)


def test_bodies_are_counted_in_bytes_and_small_ones_still_get_in(start):
    server = start(max_body=1 << 20)  # 4 MiB for all
    large = [Raw(server).send(head(Content_Length=1 << 20) + "x" * ((1 << 20) - 1)) for _ in range(6)]
    try:
        _until(lambda: sum(status == 429 for status in _statuses(large)) >= 2)
        assert (2 << 20) < server.state.memory.held <= (4 << 20)
        assert httpx.post(f"{server.url}/v1/chat/completions", json=SHORT, timeout=30).status_code == 200
    finally:
        for one in large:
            one.socket.close()
    _until(lambda: server.state.memory.held == 0)


def _statuses(connections: list[Raw]) -> list[int]:
    found = getattr(_statuses, "found", {})
    for one in connections:
        one.socket.settimeout(0.1)
        try:
            found[one] = found.get(one) or one.answer()[0]
        except TimeoutError:
            found[one] = 0
    _statuses.found = found
    return [found[one] for one in connections]


def test_n_equal_requests_get_an_nth_and_one_more_of_the_memory():
    memory = Memory(1000)
    with memory.hold() as one, memory.hold() as other:
        one.grow(300), other.grow(300)
        with memory.hold() as small:
            small.grow(200)
        with pytest.raises(ApiError) as raised:
            one.grow(51)
        assert (raised.value.status, raised.value.code, memory.held) == (429, "memory_full", 300)
        other.grow(51)  # there is room again
        other.shrink(100)
        assert memory.held == 100
    assert memory.held == 0


def test_a_body_of_very_many_values_is_refused_before_it_is_parsed():
    with pytest.raises(ApiError, match="more than 100000 values"):
        parse(ChatRequest, b'{"tools": [' + b"[]," * 100_000 + b"[]]}")


class Kept(bytearray):
    """A body that can be watched."""


@pytest.mark.parametrize("url", ["data:video/mp4;base64,QUJD*", "data:video/mp4;base64,QUJD"], ids=["no base64", "no video"])
@pytest.mark.parametrize("stream", [False, True])
def test_a_request_that_failed_holds_nothing_whether_python_looks_for_cycles_or_not(server, tmp_path, monkeypatch, url, stream):
    bodies = []

    async def bounded(*args):
        bodies.append(weakref.ref(one := Kept(await original(*args))))
        return one

    original = body._bounded
    monkeypatch.setattr(body, "_bounded", bounded)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    asked = {"model": NAME, "messages": question("x ?", data_url(CLIPS / "shapes.mp4"), url), "stream": stream}
    gc.disable()
    try:
        assert httpx.post(f"{server.url}/v1/chat/completions", json=asked, timeout=20).status_code in (400, 422)
        server.until_idle()
        assert bodies[0]() is None and not list(tmp_path.iterdir())
    finally:
        gc.enable()


def test_a_large_clip_is_not_in_memory_while_it_waits(start, models, monkeypatch):
    """Its body is gone once it is a file, its file once it is encoded."""
    server, seen = start(), []
    encoder = models[NAME].encoder
    decode = encoder.decode

    def looked_at(media, check):
        seen.append((server.state.memory.held, media.size, media.paths[0].stat().st_size))
        return decode(media, check)

    monkeypatch.setattr(encoder, "decode", looked_at)
    noise = np.random.default_rng(0).bytes(1 << 20)

    url = "data:video/mp4;base64," + base64.b64encode(noise).decode()
    got = httpx.post(f"{server.url}/v1/chat/completions", json=SHORT | {"messages": question("x", url)}, timeout=30)
    assert got.status_code == 422 and seen == [(1 << 20, 1 << 20, 1 << 20)]
    server.until_idle()


@pytest.mark.parametrize("request_line", ["POST /nowhere", "GET /health"], ids=["refused", "answered without it"])
def test_a_body_that_nobody_reads_does_not_keep_the_connection(start, monkeypatch, request_line):
    monkeypatch.setattr(body, "_PATIENCE", 0.3)
    server = start(header_seconds=0.3)
    with Raw(server) as one:
        one.send(f"{request_line} HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n")
        stop = threading.Event()

        def trickle():
            while not stop.wait(0.05):
                try:
                    one.send("1\r\nx\r\n")
                except OSError:
                    return

        thread = threading.Thread(target=trickle)
        thread.start()
        try:
            assert one.closed()
        finally:
            stop.set()
            thread.join()


def test_five_megabytes_of_question_are_refused_unread(server, models, monkeypatch):
    prompt = models[NAME].llm.prompt

    def never(*_):
        raise AssertionError("tokenized")

    for step in ("encode", "encode_literal"):
        monkeypatch.setattr(prompt.tokenizer, step, never)
    monkeypatch.setattr(prompt.template, "render", never)
    body = SHORT | {"messages": question("what " * 1_000_000)}
    got = httpx.post(f"{server.url}/v1/chat/completions", json=body, timeout=30).json()["error"]
    assert got["code"] == "context_length_exceeded" and "5000000 characters" in got["message"]


def test_sigterm_refuses_unfinished_bodies_and_finishes_what_was_accepted(alone, bundle_path):
    process, url, log = alone
    body = SHORT | {"model": bundle_path.name, "max_tokens": 400, "stream": True, "temperature": 2, "seed": 3}
    with Raw(url) as unfinished, httpx.stream("POST", f"{url}/v1/chat/completions", json=body, timeout=60) as response:
        unfinished.send(head(Content_Length=1000) + "{")
        lines = response.iter_lines()
        next(lines)
        os.kill(process.pid, signal.SIGTERM)
        status, content = unfinished.answer()
        assert status == 503 and json.loads(content)["error"]["code"] == "draining"
        assert [line for line in lines if line][-1] == "data: [DONE]"
    assert process.wait(20) == 0
    assert log.read_text().strip().endswith("drained") and "Traceback" not in log.read_text()


@pytest.mark.parametrize("serving", [["--drain", "0.01"]], ids=["hardly any time to drain"])
def test_answers_that_outlast_the_drain_end_with_an_error_and_no_traceback(alone, bundle_path):
    process, url, log = alone
    text = "a " * 600
    body = SHORT | {"model": bundle_path.name, "messages": question(text), "max_tokens": 900, "temperature": 2, "stream": True}
    ends = []

    def ask(seed):
        with client.stream("POST", f"{url}/v1/chat/completions", json=body | {"seed": seed}) as response:
            ends.append((response.status_code, [line for line in response.iter_lines() if line][-2:]))

    threads = [threading.Thread(target=ask, args=(seed,)) for seed in range(24)]

    def begun() -> bool:  # some answers may be short enough to end before the last request is there
        (accepted,) = re.findall(r"^gridpool_accepted_requests (\S+)$", client.get(f"{url}/metrics").text, re.MULTILINE)
        return float(accepted) + len(ends) >= 24

    with httpx.Client(timeout=60, limits=httpx.Limits(max_connections=None)) as client:
        for thread in threads:
            thread.start()
        _until(begun)
        os.kill(process.pid, signal.SIGTERM)
        for thread in threads:
            thread.join()
    assert process.wait(20) == 0
    assert len(ends) == 24 and any("draining" in lines[0] for _, lines in ends)
    for status, lines in ends:  # 503 where nothing was sent yet
        assert (status, lines[-1]) == (200, "data: [DONE]") or (
            status == 503 and json.loads(lines[0])["error"]["code"] == "draining"
        )
    assert "Traceback" not in log.read_text()


def test_random_bytes_are_answered_or_hung_up_on(start):
    """A long campaign is in benchmarks; this is a taste of it."""
    server = start(header_seconds=0.5, body_seconds=0.5)
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
    for data, one in sent:
        with one:
            status, content = one.answer()
            assert status in (0, 200, 400, 403, 404, 405, 408, 411, 413, 415, 431, 501), (status, data, content)
    assert httpx.get(f"{server.url}/health").status_code == 200 and server.state.admission.accepted == 0


def _until(condition, seconds: float = 30) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.02)
