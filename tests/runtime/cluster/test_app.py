"""The server on Ray Serve: the same answers from several replicas, and none lost when one is killed under load."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import socket
import time
from concurrent.futures import ThreadPoolExecutor

import openai
import psutil
import pytest
from http_server import NAME, data_url, question

from export.demo import CLIPS
from runtime.cluster.app import ClusterOptions
from runtime.errors import UsageError

ASKED = [("shapes.mp4", "which shape appears last ?", "cross"), ("flash.mp4", "what color is the flash ?", "white")]


def test_arguments_of_a_serve_config_may_be_text():
    options = ClusterOptions.of({"bundle": "/b", "replicas": "3", "cpus": "0.5", "api_key": "k"})
    assert (options.replicas, options.cpus, options.api_key) == (3, 0.5, "k")
    for bad, message in (({"bundle": "/b", "replica": 2}, 'did you mean "replicas"'), ({"bundle": "/b", "replicas": "x"}, "expected a number"), ({}, "no bundle")):  # fmt: skip
        with pytest.raises(UsageError, match=message):
            ClusterOptions.of(bad)


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
    while len(_replicas()) < 2 and time.monotonic() < end:
        time.sleep(0.5)
    assert len(_replicas()) == 2 and set(_replicas()) != set(before)
