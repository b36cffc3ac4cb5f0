"""A stream's events on stand-ins for the answer and the server's end: every event, in order, and what is closed behind it."""

from __future__ import annotations

import asyncio
import json
from types import SimpleNamespace
from typing import Any

import pytest

from runtime.core.errors import VideoError
from runtime.llm.chat import Piece, Usage
from runtime.server import stream
from runtime.server.admission import Admission
from runtime.server.chat import Answering
from runtime.server.options import ServerOptions
from runtime.server.schema import StreamOptions

COMMENT, DONE = b": working\n\n", b"data: [DONE]\n\n"
PIECES = (Piece("a"), Piece(""), Piece("\u00fc"), Piece("", "stop"))


class Source:
    """A stream over `pieces`, where they are `held` each when it is let go; log: what was counted and closed."""

    def __init__(self, monkeypatch, *pieces: Piece, held: str = "", grace: float = 20, **options: Any):
        self.log: list[Any] = []
        self.held, self.go = held, asyncio.Event()
        self.usage = Usage(3, 2, 1, seconds={"prefill": 1.0})
        settings = ServerOptions(grace_seconds=grace)
        metrics = SimpleNamespace(
            first_token=SimpleNamespace(observe=lambda seconds: self.log.append(("first", seconds))),
            used=lambda usage: self.log.append(("used", usage)),
        )
        self.state = SimpleNamespace(options=settings, admission=Admission(settings), metrics=metrics)
        self.ready = SimpleNamespace(job=SimpleNamespace(request=SimpleNamespace(stream_options=StreamOptions(**options))))
        chat = SimpleNamespace(usage=self.usage)
        self.answering = Answering("id", SimpleNamespace(name="m"), chat, self.produce(pieces), {"seconds": {}}, 1700)
        monkeypatch.setattr(stream, "begin", self.begin)
        monkeypatch.setattr(stream, "time", SimpleNamespace(perf_counter=lambda: 12.5))

    async def produce(self, pieces):
        try:
            for number, piece in enumerate(pieces):
                if number and self.held == "pieces":
                    await self.go.wait()
                    self.go.clear()
                yield piece
            await asyncio.sleep(50)
        finally:
            self.log.append("closed")

    async def begin(self, state, ready, deadline):
        assert (state, ready, deadline) == (self.state, self.ready, 5.0)
        if self.held == "start":
            await self.go.wait()
        return self.answering

    def run(self, work: Any = None) -> list[bytes]:
        async def main():
            async with stream.Stream(self.state, self.ready, 5.0, 10.0) as one:
                await one.grace()
                return [event async for event in one.events()] if work is None else await work(one)

        return asyncio.run(main())


def read(events: list[bytes]) -> list[dict]:
    assert events[-1] == DONE and all(event.startswith(b"data: {") and event.endswith(b"}\n\n") for event in events[:-1])
    return [json.loads(event[6:]) for event in events[:-1]]


def test_a_role_the_texts_and_the_end(monkeypatch):
    source = Source(monkeypatch, *PIECES)
    events = source.run()
    head, first, second, last = read(events)
    assert b'"content":"\xc3\xbc"' in events[2] and b": " not in events[2][6:]
    assert {key: head[key] for key in ("id", "object", "created", "model")} == {
        "id": "id", "object": "chat.completion.chunk", "created": 1700, "model": "m",
    }  # fmt: skip
    choices = [event["choices"] for event in (head, first, second, last)]
    deltas = [{"role": "assistant", "content": ""}, {"content": "a"}, {"content": "\u00fc"}, {}]
    assert choices == [
        [{"index": 0, "delta": delta, "logprobs": None, "finish_reason": "stop" if not delta else None}] for delta in deltas
    ]
    assert last["metadata"] == source.answering.metadata() and not any("usage" in event for event in (head, first, second, last))
    assert source.log == [("first", 2.5), ("used", source.usage), "closed"]


@pytest.mark.parametrize("continuous", [False, True])
def test_usage_is_in_an_event_of_its_own_or_in_all(monkeypatch, continuous):
    source = Source(monkeypatch, *PIECES, include_usage=True, continuous_usage_stats=continuous)
    *chunks, last = read(source.run())
    usage = source.answering.usage()
    assert len(chunks) == 4 and [chunk["usage"] for chunk in chunks] == [usage if continuous else None] * 4
    assert (last["choices"], last["usage"], last["metadata"]) == ([], usage, source.answering.metadata())
    only = Source(monkeypatch, *PIECES, continuous_usage_stats=True)
    assert not any("usage" in event for event in read(only.run()))


@pytest.mark.parametrize(("held", "grace", "pauses"), [("start", 0.001, 1), ("pieces", 20, 3)])
def test_comments_before_the_first_piece_and_between_pieces(monkeypatch, held, grace, pauses):
    monkeypatch.setattr(stream, "_EVERY", 0.001)
    source = Source(monkeypatch, *PIECES, held=held, grace=grace)

    async def work(one):
        events, comments = [], 0
        async for event in one.events():
            events.append(event)
            comments = comments + 1 if event == COMMENT else 0
            if comments and comments % 3 == 0:
                source.go.set()
        return events

    events = source.run(work)
    assert (events[0] == COMMENT) == (held == "start") and events.count(COMMENT) >= 3 * pauses
    assert len(read([event for event in events if event != COMMENT])) == 4


def test_a_comment_comes_every_ten_seconds_and_the_first_piece_is_waited_for_half_a_second(monkeypatch):
    waits = []
    wait = asyncio.wait

    async def waiting(tasks, **how):
        waits.append(how)
        return await wait(tasks, **how)

    monkeypatch.setattr(asyncio, "wait", waiting)
    Source(monkeypatch, Piece("", "stop"), grace=ServerOptions().grace_seconds).run()
    assert waits[0] == {"timeout": 0.5} and all(one == {"timeout": 10, "return_when": "FIRST_COMPLETED"} for one in waits[1:])


def test_where_the_server_s_time_is_over_the_stream_ends_with_that(monkeypatch):
    source = Source(monkeypatch, Piece("a"))

    async def work(one):
        events = []
        async for event in one.events():
            events.append(event)
            source.state.admission.end()
        return events

    *_, error = read(source.run(work))
    assert error["error"]["code"] == "draining" and source.log[-1] == "closed"


def test_an_error_in_time_is_raised_and_later_ones_are_events(monkeypatch):
    source = Source(monkeypatch, *PIECES)

    async def torn(*_):
        raise VideoError("torn")

    monkeypatch.setattr(stream, "begin", torn)
    with pytest.raises(VideoError, match="torn"):
        source.run()
    source = Source(monkeypatch, *PIECES)

    async def broken(pieces):
        yield Piece("a")
        raise VideoError("torn")

    source.answering.pieces = broken(())
    _, text, error = read(source.run())
    assert text["choices"][0]["delta"] == {"content": "a"} and error["error"]["code"] == "invalid_video"
    assert source.log == [("first", 2.5)]


def test_who_leaves_early_closes_the_answer(monkeypatch):
    async def leave(one):
        return [await anext(one.events())]

    source = Source(monkeypatch, *PIECES)
    assert len(source.run(leave)) == 1 and source.log[-1] == "closed"
    source = Source(monkeypatch, *PIECES, held="start", grace=0.001)
    assert source.run(leave) == [COMMENT] and source.log == []
