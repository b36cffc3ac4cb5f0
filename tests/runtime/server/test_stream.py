"""A stream has something on the line from the start, and what goes wrong later is an event of it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import threading
from types import SimpleNamespace

import httpx
import numpy as np
import openai
import pytest
from http_server import NAME, data_url, question

from export.demo import CLIPS
from runtime.core.errors import VideoError
from runtime.server import stream
from runtime.server.admission import Admission
from runtime.server.options import ServerOptions
from runtime.server.schema import StreamOptions


@pytest.fixture
def held_up(models, monkeypatch):
    """Clips are not decoded before `set`; set `error` to let them fail."""
    encoder, gate = models[NAME].encoder, threading.Event()
    decode = encoder.decode
    gate.error = None

    def later(media, check):
        assert gate.wait(60)
        if gate.error:
            raise gate.error
        return decode(media, check)

    monkeypatch.setattr(encoder, "decode", later)
    yield gate
    gate.set()


def _ask(server, **more) -> contextlib.AbstractContextManager[httpx.Response]:
    body = {"model": NAME, "messages": question("which shape appears last ?", data_url(CLIPS / "shapes.mp4")), "stream": True}
    return httpx.stream("POST", f"{server.url}/v1/chat/completions", json=body | more, timeout=60)


def test_headers_and_a_comment_come_at_once_and_comments_until_the_answer_begins(start, held_up, monkeypatch):
    monkeypatch.setattr(stream, "_EVERY", 0.05)
    with _ask(start(grace_seconds=0.01)) as response:
        assert response.status_code == 200
        assert response.headers["x-accel-buffering"] == "no" and response.headers["content-type"].startswith("text/event-stream")
        lines = (line for line in response.iter_lines() if line)
        assert [next(lines)[0] for _ in range(4)] == [":"] * 4
        held_up.set()
        events = [line.removeprefix("data: ") for line in lines if not line.startswith(":")]
        assert "".join(json.loads(e)["choices"][0]["delta"].get("content", "") for e in events[:-1]) == "cross"
        assert events[-1] == "[DONE]"


def test_an_early_answer_needs_no_comment_and_an_early_error_has_its_status(start):
    server = start(grace_seconds=60)
    with _ask(server) as response:
        assert not any(line.startswith(":") for line in response.iter_lines())
    with _ask(server, messages=question("what ?", "data:video/mp4;base64,QUJD")) as response:
        assert response.status_code == 422


@pytest.mark.parametrize("error", [VideoError("the clip is torn"), RuntimeError("secret")])
def test_an_error_after_the_headers_is_an_event(start, held_up, error):
    server = start(grace_seconds=0.01)
    with _ask(server) as response:
        assert response.status_code == 200
        held_up.error = error
        held_up.set()
        lines = [line for line in response.iter_lines() if line]
    said = json.loads(lines[-2].removeprefix("data: "))["error"]
    assert lines[-1] == "data: [DONE]" and "secret" not in said["message"]
    assert (said["type"], said["code"]) == (
        ("server_error", "internal_error") if isinstance(error, RuntimeError) else ("invalid_request_error", "invalid_video")
    )
    server.until_idle()


def test_the_official_client_reads_over_comments_and_raises_what_an_event_says(start, held_up, monkeypatch):
    monkeypatch.setattr(stream, "_EVERY", 0.05)
    client = start(grace_seconds=0.01).client()
    ask = {"model": NAME, "messages": question("which shape appears last ?", data_url(CLIPS / "shapes.mp4")), "stream": True}
    threading.Timer(0.3, held_up.set).start()
    assert "".join(chunk.choices[0].delta.content or "" for chunk in client.chat.completions.create(**ask)) == "cross"
    held_up.error = VideoError("the clip is torn")
    ask["messages"] = question("which ?", data_url(CLIPS / "flash.mp4"))
    with pytest.raises(openai.APIError, match="torn"):
        list(client.chat.completions.create(**ask))


def test_comments_bridge_a_pause_between_two_tokens_too(start, models, monkeypatch):
    monkeypatch.setattr(stream, "_EVERY", 0.05)
    scheduler, gate, steps = models[NAME].llm.scheduler, threading.Event(), []
    word = np.zeros((1, len(scheduler.prompt.embeddings)), np.float32)
    word[0, 12] = 1

    def third_waits(slots, embeddings):
        steps.append(1)
        assert len(steps) != 3 or gate.wait(60)
        return word

    monkeypatch.setattr(scheduler.decoder, "extend", lambda slot, embeddings: word[0])
    monkeypatch.setattr(scheduler.decoder, "step", third_waits)
    with _ask(start(grace_seconds=60), messages=question("what is it ?"), max_tokens=8) as response:
        lines = (line for line in response.iter_lines() if line)
        assert next(line for line in lines if line.startswith(":"))
        assert len(steps) == 3
        gate.set()
        assert list(lines)[-1] == "data: [DONE]"


def test_a_client_that_goes_before_the_answer_begins_frees_its_place(start, held_up, monkeypatch):
    monkeypatch.setattr(stream, "_EVERY", 1000)
    server = start(grace_seconds=0.01)
    with _ask(server) as response:
        lines = response.iter_lines()
        assert next(lines).startswith(":") and server.state.admission.accepted == 1
    server.until_idle()


def test_usage_comes_with_every_chunk_where_that_is_asked_for(server):
    options = {"include_usage": True, "continuous_usage_stats": True}
    with _ask(server, messages=question("what is it ?"), max_tokens=4, stream_options=options) as response:
        chunks = [json.loads(line[6:]) for line in response.iter_lines() if line.startswith("data: {")]
    assert all(chunk["usage"]["prompt_tokens"] for chunk in chunks)
    assert chunks[-1]["usage"]["completion_tokens"] >= chunks[0]["usage"]["completion_tokens"]


@pytest.mark.parametrize(("error", "logged"), [(VideoError("the clip is torn"), []), (RuntimeError("secret"), ["a stream failed"])])
def test_what_fails_inside_is_in_the_log_and_what_is_the_client_s_own_is_not(monkeypatch, caplog, error, logged):
    async def fail(*_):
        raise error

    async def main() -> list[bytes]:
        options = ServerOptions()
        ready = SimpleNamespace(job=SimpleNamespace(request=SimpleNamespace(stream_options=StreamOptions())))
        state = SimpleNamespace(options=options, admission=Admission(options))
        async with stream.Stream(state, ready, 0, 0) as one:
            return [event async for event in one.events()]

    monkeypatch.setattr(stream, "begin", fail)
    with caplog.at_level(logging.ERROR, "runtime.server"):
        comment, event, done = asyncio.run(main())
    assert (comment, done) == (b": working\n\n", b"data: [DONE]\n\n") and b"secret" not in event
    assert [(record.getMessage(), record.exc_info[1]) for record in caplog.records] == [(text, error) for text in logged]
