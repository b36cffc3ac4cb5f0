"""What goes to a remote LLM and comes back, without a network: requests, tries, pauses, limits, and what is counted."""

from __future__ import annotations

import asyncio
import base64
import json
import sys
import time
from types import SimpleNamespace

import httpx
import numpy as np
import pytest

from runtime.llm import remote
from runtime.llm.chat import Chat, ClipTokens
from runtime.llm.remote import LLMOptions, RemoteError, RemoteLLM, _message, _pause, _within, embeds
from runtime.llm.sampling import Sampling
from runtime.llm.scheduler import DeadlineError, Piece

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
    chat, begun = Chat([{"role": "user", "content": [{"type": "text", "text": "what ?"}]}], []), time.perf_counter()
    assert there.ask(chat) == PIECES
    passed = time.perf_counter() - begun
    (request,) = there.requests
    assert (request.method, str(request.url)) == ("POST", "http://host/v1/chat/completions")
    assert request.headers["content-type"] == "application/json" and request.headers["authorization"] == "Bearer secret"
    assert json.loads(request.content)["messages"] == [{"role": "user", "content": "what ?"}]
    assert (chat.usage.prompt_tokens, chat.usage.completion_tokens, chat.usage.cached_tokens) == (12, 3, 0)
    assert 0 < chat.usage.seconds["prefill"] <= chat.usage.seconds["decode"] <= passed
    assert there.running == [1] and there.llm.busy() == {"running": 0, "waiting": 0, "kv_positions": 0}
    assert there.llm.healthy and there.llm.max_context is None and not chat.usage.warnings


def test_what_is_not_said_has_its_usual_value(monkeypatch):
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
    ("answers", "status", "said", "tries"),
    [
        ([503, 503, 502, 200], 502, "answers 502: no room", 3),
        ([400, 200], 400, "answers 400: no room", 1),
        ([500, 200], 500, "answers 500: no room", 1),
        ([(307, {"Location": "http://elsewhere/"}), 200], 307, "answers 307: no room", 1),  # what is asked goes to nobody else
        ([httpx.ConnectError("refused")] * 3, None, r"can't be reached \(ConnectError\)", 3),
        ([httpx.ReadError("cut"), 200], None, r"can't be reached \(ReadError\)", 1),
        ([httpx.ReadTimeout("slow"), 200], None, "did not answer in time", 1),
    ],
)
def test_what_fails_is_told_and_what_may_have_begun_is_not_tried_again(monkeypatch, answers, status, said, tries):
    there, chat = Remote(monkeypatch, *answers), Chat([], [])
    with pytest.raises(RemoteError, match=f"^the LLM at http://host/v1/ {said}$") as raised:
        there.ask(chat)
    assert raised.value.status == status and len(there.requests) == tries
    assert there.llm.busy()["running"] == 0 and set(chat.usage.seconds) == {"decode"}


def test_one_try_is_one_request(monkeypatch):
    there = Remote(monkeypatch, 503, 200, tries=1)
    with pytest.raises(RemoteError, match="answers 503"):
        there.ask(Chat([], []))
    assert len(there.requests) == 1 and there.pauses == []


@pytest.mark.parametrize("answer", [503, httpx.ConnectError("refused")])
def test_a_deadline_that_has_passed_is_not_waited_for(monkeypatch, answer):
    there = Remote(monkeypatch, answer, 200)
    with pytest.raises(DeadlineError, match="the request's deadline has passed"):
        there.ask(Chat([], [], deadline=time.monotonic() - 1))


@pytest.mark.parametrize(("deadline", "ends"), [(-1, True), (0.02, True), (5, False), (float("inf"), False)])
def test_work_is_waited_for_until_its_deadline(deadline, ends):
    work = asyncio.sleep(0.3 if ends else 0.001, "done")

    async def wait() -> str:
        return await _within(work, time.monotonic() + deadline)

    if not ends:
        assert asyncio.run(wait()) == "done"
        return
    with pytest.raises(DeadlineError, match="while the remote LLM was answering"):
        asyncio.run(wait())


def test_a_request_says_what_the_chat_says():
    llm = RemoteLLM(VISION_ONLY, LLMOptions("http://host/v1", "m"))
    text, video = {"type": "text", "text": "look"}, {"type": "video"}
    messages = [
        {"role": "system", "content": [text]},
        {"role": "user", "content": [video, text, video]},
        {"role": "assistant", "content": []},
        {"role": "user", "content": [video]},
        {"role": "user", "content": [text, text]},
    ]
    clips = [ClipTokens(str(number), np.full((1, 2), number, np.float32)) for number in range(3)]
    first, second, third = (
        {"type": "prompt_embeds", "data": base64.b64encode(embeds(clip.tokens, "float16")).decode()} for clip in clips
    )
    expected = {
        "model": "m",
        "messages": [
            {"role": "system", "content": "look"},
            {"role": "user", "content": [first, text, second]},
            {"role": "assistant", "content": ""},
            {"role": "user", "content": [third]},
            {"role": "user", "content": [text, text]},
        ],
        "stream": True,
        "stream_options": {"include_usage": True},
        "temperature": 0.0,
        "top_p": 1.0,
    }
    assert json.loads(llm._body(Chat(messages, clips))) == expected
    more = {"temperature": 0.5, "top_p": 0.9, "max_tokens": 1, "stop": ["a", "b"], "seed": 0}
    assert json.loads(llm._body(Chat(messages, clips, 1, Sampling(0.5, 0.9, 0), ("a", "b")))) == expected | more


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
        assert len(chat.usage.warnings) == 1 and "counts 7 prompt tokens, this side 5" in chat.usage.warnings[0]
    assert len(caplog.records) == 1


def test_tokens_travel_in_the_type_that_was_asked_for():
    tokens = np.float32([[1, -2.5], [3e-3, 65504]])
    assert b"HalfStorage" in embeds(tokens, "float16") and tokens.astype(np.float16).tobytes() in embeds(tokens, "float16")
    for given in (tokens, tokens[:1].astype(np.float16)):
        assert b"BFloat16Storage" in embeds(given, "bfloat16")
    assert np.uint16([0x3F80, 0xC020]).tobytes() in embeds(tokens[:1], "bfloat16")  # 1 and -2.5, the upper halves of float32


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ({"error": {"message": " no\n room "}}, "no room"),
        ({"error": "no room"}, "no room"),
        ({"message": "no room"}, "no room"),
        ({"error": {"code": 3}}, ""),
        ({"error": None}, ""),
        ({"detail": 1}, ""),
        ({"error": "x" * 501}, "x" * 500),
    ],
)
def test_the_message_of_an_error_in_any_form(body, said):
    assert _message(body) == said


def test_a_refusal_that_is_no_json_is_quoted(monkeypatch):
    llm = RemoteLLM(VISION_ONLY, LLMOptions("http://host/v1", "m"))
    for text in ("[1, 2]", "<html>", "z" * 300):
        refusal = asyncio.run(llm._refusal(httpx.Response(418, text=text)))
        assert str(refusal) == f"the LLM at http://host/v1 answers 418: {text[:200]}" and refusal.status == 418
    long = json.dumps({"message": "found", "padding": "x" * 65_536})  # more than is read of a refusal
    assert "found" in str(asyncio.run(llm._refusal(httpx.Response(418, text=long))))
    assert str(asyncio.run(llm._refusal(httpx.Response(418, content=b"\xff\xfe")))).endswith("418: \ufffd\ufffd")


def test_a_pause_is_ten_seconds_at_most():
    assert [_pause(asked, 0.4) for asked in ("9", "10", "11", "-1", "1.5", "")] == [9, 10, 10, 0.4, 0.4, 0.4]


def test_without_httpx_it_is_said_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "httpx", None)
    with pytest.raises(remote.UserError, match=r'a remote LLM needs the package "httpx", .*\[serve\]'):
        RemoteLLM(VISION_ONLY, LLMOptions("http://host/v1", "m"))
