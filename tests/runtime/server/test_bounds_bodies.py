"""What a request's body may cost: seconds, and its part of the memory, which it gives back whatever becomes of it."""

from __future__ import annotations

import base64
import gc
import json
import tempfile
import weakref

import httpx
import numpy as np
import pytest
from http_server import NAME, data_url, question, until
from raw_http import Raw, head
from refusal import naming

from export.demo import CLIPS
from runtime.server import body
from runtime.server.errors import ApiError
from runtime.server.memory import Memory
from runtime.server.schema import ChatRequest, parse

SHORT = {"model": NAME, "messages": question("what is it ?"), "max_tokens": 1}


def test_a_body_has_a_short_time_of_its_own(start):
    server = start()
    with Raw(server) as one:
        one.send(head(Content_Length=1000) + "{")
        until(lambda: server.state.memory.held == 1)
        server.pass_time(20)
        status, content = one.answer()
        assert status == 408 and json.loads(content)["error"]["code"] == "request_timeout" and one.closed()


def test_bodies_that_never_end_take_no_place(start):
    server = start(batch=1, queue=0)
    waiting = [Raw(server).send(head(Content_Length=90 << 20) + "{") for _ in range(10)]
    until(lambda: server.state.memory.held == 10)
    try:
        assert server.state.admission.accepted == 0
        assert httpx.post(f"{server.url}/v1/chat/completions", json=SHORT, timeout=60).status_code == 200
    finally:
        for one in waiting:
            one.socket.close()
    until(lambda: server.state.memory.held == 0)


def test_bodies_are_counted_in_bytes_and_small_ones_still_get_in(start):
    server = start(max_body=1 << 20)  # 4 MiB for all

    def refused() -> float:
        labels = {"path": "/v1/chat/completions", "status": "429"}
        return server.state.metrics.registry.get_sample_value("gridpool_requests_total", labels) or 0

    large = [Raw(server).send(head(Content_Length=1 << 20) + "x" * ((1 << 20) - 1)) for _ in range(6)]
    try:
        until(lambda: refused() >= 2)
        assert httpx.post(f"{server.url}/v1/chat/completions", json=SHORT, timeout=60).status_code == 200
    finally:
        for one in large:
            one.socket.close()
    until(lambda: server.state.memory.held == 0)


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
    with pytest.raises(ApiError, match=naming("100000 values")):
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
        assert httpx.post(f"{server.url}/v1/chat/completions", json=asked, timeout=60).status_code in (400, 422)
        until(lambda: bodies[0]() is None and not list(tmp_path.iterdir()))
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
    got = httpx.post(f"{server.url}/v1/chat/completions", json=SHORT | {"messages": question("x", url)}, timeout=60)
    assert got.status_code == 422 and seen == [(1 << 20, 1 << 20, 1 << 20)]
    server.until_idle()


@pytest.mark.parametrize(
    ("request_line", "seconds", "status"),
    [("POST /nowhere", 1, 404), ("GET /health", 10, 200)],
    ids=["refused", "answered without it"],
)
def test_a_body_that_nobody_reads_does_not_keep_the_connection(start, request_line, seconds, status):
    server = start()
    with Raw(server) as one:
        one.send(f"{request_line} HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n")
        server.until_connected(1)
        (connection,) = server.server.server_state.connections
        until(lambda: connection.cycle)
        if status == 200:
            assert one.answer()[0] == 200
            until(lambda: connection._headers_due)
        server.pass_time(seconds)
        assert status == 200 or one.answer()[0] == status
        assert one.closed()


def test_five_megabytes_of_question_are_refused_unread(server, models, monkeypatch):
    prompt = models[NAME].llm.prompt

    def never(*_):
        raise AssertionError("tokenized")

    for step in ("encode", "encode_literal"):
        monkeypatch.setattr(prompt.tokenizer, step, never)
    monkeypatch.setattr(prompt.template, "render", never)
    body = SHORT | {"messages": question("what " * 1_000_000)}
    got = httpx.post(f"{server.url}/v1/chat/completions", json=body, timeout=60).json()["error"]
    assert got["code"] == "context_length_exceeded" and "5000000 characters" in got["message"]
