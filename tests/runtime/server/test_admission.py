"""Limits of the server: the key, sizes, the queue, deadlines, clients that go away, the drain."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import threading
import time
from types import SimpleNamespace

import httpx
import openai
import pytest
from http_server import NAME, data_url, question
from raw_http import Raw, post
from refusal import naming

from export.demo import CLIPS
from runtime.server.admission import Admission
from runtime.server.errors import ApiError
from runtime.server.options import ServerOptions

SHORT = question("what is it ?")


class Steps(list):
    """The slots of each decode step so far; `before` is called before each."""

    def before(self) -> None: ...


@pytest.fixture
def steps(models, monkeypatch):
    """Answers never end by themselves."""
    scheduler = models[NAME].llm.scheduler
    steps = Steps()
    step = scheduler.decoder.step

    def watched(slots, embeddings):
        steps.append(list(slots))
        steps.before()
        return step(slots, embeddings)

    monkeypatch.setattr(scheduler.decoder, "step", watched)
    monkeypatch.setattr(scheduler.prompt, "eos", frozenset())
    return steps


def test_the_key_is_asked_for(start):
    server = start(api_key="right")
    for key in ("wrong", "righ", "rightt", "right\u00e9"):
        with pytest.raises((openai.AuthenticationError, UnicodeEncodeError)):
            server.client(key).models.list()
    assert [model.id for model in server.client("right").models.list()] == [NAME]
    assert httpx.get(f"{server.url}/v1/models").headers["www-authenticate"] == "Bearer"
    assert httpx.get(f"{server.url}/health").status_code == 200


def test_a_body_over_the_limit_is_refused_with_and_without_a_length(start):
    server = start(max_body=10_000)
    with pytest.raises(openai.APIStatusError) as raised:
        server.client().chat.completions.create(model=NAME, messages=question("x" * 20_000))
    assert raised.value.status_code == 413 and raised.value.code == "request_too_large"

    def chunks():
        for _ in range(40):
            yield b"x" * 1000

    got = httpx.post(f"{server.url}/v1/chat/completions", content=chunks(), headers={"content-type": "application/json"})
    assert got.status_code == 413
    assert server.state.admission.accepted == 0


def test_a_clip_over_the_limit_is_refused(start, video):
    with pytest.raises(openai.APIStatusError) as raised:
        start(max_media=1000).client().chat.completions.create(model=NAME, messages=question("x", video))
    assert raised.value.status_code == 413 and raised.value.code == "media_too_large"


def test_more_requests_than_the_queue_holds_are_told_when_to_come_back(start, steps):
    server, refused = start(batch=4, queue=2), threading.Event()
    steps.before = lambda: refused.wait(30)
    client, codes = server.client(), []

    def ask():
        try:
            client.chat.completions.create(model=NAME, messages=SHORT, max_tokens=40)
            codes.append(200)
        except openai.RateLimitError as error:
            assert int(error.response.headers["retry-after"]) >= 1 and error.code == "queue_full"
            codes.append(429)

    threads = [threading.Thread(target=ask) for _ in range(10)]
    for thread in threads:
        thread.start()
    try:
        _until(lambda: server.state.admission.accepted + len(codes) == 10)
    finally:
        refused.set()
        for thread in threads:
            thread.join()
    assert sorted(codes) == [200] * 6 + [429] * 4
    assert client.chat.completions.create(model=NAME, messages=SHORT, max_tokens=1)


def test_a_deadline_ends_a_request(start, steps, monkeypatch):
    late = 0.0
    monkeypatch.setattr("runtime.llm.scheduler.time", SimpleNamespace(monotonic=lambda: time.monotonic() + late))

    def before():
        nonlocal late
        late = 300.0 if len(steps) >= 20 else 0.0

    steps.before = before
    client = start(deadline=300).client()
    with pytest.raises(openai.InternalServerError) as raised:
        client.chat.completions.create(model=NAME, messages=SHORT, max_tokens=1000)
    assert raised.value.status_code == 504 and raised.value.code == "deadline_exceeded" and len(steps) == 20
    steps.clear()
    late = 0.0
    with pytest.raises(openai.APIError, match="deadline"):  # an event of the stream that had begun
        list(client.chat.completions.create(model=NAME, messages=SHORT, max_tokens=1000, stream=True))
    assert len(steps) == 20


@pytest.mark.parametrize("stream", [True, False])
def test_decoding_stops_when_the_client_goes_away(start, steps, models, stream):
    server, gone = start(), threading.Event()
    scheduler = models[NAME].llm.scheduler
    steps.before = lambda: len(steps) < 20 or gone.wait(30)
    body = {"model": NAME, "messages": SHORT, "max_tokens": 1200, "stream": stream}
    try:
        with Raw(server) as client:
            client.send(post(body))
            _until(lambda: len(steps) == 20)
        _until(lambda: server.state.admission.accepted == 0)
    finally:
        gone.set()
    _until(lambda: scheduler.busy()["running"] == 0)
    before = len(steps)
    assert before == 20
    server.client().chat.completions.create(model=NAME, messages=SHORT, max_tokens=5)
    assert {len(slots) for slots in steps[before:]} == {1}  # the next answer has the batch to itself


def test_encoding_stops_when_every_client_that_asked_has_gone(start, served, monkeypatch):
    server, frames = start(), []
    gone, ended = threading.Event(), threading.Event()
    resize, decode = served.encoder.vision.preprocessor.resize, served.encoder.decode

    def until_gone(frame):
        frames.append(1)
        assert gone.wait(30)
        return resize(frame)

    def decoding(*arguments):
        try:
            return decode(*arguments)
        finally:
            ended.set()

    monkeypatch.setattr(served.encoder.vision.preprocessor, "resize", until_gone)
    monkeypatch.setattr(served.encoder, "decode", decoding)
    with Raw(server) as client:
        client.send(post({"model": NAME, "messages": question("x", data_url(CLIPS / "flash.mp4"))}))
        _until(lambda: frames)
    _until(lambda: server.state.admission.accepted == 0)
    gone.set()
    assert ended.wait(30)
    assert len(frames) == 1 and len(server.state.clips) == 0


def test_the_event_loop_answers_while_a_clip_is_encoded(start, served, monkeypatch, video):
    server = start()
    encoding, answered = threading.Event(), threading.Event()
    resize = served.encoder.vision.preprocessor.resize

    def until_answered(frame):
        encoding.set()
        assert answered.wait(60)
        return resize(frame)

    monkeypatch.setattr(served.encoder.vision.preprocessor, "resize", until_answered)
    ask = threading.Thread(target=lambda: server.client().chat.completions.create(model=NAME, messages=question("x", video)))
    ask.start()
    try:
        assert encoding.wait(60)
        assert httpx.get(f"{server.url}/health", timeout=30).status_code == 200
    finally:
        answered.set()
        ask.join()


def test_a_draining_server_takes_no_more(start):
    server = start()
    ready = httpx.get(f"{server.url}/health/ready")
    assert (ready.status_code, ready.json()) == (200, {"status": "ready"})
    server.state.admission.draining = True
    with pytest.raises(openai.InternalServerError) as raised:
        server.client().chat.completions.create(model=NAME, messages=SHORT)
    assert raised.value.status_code == 503 and raised.value.code == "draining"
    assert httpx.get(f"{server.url}/health/ready").status_code == 503
    assert httpx.get(f"{server.url}/health").status_code == 200


def test_sigterm_finishes_what_was_accepted(alone, bundle_path):
    process, url, log = alone
    body = {"model": bundle_path.name, "messages": SHORT, "max_tokens": 400, "stream": True, "temperature": 2, "seed": 3}
    with httpx.stream("POST", f"{url}/v1/chat/completions", json=body, timeout=60) as response:
        lines = response.iter_lines()
        next(lines)
        os.kill(process.pid, signal.SIGTERM)
        rest = [line for line in lines if line]
    assert rest[-1] == "data: [DONE]" and json.loads(rest[-2].removeprefix("data: "))["choices"][0]["finish_reason"]
    assert process.wait(20) == 0
    assert log.read_text().strip().endswith("drained")


def test_a_port_that_is_taken_is_said_before_anything_is_loaded(server, bundle_path, cli):
    port = server.url.rpartition(":")[2]
    done = cli("runtime", "serve", bundle_path, "--port", port)
    assert done.returncode == 2 and done.stderr.startswith(f"error: can't listen on 127.0.0.1:{port}")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--batch", "0"], "--batch"),
        (["--deadline", "-1"], "--deadline"),
        (["--llm", "http://127.0.0.1:1/v1"], "needs --llm-model"),
        (["--api-key", " "], "empty"),
        (["--allow-media-path", "/nowhere"], "is not a directory"),
        (["--queu", "3"], "no option --queu"),
    ],
)
def test_bad_options_are_one_line(bundle_path, capsys, options, message):
    from runtime.__main__ import main

    assert main(["serve", str(bundle_path), *options]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and message in error and error.count("\n") == 1


def _until(condition, seconds: float = 10) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.02)


class TestPlaces:
    """Who comes in, without a server; `clock` is the time, which a test sets."""

    @pytest.fixture
    def clock(self, monkeypatch) -> list[float]:
        now = [1000.0]
        monkeypatch.setattr("runtime.server.admission.time", SimpleNamespace(monotonic=lambda: now[0]))
        return now

    @staticmethod
    def refused(call) -> tuple[int, str, str, dict]:
        with pytest.raises(ApiError) as raised:
            call()
        return raised.value.status, raised.value.code, str(raised.value), raised.value.headers

    def test_as_many_as_are_answered_and_may_wait(self, clock):
        admission = Admission(ServerOptions(batch=2, queue=1, deadline=7))
        with admission.request() as deadline, admission.request():
            assert deadline == 1007 and admission.accepted == 2
            admission.check()
            with admission.request():
                said = "3 requests are being worked on, the most that this server takes; try again in 1 s"
                assert self.refused(admission.check) == (429, "queue_full", said, {"Retry-After": "1"})
                assert self.refused(lambda: admission.request().__enter__())[0] == 429 and admission.accepted == 3
                admission.check_open()
            admission.check()
        assert admission.accepted == 0
        with pytest.raises(ValueError, match="an error"), admission.request():
            raise ValueError("an error")
        assert admission.accepted == 0

    @pytest.mark.parametrize(
        ("batch", "took", "wait"),
        [
            (1, [], 1),
            (1, [31], 4),  # 1 s before the first, and a tenth of the way from there to 31
            (2, [31], 2),
            (1, [31, 24], 6),
            (1, [1, 1], 1),
            (1, [0, 0, 0], 1),
            (1, [581], 59),
            (1, [601], 60),  # 61
            (1, [5000], 60),
        ],
    )
    def test_when_to_come_back_follows_from_how_long_requests_took(self, clock, batch, took, wait):
        admission = Admission(ServerOptions(batch=batch, queue=0))
        for seconds in took:
            with admission.request():
                clock[0] += seconds
        with contextlib.ExitStack() as held:
            for _ in range(batch):
                held.enter_context(admission.request())
            assert self.refused(admission.check)[3] == {"Retry-After": str(wait)}

    def test_nobody_comes_in_once_it_drains(self, clock):
        admission = Admission(ServerOptions(batch=1, queue=0))
        closed = (503, "draining", "the server is shutting down; ask another one", {"Retry-After": "5"})
        assert not admission.draining
        with admission.request():
            admission.drain()
            assert admission.draining
            for call in (admission.check, admission.check_open, lambda: asyncio.run(admission.until_draining())):
                assert self.refused(call) == closed
        assert admission.accepted == 0 and self.refused(lambda: admission.request().__enter__()) == closed

    def test_what_is_not_answered_ends_with_it(self, clock):
        async def waited() -> list[bool]:
            admission = Admission(ServerOptions())
            waiting = [asyncio.ensure_future(one()) for one in (admission.until_draining, admission.until_ended)]
            done = []
            for act in (lambda: None, admission.drain, admission.end):
                act()
                await asyncio.sleep(0)
                await asyncio.sleep(0)
                done.append([one.done() for one in waiting])
            error = waiting[1].exception()
            assert (error.status, error.code, error.headers) == (503, "draining", {})
            assert naming("server").match(str(error))
            assert isinstance(waiting[0].exception(), ApiError)
            return done

        assert asyncio.run(waited()) == [[False, False], [True, False], [True, True]]
