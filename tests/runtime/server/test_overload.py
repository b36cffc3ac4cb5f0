"""Limits of a running server: the key, sizes, the queue, deadlines, and clients that disconnect."""

from __future__ import annotations

import threading
import time
from types import SimpleNamespace

import httpx
import openai
import pytest
from http_server import NAME, data_url, question, until
from raw_http import Raw, post

from export.demo import CLIPS

SHORT = question("what is it ?")


class Steps(list):
    """The slots of each decode step so far; `before` is called before each."""

    def before(self) -> None: ...


@pytest.fixture
def steps(models, monkeypatch):
    """Answers never end by themselves."""
    scheduler, steps = models[NAME].llm.scheduler, Steps()
    until(lambda: scheduler.busy()["running"] == scheduler.busy()["waiting"] == 0)  # what another test has left
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
    steps.before = lambda: refused.wait(60)
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
        until(lambda: server.state.admission.accepted + len(codes) == 10)
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
    steps.before = lambda: len(steps) < 20 or gone.wait(60)
    body = {"model": NAME, "messages": SHORT, "max_tokens": 1200, "stream": stream}
    try:
        with Raw(server) as client:
            client.send(post(body))
            until(lambda: len(steps) == 20)
        until(lambda: server.state.admission.accepted == 0)
    finally:
        gone.set()
    until(lambda: scheduler.busy()["running"] == 0)
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
        assert gone.wait(60)
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
        until(lambda: frames)
    until(lambda: server.state.admission.accepted == 0)
    gone.set()
    assert ended.wait(60)
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
        assert httpx.get(f"{server.url}/health", timeout=60).status_code == 200
    finally:
        answered.set()
        ask.join()


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
