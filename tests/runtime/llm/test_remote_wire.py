"""A remote LLM without a network: requests, tries, pauses, deadlines, and what is counted."""

from __future__ import annotations

import asyncio
import json
import sys
import time
from types import SimpleNamespace

import httpx
import pytest

from runtime.llm import remote
from runtime.llm.chat import Chat, DeadlineError, Piece
from runtime.llm.remote import LLMOptions, RemoteError, RemoteLLM, _pause, _within

VISION_ONLY = SimpleNamespace(has_llm=False, manifest=SimpleNamespace(tokens_per_clip=4))
ANSWER = "".join(
    f"data: {line}\n\n"
    for line in (
        '{"choices": [{"delta": {"content": "a cat"}, "finish_reason": "stop"}]}',
        '{"usage": {"prompt_tokens": 12, "completion_tokens": 3}}',
        "[DONE]",
    )
)
PIECES = [Piece("a cat"), Piece(finish="stop")]


class Remote:
    """A remote of these answers in turn: a status, (status, headers), or an error to raise; `pauses`: seconds between tries."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *answers: object, **options: object):
        self.answers, self.requests, self.pauses, self.running = list(answers), [], [], []
        self.llm = RemoteLLM(VISION_ONLY, LLMOptions("http://host/v1/", "m", **options))
        client = httpx.AsyncClient

        async def no_sleep(seconds: float) -> None:
            self.pauses.append(round(seconds, 6))
            await asyncio.sleep(0)

        # the module's own view: a server that another test left running sleeps, too
        monkeypatch.setattr(remote, "asyncio", SimpleNamespace(**vars(asyncio) | {"sleep": no_sleep}))
        monkeypatch.setattr(httpx, "AsyncClient", lambda **more: client(transport=httpx.MockTransport(self.answer), **more))

    def answer(self, request: httpx.Request) -> httpx.Response:
        self.requests.append(request)
        self.running.append(self.llm.busy()["running"])
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        status, headers = answer if isinstance(answer, tuple) else (answer, {})
        return httpx.Response(status, headers=headers, text=ANSWER if status == 200 else '{"error": {"message": "no\\n room"}}')

    def ask(self, chat: Chat) -> list[Piece]:
        async def collect() -> list[Piece]:
            return [piece async for piece in self.llm.answer(chat)]

        return asyncio.run(collect())


def test_a_chat_is_one_request(monkeypatch):
    there = Remote(monkeypatch, 200, api_key="secret")
    chat = Chat([{"role": "user", "content": [{"type": "text", "text": "what ?"}]}], [])
    ticks = iter(range(5, 9))
    monkeypatch.setattr(remote, "time", SimpleNamespace(perf_counter=lambda: next(ticks), monotonic=time.monotonic))
    assert there.ask(chat) == PIECES
    (request,) = there.requests
    assert (request.method, str(request.url)) == ("POST", "http://host/v1/chat/completions")
    assert request.headers["content-type"] == "application/json" and request.headers["authorization"] == "Bearer secret"
    assert json.loads(request.content)["messages"] == [{"role": "user", "content": "what ?"}]
    assert (chat.usage.prompt_tokens, chat.usage.completion_tokens, chat.usage.cached_tokens) == (12, 3, 0)
    assert chat.usage.seconds == {"prefill": 1, "decode": 2}
    assert there.running == [1] and there.llm.busy() == {"running": 0, "waiting": 0, "kv_positions": 0}
    assert there.llm.healthy and there.llm.max_context is None and not chat.usage.warnings


def test_defaults(monkeypatch):
    options = LLMOptions("https://host/v1", "m")
    assert (options.api_key, options.dtype, options.tries, options.connect, options.silence) == (None, "float16", 3, 10, 120)
    there = Remote(monkeypatch, 200)
    there.ask(Chat([], []))
    assert "authorization" not in there.requests[0].headers
    assert there.requests[0].extensions["timeout"] == {"connect": 10, "read": 120, "write": 120, "pool": 120}


@pytest.mark.parametrize(
    ("answers", "pauses"),
    [
        ([429, 502, 200], [0.4, 0.8]),
        ([(503, {"Retry-After": "7"}), 200], [7]),
        ([(503, {"Retry-After": "11"}), (429, {"Retry-After": "soon"}), 200], [10, 0.8]),
        ([httpx.ConnectError("refused"), httpx.ConnectError("refused"), 200], [0.4, 0.8]),
        ([httpx.ConnectError("refused"), 502, 200], [0.4, 0.8]),
    ],
)
def test_what_was_not_begun_is_tried_three_times(monkeypatch, answers, pauses):
    there = Remote(monkeypatch, *answers)
    assert there.ask(Chat([], [])) == PIECES
    assert there.pauses == pauses and len(there.requests) == len(pauses) + 1 and not there.answers


@pytest.mark.parametrize(
    ("answers", "status", "named", "tries"),
    [
        ([503, 503, 502, 200], 502, "no room", 3),
        ([400, 200], 400, "no room", 1),
        ([500, 200], 500, "no room", 1),
        ([(307, {"Location": "http://elsewhere/"}), 200], 307, "no room", 1),  # a request goes to nobody else
        ([httpx.ConnectError("refused")] * 3, None, "ConnectError", 3),
        ([httpx.ReadError("cut"), 200], None, "ReadError", 1),
        ([httpx.ReadTimeout("slow"), 200], None, "in time", 1),
    ],
)
def test_what_fails_is_an_error_and_what_may_have_begun_is_not_tried_again(monkeypatch, answers, status, named, tries):
    there, chat = Remote(monkeypatch, *answers), Chat([], [])
    with pytest.raises(RemoteError, match=f"http://host/v1/.*{named}") as raised:
        there.ask(chat)
    assert raised.value.status == status and len(there.requests) == tries
    assert there.llm.busy()["running"] == 0 and set(chat.usage.seconds) == {"decode"}


def test_one_try_is_one_request(monkeypatch):
    there = Remote(monkeypatch, 503, 200, tries=1)
    with pytest.raises(RemoteError, match="503"):
        there.ask(Chat([], []))
    assert len(there.requests) == 1 and there.pauses == []


@pytest.mark.parametrize("answer", [503, httpx.ConnectError("refused")])
def test_a_deadline_that_has_passed_is_not_waited_for(monkeypatch, answer):
    there = Remote(monkeypatch, answer, 200)
    with pytest.raises(DeadlineError):
        there.ask(Chat([], [], deadline=time.monotonic() - 1))


@pytest.mark.parametrize(("deadline", "left"), [(90.0, 0), (100.25, 0.25), (105.0, 5), (float("inf"), None)])
def test_work_is_waited_for_until_its_deadline(monkeypatch, deadline, left):
    waited = []

    async def wait_for(work, seconds):
        waited.append(seconds)
        return await work

    monkeypatch.setattr(remote, "time", SimpleNamespace(monotonic=lambda: 100.0))
    monkeypatch.setattr(remote, "asyncio", SimpleNamespace(wait_for=wait_for, TimeoutError=asyncio.TimeoutError))
    assert asyncio.run(_within(asyncio.sleep(0, "done"), deadline)) == "done" and waited == [left]


def test_work_that_does_not_end_by_its_deadline_is_an_error():
    async def wait() -> None:
        await _within(asyncio.Event().wait(), time.monotonic() + 0.01)  # nobody sets it

    with pytest.raises(DeadlineError):
        asyncio.run(wait())


def test_another_count_is_a_warning_in_every_answer_and_one_line_in_the_log(caplog):
    llm = RemoteLLM(VISION_ONLY, LLMOptions("http://host/v1", "m"))
    for ours, theirs in ((0, 5), (5, 0), (5, 5)):
        chat = Chat([], [])
        chat.usage.prompt_tokens = theirs
        llm._compare(chat, ours)
        assert not chat.usage.warnings
    chats = [Chat([], []), Chat([], [])]
    for chat in chats:
        chat.usage.prompt_tokens = 7
        llm._compare(chat, 5)
        (warning,) = chat.usage.warnings
        assert "7" in warning and "5" in warning
    assert len(caplog.records) == 1


def test_a_refusal_that_is_not_json_is_quoted(monkeypatch):
    llm = RemoteLLM(VISION_ONLY, LLMOptions("http://host/v1", "m"))
    for text in ("[1, 2]", "<html>", "z" * 300):
        refusal = asyncio.run(llm._refusal(httpx.Response(418, text=text)))
        assert str(refusal).endswith(f"418: {text[:200]}") and refusal.status == 418
    long = json.dumps({"message": "found", "padding": "x" * 65_536})  # more than is read of a refusal
    assert "found" in str(asyncio.run(llm._refusal(httpx.Response(418, text=long))))
    assert str(asyncio.run(llm._refusal(httpx.Response(418, content=b"\xff\xfe")))).endswith("418: \ufffd\ufffd")


@pytest.mark.parametrize(
    ("asked", "seconds"),
    [("0", 0), ("7", 7), ("10", 10), ("11", 10), ("-1", 0.4), ("1.5", 0.4), ("", 0.4), ("Wed, 21 Oct 2026 07:28:00 GMT", 0.4)],
)
def test_a_pause_is_what_the_remote_asks_for_and_ten_seconds_at_most(asked, seconds):
    assert _pause(asked, 0.4) == seconds


def test_without_httpx_the_error_names_it_and_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "httpx", None)
    with pytest.raises(remote.UserError, match=r'"httpx".*\[serve\]'):
        RemoteLLM(VISION_ONLY, LLMOptions("http://host/v1", "m"))
