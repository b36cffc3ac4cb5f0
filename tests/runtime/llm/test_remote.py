"""A remote LLM that is fed visual tokens answers as the local decoder does; what goes wrong there is an error here."""

from __future__ import annotations

import asyncio
import base64
import json
import re
import socket
import time
from types import SimpleNamespace

import httpx
import openai
import pytest
from http_server import NAME, data_url, question, running
from remote_llm import remote_llm

from export.demo import CLIPS
from runtime.core.errors import UsageError
from runtime.engine import EngineOptions
from runtime.llm import remote
from runtime.llm.chat import Chat, ClipTokens, Piece
from runtime.llm.remote import LLMOptions, RemoteError, RemoteLLM
from runtime.server.models import Models
from runtime.server.options import ServerOptions

VISION_ONLY = SimpleNamespace(has_llm=False, manifest=SimpleNamespace(tokens_per_clip=4))
ASKED = [("shapes.mp4", "which shape appears last ?", "cross"), ("flash.mp4", "what color is the flash ?", "white")]


@pytest.fixture
def through(bundle_path):
    """through(url, **options) -> (client, server) of our server with that LLM."""
    import contextlib

    with contextlib.ExitStack() as stack:

        def start(url: str, dtype: str = "float16", key: str | None = None, **more):
            llm, engine = LLMOptions(url, "tiny", key, dtype), EngineOptions(threads=1)
            options = ServerOptions(llm=llm, backend="onnx", engine=engine, **more)
            models = Models.open([bundle_path], options)
            server = stack.enter_context(running(models, options))
            return server.client(), server

        yield start


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_answers_are_those_of_the_local_decoder(through, dtype):
    with remote_llm() as (url, remote):
        client, _ = through(url, dtype, "theirs")
        for clip, text, expected in ASKED:
            got = client.chat.completions.create(model=NAME, messages=question(text, data_url(CLIPS / clip)), max_tokens=8)
            assert got.choices[0].message.content == expected and got.choices[0].finish_reason == "stop"
            assert got.usage.prompt_tokens == 267 if clip == "shapes.mp4" else True
            assert got.metadata["compression"]["tokens_out"] == 257 and "warnings" not in got.metadata
        body = remote.requests[0]
        assert body["model"] == "tiny" and body["_authorization"] == "Bearer theirs"
        assert [part["type"] for part in body["messages"][0]["content"]] == ["prompt_embeds", "text"]


def test_text_before_and_after_a_clip_keeps_its_place_and_streams(through):
    with remote_llm() as (url, remote):
        client, _ = through(url)
        clip = {"type": "video_url", "video_url": {"url": data_url(CLIPS / "shapes.mp4")}}
        parts = [{"type": "text", "text": "look"}, clip, {"type": "text", "text": "which shape appears last ?"}]
        messages = [{"role": "system", "content": "you are a helpful"}, {"role": "user", "content": parts}]
        chunks = client.chat.completions.create(model=NAME, messages=messages, max_tokens=4, stream=True, stop=["zz"], seed=7)
        assert "".join(c.choices[0].delta.content or "" for c in chunks)
        body = remote.requests[0]
        assert [part["type"] for part in body["messages"][1]["content"]] == ["text", "prompt_embeds", "text"]
        assert body["messages"][0] == {"role": "system", "content": "you are a helpful"}
        assert (body["max_tokens"], body["stop"], body["seed"], body["temperature"]) == (4, ["zz"], 7, 0.0)


def test_a_template_that_adds_to_the_parts_is_reported(through):
    with remote_llm(newline=True) as (url, _):
        client, _ = through(url)
        got = client.chat.completions.create(
            model=NAME, messages=question("what color is the square ?", data_url(CLIPS / "shapes.mp4"))
        )
        (warning,) = got.metadata["warnings"]
        assert {str(got.usage.prompt_tokens), str(got.usage.prompt_tokens - 1)} <= set(re.findall(r"\d+", warning))


@pytest.mark.parametrize("statuses", [[429], [503, 502]])
def test_what_was_not_begun_is_tried_again(through, statuses):
    with remote_llm(status=list(statuses)) as (url, remote):
        client, _ = through(url)
        got = client.chat.completions.create(model=NAME, messages=question("what ?"), max_tokens=2)
        assert got.choices and len(remote.requests) == len(statuses) + 1


@pytest.mark.parametrize(
    ("status", "kind", "ours"),
    [(400, openai.BadRequestError, 400), (401, openai.InternalServerError, 503), (404, openai.InternalServerError, 503),
     (422, openai.UnprocessableEntityError, 422), (500, openai.InternalServerError, 503)],
)  # fmt: skip
def test_what_the_remote_refuses_is_a_clear_error_and_not_tried_again(through, status, kind, ours):
    with remote_llm(status=[status] * 9) as (url, remote):
        client, _ = through(url)
        with pytest.raises(kind, match=f"refused with {status}") as raised:
            client.chat.completions.create(model=NAME, messages=question("what ?"))
        assert raised.value.status_code == ours and len(remote.requests) == 1


def test_an_answer_that_is_cut_off_is_an_error_and_not_asked_twice(through):
    with remote_llm(cut=True) as (url, remote):
        client, _ = through(url)
        with pytest.raises(openai.InternalServerError, match="without a finish_reason"):
            client.chat.completions.create(model=NAME, messages=question("what color is the square ?"))
        with pytest.raises(openai.APIError, match="without a finish_reason"):
            list(client.chat.completions.create(model=NAME, messages=question("what color is the square ?"), stream=True))
        assert len(remote.requests) == 2


def test_a_remote_that_is_not_there_is_an_error(through, monkeypatch):
    async def no_sleep(seconds: float) -> None:
        pauses.append(seconds)

    pauses: list[float] = []
    monkeypatch.setattr(remote, "asyncio", SimpleNamespace(**vars(asyncio) | {"sleep": no_sleep}))
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        client, _ = through(f"http://127.0.0.1:{unused.getsockname()[1]}/v1")
        with pytest.raises(openai.InternalServerError, match="ConnectError") as raised:
            client.chat.completions.create(model=NAME, messages=question("what ?"))
        assert raised.value.status_code == 503 and pauses == [0.4, 0.8]


def test_connecting_and_silence_have_limits_of_their_own():
    limits = RemoteLLM(VISION_ONLY, LLMOptions("http://host/v1", "m", connect=2.5, silence=7))._timeout
    assert (limits.connect, limits.read) == (2.5, 7)


class Events:
    """A response of these lines; after [DONE] nothing is read."""

    def __init__(self, *events: dict | str):
        self.lines = [event if isinstance(event, str) else f"data: {json.dumps(event)}" for event in events]

    async def aiter_lines(self):
        for line in self.lines:
            yield line
        if "data: [DONE]" in self.lines:
            raise AssertionError("the answer had ended")


def pieces_of(response: Events) -> tuple[list[Piece], Chat]:
    """What a remote's answer becomes."""
    llm, chat = RemoteLLM(VISION_ONLY, LLMOptions("http://host/v1", "m")), Chat([], [], deadline=time.monotonic() + 5)

    async def collect() -> list[Piece]:
        return [piece async for piece in llm._pieces(response, chat, time.perf_counter())]

    return asyncio.run(collect()), chat


def choice(text: str | None = None, finish: str | None = None) -> dict:
    return {"choices": [{"delta": {"content": text}, "finish_reason": finish}]}


def test_an_answer_ends_with_done_though_the_connection_stays_open():
    usage = {"prompt_tokens": 12, "completion_tokens": 3, "prompt_tokens_details": {"cached_tokens": 8}}
    response = Events(
        ": comment",
        "",
        choice(""),
        choice("a "),
        choice("cat"),
        choice(None, "length"),
        {"choices": [], "usage": usage},
        "data: [DONE]",
    )
    pieces, chat = pieces_of(response)
    assert [(piece.text, piece.finish) for piece in pieces] == [("a ", None), ("cat", None), ("", "length")]
    assert (chat.usage.prompt_tokens, chat.usage.completion_tokens, chat.usage.cached_tokens) == (12, 3, 8)
    assert set(chat.usage.seconds) == {"prefill"}


@pytest.mark.parametrize(
    ("usage", "counts"),
    [
        ({"prompt_tokens": 12, "completion_tokens": 3}, (12, 3, 0)),
        ({"prompt_tokens": 12, "prompt_tokens_details": None}, (12, 0, 0)),
        ({"completion_tokens": 3, "prompt_tokens_details": {"audio_tokens": 2}}, (0, 3, 0)),
        ({"prompt_tokens": None, "completion_tokens": None, "prompt_tokens_details": {"cached_tokens": None}}, (0, 0, 0)),
    ],
)
def test_what_a_remote_does_not_count_is_0(usage, counts):
    _, chat = pieces_of(Events(choice("x", "stop"), {"choices": None, "usage": usage}))
    assert (chat.usage.prompt_tokens, chat.usage.completion_tokens, chat.usage.cached_tokens) == counts


def test_prompts_are_counted_here_where_there_is_a_tokenizer_and_they_are_not_too_long():
    llm = RemoteLLM(VISION_ONLY, LLMOptions("http://host/v1", "m"))
    assert llm.check([{"role": "user", "content": [{"type": "text", "text": "what ?"}]}]) == 0
    counted = []
    ids = SimpleNamespace(positions=lambda tokens_per_clip: 9 + 2 * tokens_per_clip)
    llm.prompt = SimpleNamespace(message_ids=lambda messages: counted.append(list(messages)) or ids)
    content = [{"type": "text", "text": "a" * 65_536}, {"type": "video"}, {"type": "text", "text": "b" * 65_536}, {"type": "video"}]
    messages = [{"role": "user", "content": content}]
    assert llm.check(messages) == 9 + 2 * 4
    assert counted == [messages]
    messages.append({"role": "user", "content": [{"type": "text", "text": "c"}]})
    assert llm.check(messages) == 0 and len(counted) == 1


def test_the_latest_eight_clips_are_encoded_once(monkeypatch):
    encoded = []
    monkeypatch.setattr(remote, "embeds", lambda tokens, dtype: encoded.append((tokens, dtype)) or tokens.encode())
    llm = RemoteLLM(VISION_ONLY, LLMOptions("http://host/v1", "m", dtype="bfloat16"))
    for number in (*range(8), *range(8)):
        assert llm.clip_data(ClipTokens(f"clip {number}", f"{number}")) == base64.b64encode(b"%d" % number).decode()
    assert encoded == [(f"{number}", "bfloat16") for number in range(8)]
    for number in (8, 1, 7, 8, 0, 2):  # 8 takes the place of 0, then 0 that of 1
        llm.clip_data(ClipTokens(f"clip {number}", f"{number}"))
    assert [int(tokens) for tokens, _ in encoded[8:]] == [8, 0]
    llm.close()
    llm.clip_data(ClipTokens("clip 2", "2"))
    assert len(encoded) == 11


@pytest.mark.parametrize(("theirs", "ours"), [("stop", "stop"), ("length", "length"), ("content_filter", "stop")])
def test_why_an_answer_ended_is_one_of_two_reasons(theirs, ours):
    pieces, chat = pieces_of(Events(choice("x", theirs), choice(None, None)))
    assert [piece.finish for piece in pieces] == [None, ours]
    assert (chat.usage.prompt_tokens, chat.usage.cached_tokens) == (0, 0)


@pytest.mark.parametrize(("error", "message"), [({"message": "out of\n memory"}, " out of memory$"), ("x" * 600, f" {'x' * 500}$")])
def test_an_error_inside_an_answer_is_the_remote_s(error, message):
    with pytest.raises(RemoteError, match=message):
        pieces_of(Events(choice("x"), {"error": error}))


def test_the_remote_stops_when_our_client_goes_away(through):
    with remote_llm(stays=True) as (url, remote):
        _, server = through(url)
        body = {"model": NAME, "messages": question("what color is the square ?"), "max_tokens": 400, "stream": True}
        remote.answer = lambda body: (5, [12] * 400)
        with httpx.stream("POST", f"{server.url}/v1/chat/completions", json=body) as response:
            next(response.iter_lines())
        assert remote.reader_left.wait(10)
        server.until_idle()


def test_a_deadline_ends_what_the_remote_does(through, monkeypatch):
    with remote_llm(stays=True) as (url, there):
        client, _ = through(url)
        there.answer = lambda body: (5, [12] * 400)
        late = SimpleNamespace(monotonic=lambda: time.monotonic() + 1e6 * len(there.requests), perf_counter=time.perf_counter)
        monkeypatch.setattr(remote, "time", late)  # the deadline passes once the remote has begun
        with pytest.raises(openai.InternalServerError) as raised:
            client.chat.completions.create(model=NAME, messages=question("what ?"))
        assert raised.value.status_code == 504 and there.reader_left.wait(10)


def test_urls_and_dtypes_that_make_no_sense_are_refused():
    for bad in (("host:8000", "m"), ("http://host/v1", None), ("http://host/v1", "")):
        with pytest.raises(UsageError, match=bad[0]):
            LLMOptions(*bad)
    with pytest.raises(UsageError, match="float8"):
        LLMOptions("http://host/v1", "m", dtype="float8")


def test_the_command_line_asks_a_remote_too(bundle_path, capsys):
    from runtime.__main__ import main

    with remote_llm() as (url, remote):
        ask = ["run", str(bundle_path), str(CLIPS / "shapes.mp4"), "which shape appears last ?", "--llm", url]
        assert main([*ask, "--llm-model", "tiny", "--json"]) == 0
        answer = json.loads(capsys.readouterr().out)
        assert (answer["text"], answer["visual_tokens"], answer["prompt_tokens"]) == ("cross", 257, 267)
        assert remote.requests[0]["model"] == "tiny"
        assert main(ask) == 2 and "--llm-model" in capsys.readouterr().err
        remote.faults["status"] = [400]
        assert main([*ask, "--llm-model", "tiny"]) == 2
        assert "refused with 400" in capsys.readouterr().err
