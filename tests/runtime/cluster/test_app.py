"""The server on Ray Serve: the same answers from several replicas, and none lost when one is killed under load."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import signal
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import httpx
import openai
import psutil
import pytest
from http_server import NAME, data_url, question
from ray.exceptions import RayActorError
from starlette.requests import Request

from export.demo import CLIPS
from runtime.cluster import app
from runtime.cluster.app import ClusterOptions
from runtime.core.errors import UsageError
from runtime.core.options import options_from_values

ASKED = [("shapes.mp4", "which shape appears last ?", "cross"), ("flash.mp4", "what color is the flash ?", "white")]


def test_arguments_of_a_serve_config_may_be_text():
    options = options_from_values(ClusterOptions, {"bundle": "/b", "replicas": "3", "cpus": "0.5", "api_key": "k", "bf16": "true"})
    assert (options.replicas, options.cpus, options.server.api_key, options.server.engine.bf16) == (3, 0.5, "k", True)
    for bad, named in (
        ({"replica": 2}, "replicas"),
        ({"replicas": "x"}, "replicas"),
        ({"port": 1}, "port"),
        ({"bundle": ""}, "bundle"),
    ):
        with pytest.raises(UsageError, match=named):
            options_from_values(ClusterOptions, {"bundle": "/b"} | bad)


class Replicas:
    """What a front knows of its replicas: each request is answered by the next of `runs`, ASGI messages with an error to raise."""

    def __init__(self, *runs: list):
        self.runs, self.asked = list(runs), []
        self.respond = SimpleNamespace(remote=self._respond)

    def options(self, stream: bool) -> Replicas:
        assert stream
        return self

    async def _respond(self, scope, body):
        self.asked.append((scope["method"], scope["path"], body))
        for message in self.runs.pop(0):
            if isinstance(message, Exception):
                raise message
            yield message


def _started(kind: bytes) -> dict:
    headers = [(b"content-type", kind), (b"Content-Length", b"9"), (b"x-gridpool-spec", b"nsp")]
    return {"type": "http.response.start", "status": 200, "headers": headers}


def _part(body: bytes) -> dict:
    return {"type": "http.response.body", "body": body, "more_body": True}


@pytest.fixture(autouse=True)
def no_pause(monkeypatch):
    monkeypatch.setattr(app, "_PAUSE", 0)


def _through_a_front(replicas: Replicas, body: bytes = b"{}", root: str = "") -> httpx.Response:
    front = app.Front(replicas, max_body=100)

    async def answer(scope, receive, send):
        await (await front(Request(scope, receive)))(scope, receive, send)

    async def ask() -> httpx.Response:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app=answer, root_path=root), base_url="http://front") as client:
            return await client.post(f"{root}/v1/video/tokens", content=body)

    return asyncio.run(ask())


def test_an_answer_that_its_replica_did_not_finish_is_asked_of_another_one():
    whole = _started(b"application/json")
    replicas = Replicas([whole, _part(b"lost"), RayActorError()], [whole, _part(b"ki"), _part(b"ng")])
    got = _through_a_front(replicas, b"the request")
    assert (got.status_code, got.content, got.headers["x-gridpool-spec"]) == (200, b"king", "nsp")
    assert (got.headers["content-type"], got.headers["content-length"]) == ("application/json", "4")
    assert replicas.asked == [("POST", "/v1/video/tokens", b"the request")] * 2


def test_where_every_replica_dies_the_client_is_told_when_to_come_back(monkeypatch):
    monkeypatch.setattr(app, "TRIES", 2)
    replicas = Replicas([RayActorError()], [RayActorError()])
    got = _through_a_front(replicas)
    assert (got.status_code, got.headers["retry-after"], len(replicas.asked)) == (503, "5", 2)
    assert got.json()["error"]["code"] == "replica_died"


def test_a_stream_that_has_begun_ends_with_an_error_event_where_its_replica_dies():
    replicas = Replicas([_started(b"text/event-stream; charset=utf-8"), _part(b"data: one\n\n"), RayActorError()])
    got = _through_a_front(replicas)
    first, error, *rest = got.text.split("\n\n")
    assert (got.status_code, first, rest) == (200, "data: one", ["data: [DONE]", ""])
    assert json.loads(error.removeprefix("data: "))["error"]["code"] == "replica_died"
    assert len(replicas.asked) == 1


def test_what_the_application_stands_under_is_no_part_of_a_replicas_path():
    replicas = Replicas([_started(b"application/json"), _part(b"ok")])
    assert _through_a_front(replicas, root="/video").content == b"ok"
    assert replicas.asked == [("POST", "/v1/video/tokens", b"{}")]


def test_a_request_of_just_the_limit_is_passed_on_and_parts_without_a_body_are_none():
    bare = {"type": "http.response.start", "status": 204, "headers": []}
    nothing = {"type": "http.response.body", "more_body": False}
    replicas = Replicas([bare, nothing], [_started(b"text/event-stream"), _part(b""), _part(b"data: one\n\n"), nothing])
    got = _through_a_front(replicas, bytes(100))
    assert (got.status_code, got.content) == (204, b"")
    assert _through_a_front(replicas).text == "data: one\n\n"


def test_a_request_is_tried_four_times():
    replicas = Replicas(*([RayActorError()] for _ in range(5)))
    got = _through_a_front(replicas)
    assert (got.status_code, got.headers["content-type"], len(replicas.asked)) == (503, "application/json", 4)
    error = got.json()["error"]
    assert (error["type"], error["code"], error["param"]) == ("server_error", "replica_died", None) and error["message"]


def test_a_request_over_the_limit_reaches_no_replica():
    replicas = Replicas()
    got = _through_a_front(replicas, bytes(101))
    error = got.json()["error"]
    assert (got.status_code, error["type"], error["code"]) == (413, "invalid_request_error", "request_too_large")
    assert replicas.asked == []


@pytest.fixture(scope="module")
def cluster(bundle_path):
    """A client of two replicas on this machine."""
    os.environ["RAY_AUTH_MODE"] = "disabled"
    from ray import serve

    from runtime.cluster.app import build
    from runtime.cluster.ray_session import session

    port = _free_port()
    with session(None, 6):
        serve.start(http_options={"host": "127.0.0.1", "port": port})
        serve.run(build({"bundle": str(bundle_path), "replicas": 2, "backend": "onnx", "cpus": 0.5}), name="video")
        yield openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none", max_retries=0, timeout=120)
        serve.shutdown()


def _free_port() -> int:
    """Above those that Ray gives its workers, below those that the system hands out: Ray's own processes take neither before the server."""
    for port in random.sample(range(20000, 32000), 100):
        with socket.socket() as free, contextlib.suppress(OSError):
            free.bind(("127.0.0.1", port))
            return port
    raise RuntimeError("no free port of a hundred")


def _replicas() -> list[int]:
    return [p.pid for p in psutil.Process().children(recursive=True) if "ServeReplica:video:replica" in " ".join(p.cmdline())]


def _ask(client: openai.OpenAI, number: int) -> tuple[str, str]:
    clip, text, expected = ASKED[number % 2]
    got = client.chat.completions.create(model=NAME, messages=question(text, data_url(CLIPS / clip)))
    return got.choices[0].message.content, expected


@pytest.mark.slow
def test_replicas_answer_as_one_server_does(cluster):
    assert [model.id for model in cluster.models.list()] == [NAME]
    assert all(got == expected for got, expected in (_ask(cluster, n) for n in range(6)))
    chunks = list(cluster.chat.completions.create(model=NAME, messages=question("what is it ?"), stream=True))
    assert chunks[-1].choices[0].finish_reason
    with pytest.raises(openai.NotFoundError):
        cluster.models.retrieve("none")
    with pytest.raises(openai.UnprocessableEntityError):
        cluster.chat.completions.create(model=NAME, messages=question("x", "data:video/mp4;base64,QUJD"))


@pytest.mark.slow
def test_no_accepted_request_is_lost_when_a_replica_is_killed(cluster):
    before = _replicas()
    assert len(before) == 2
    with ThreadPoolExecutor(6) as pool:
        answers = [pool.submit(_ask, cluster, number) for number in range(60)]
        while sum(answer.done() for answer in answers) < 10:
            time.sleep(0.01)
        os.kill(before[0], signal.SIGKILL)
        while sum(answer.done() for answer in answers) < 40:
            time.sleep(0.01)
        results = [answer.result() for answer in answers]
    assert all(got == expected for got, expected in results) and len(results) == 60
    end = time.monotonic() + 60
    while len(now := set(_replicas()) - {before[0]}) < 2:
        assert time.monotonic() < end, "no other replica was started"
        time.sleep(0.5)
    assert len(now) == 2 and before[1] in now
