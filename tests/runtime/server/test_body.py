"""Reading one request on a stand-in for its connection and its clock: what is read, how long for, and what is counted."""

from __future__ import annotations

import asyncio
import threading
from types import SimpleNamespace
from typing import Any

import pytest
from fastapi import Request
from refusal import naming

from runtime.server import body
from runtime.server.errors import ApiError
from runtime.server.memory import Memory
from runtime.server.options import ServerOptions

GONE = {"type": "http.disconnect"}
STALLS = None  # in the place of a message: nothing comes


class Line:
    """The messages of a request, `apart` seconds from each other; waits: how long the server was ready to wait for each."""

    def __init__(self, *messages: dict[str, Any] | None, apart: float = 0.0, **headers: str):
        self.messages, self.apart = list(messages), apart
        self.now, self.waits = 1000.0, list[float]()
        pairs = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
        self.request = Request({"type": "http", "headers": pairs}, self.receive)

    async def receive(self) -> Any:
        return self.messages.pop(0)

    async def wait_for(self, coming: Any, seconds: float) -> Any:
        self.waits.append(seconds)
        self.now += self.apart
        message = await coming
        if message is STALLS:
            raise asyncio.TimeoutError
        return message


@pytest.fixture
def on(monkeypatch):
    """on(line, work): the result of `work`, by the line's clock."""

    def run(line: Line, work: Any) -> Any:
        stand_in = SimpleNamespace(wait_for=line.wait_for, TimeoutError=asyncio.TimeoutError, to_thread=asyncio.to_thread)
        monkeypatch.setattr(body, "asyncio", stand_in)
        monkeypatch.setattr(body, "time", SimpleNamespace(monotonic=lambda: line.now))
        return asyncio.run(work)

    return run


def part(content: bytes, more: bool = True) -> dict[str, Any]:
    return {"type": "http.request", "body": content, "more_body": more}


END = {"type": "http.request"}  # what may be left out is an empty end


@pytest.mark.parametrize(
    ("messages", "length", "content"),
    [
        ([END], "0", b""),
        ([part(b"abc", False)], "3", b"abc"),
        ([part(b"abcde", False)], "5", b"abcde"),  # the most
        ([part(b"ab"), part(b""), part(b"cde"), END], "", b"abcde"),
        ([part(b"ab", False)], "-9", b"ab"),
        ([part(b"ab", False)], "9.5", b"ab"),
    ],
)
def test_a_body_is_read_to_its_end_and_counted(on, messages, length, content):
    line = Line(*messages, content_length=length)
    with Memory(1000).hold() as held:
        assert on(line, body._bounded(line.request, 5, 10, held)) == content
        assert (held.size, line.messages, line.request.state.body_read) == (len(content), [], True)


@pytest.mark.parametrize(
    ("messages", "length", "left"),
    [
        ([part(b"abcdef", False)], "6", 1),
        ([part(b"a")], "9" * 5000, 1),
        ([part(b"abcde"), part(b"f"), END], "", 1),
        ([part(b"abcdef", False)], "2", 0),
    ],
    ids=["said before", "said in very many digits", "in pieces", "at once, and more than was said"],
)
def test_a_body_over_the_limit_is_read_no_further(on, messages, length, left):
    line = Line(*messages, content_length=length)
    with Memory(1000).hold() as held, pytest.raises(ApiError, match=naming("5 bytes")) as raised:
        on(line, body._bounded(line.request, 5, 10, held))
    assert (raised.value.status, raised.value.code, len(line.messages)) == (413, "request_too_large", left)


def test_a_body_has_its_seconds_and_one_more_for_each_half_mib(on):
    pieces = [part(bytes(1 << 20)), part(b"x"), part(bytes(1 << 19)), STALLS]
    line = Line(*pieces, apart=4)
    with Memory(1 << 24).hold() as held, pytest.raises(ApiError, match=naming("13 s")) as raised:
        on(line, body._bounded(line.request, 1 << 23, 10, held))
    assert line.waits == pytest.approx([10, 10 + 2 - 4, 10 + 2 - 8, 10 + 3 - 12], abs=1e-3)
    assert (raised.value.status, raised.value.code) == (408, "request_timeout")
    late = Line(part(b"x"), STALLS, apart=11)
    with Memory(100).hold() as held, pytest.raises(ApiError):
        on(late, body._bounded(late.request, 10, 10, held))
    assert late.waits == [10, 0]


def test_a_client_that_goes_away_gets_the_place_that_it_took_back(on):
    line, memory = Line(part(b"abc"), GONE), Memory(100)
    with pytest.raises(ApiError) as raised, memory.hold() as held:
        on(line, body._bounded(line.request, 10, 10, held))
    assert (raised.value.status, raised.value.code, memory.held) == (400, "incomplete_request", 0)
    assert not line.request.state.body_read


@pytest.mark.parametrize(
    ("messages", "apart", "complete", "left"),
    [
        ([part(b"abc", False)], 0, True, 0),
        ([part(b"a"), END, END], 0, True, 1),
        ([part(b"a"), GONE, END], 0, True, 1),
        ([part(b"a"), {"type": "websocket.receive", "more_body": True}, END], 0, True, 1),
        ([part(b"a"), STALLS, END], 0, False, 1),
        ([part(b"abcd"), part(b"efgh"), part(b"i"), END], 0, False, 2),  # eight are the most
        ([part(b"abcd"), part(b"efg"), part(b"ijkl"), END], 0, False, 1),
        ([END], 20, True, 0),
        ([part(b"a")] * 9, 4, False, 6),  # after 0, 4 and 8 seconds
        ([part(b"a")] * 9, 5, False, 7),  # ten are over
    ],
)
def test_what_a_refused_client_still_sends_is_read_for_a_while(on, messages, apart, complete, left):
    line = Line(*messages, apart=apart)
    assert on(line, body._discard(line.request, 8)) is complete
    assert len(line.messages) == left and set(line.waits) == {1.0}
    assert getattr(line.request.state, "body_read", False) is complete


@pytest.mark.parametrize(
    ("status", "draining", "read", "sent", "connection", "left"),
    [
        (401, False, False, [END], None, 0),
        (401, False, True, [END], None, 1),  # there is no more to read
        (408, False, False, [END], "close", 1),
        (401, True, False, [END], "close", 1),
        (408, True, True, [END], None, 1),
        (401, False, False, [part(b"abcd")] * 4, "close", 2),  # two bytes a body: eight in all
    ],
)
def test_a_refusal_closes_the_connection_unless_the_request_was_read(on, status, draining, read, sent, connection, left):
    line = Line(*sent)
    if read:
        line.request.state.body_read = True
    state = SimpleNamespace(admission=SimpleNamespace(draining=draining), options=ServerOptions(max_body=2))
    error = ApiError(status, "why", "code", headers={"Retry-After": "5"})
    got = on(line, body.refuse(line.request, error, state))
    assert (got.status_code, got.headers["retry-after"], got.headers.get("connection")) == (status, "5", connection)
    assert b'"message":"why"' in got.body and len(line.messages) == left
    assert error.headers == {"Retry-After": "5"}


@pytest.mark.parametrize("size", [0, 65_535, 65_536])
@pytest.mark.parametrize("kind", ["application/json", "Application/JSON ; charset=utf-8"])
def test_a_large_body_is_parsed_in_a_thread_with_its_turn(on, monkeypatch, size, kind):
    line, memory, seen = Line(part(bytes(size), False), content_type=kind), Memory(1 << 20), []

    def parse(model, content):
        seen.append((model, bytes(content), threading.current_thread() is threading.main_thread(), memory.parsing.locked()))
        return "parsed"

    monkeypatch.setattr(body, "parse", parse)
    with memory.hold() as held:
        assert on(line, body.read(line.request, "model", ServerOptions(max_body=65_536), held)) == "parsed"
        assert held.size == size
    large = size == 65_536
    assert seen == [("model", bytes(size), not large, large)]


@pytest.mark.parametrize("kind", ["text/plain", "application/json2", "", None])
def test_another_type_of_content_is_refused_unread(on, kind):
    line = Line(END, **({} if kind is None else {"content_type": kind}))
    with (
        Memory(10).hold() as held,
        pytest.raises(ApiError, match=naming("Content-Type", f'"{kind or ""}"', "application/json")) as raised,
    ):
        on(line, body.read(line.request, None, ServerOptions(), held))
    assert (raised.value.status, raised.value.code, line.messages) == (415, "unsupported_media_type", [END])


def test_a_body_that_takes_too_long_has_the_seconds_of_the_options(on):
    line = Line(STALLS, content_type="application/json")
    with Memory(10).hold() as held, pytest.raises(ApiError, match=naming("7 s")):
        on(line, body.read(line.request, None, ServerOptions(body_seconds=7), held))
    assert line.waits == [7]
