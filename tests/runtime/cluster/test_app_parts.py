"""The Ray Serve application's parts: what Ray is asked for, how a replica is made and what it answers, without a cluster."""

from __future__ import annotations

import asyncio
import importlib.util
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from refusal import naming

from runtime.cluster import app
from runtime.cluster.app import ClusterOptions
from runtime.core.errors import UsageError, UserError
from runtime.core.options import options_from_values
from runtime.engine import EngineOptions
from runtime.llm.remote import LLMOptions
from runtime.server.options import ServerOptions

SERVER = ServerOptions(host="0.0.0.0", engine=EngineOptions(threads=1))


def test_what_is_left_out_of_a_serve_config():
    defaults = ClusterOptions("/b", replicas=1, max_replicas=0, target=4.0, fronts=1, cpus=1.0, gpus=0.0, server=SERVER)
    assert options_from_values(ClusterOptions, {"bundle": "/b"}) == defaults
    texts = "replicas=1 max_replicas=0 target=4 fronts=1 cpus=1 gpus=0 backend=auto device=auto threads=1 batch=8 queue=32 deadline=300 llm=local"
    assert options_from_values(ClusterOptions, {"bundle": "/b"} | dict(text.split("=") for text in texts.split())) == defaults
    for bad in ({}, {"bundle": ""}, {"bundle": None}):
        with pytest.raises(UsageError, match="bundle"):
            options_from_values(ClusterOptions, bad)
    with pytest.raises(UsageError, match="replicas"):
        options_from_values(ClusterOptions, {"bundle": "/b", "replicas": None})


@pytest.fixture
def deployed(monkeypatch):
    """Options of the replica's and of the front's deployment, and what they are bound to."""
    made = []

    def deployment(kind, **options):
        made.append((kind, options))
        return SimpleNamespace(bind=lambda *bound: (options["name"], bound))

    monkeypatch.setattr(app, "serve", SimpleNamespace(deployment=deployment))
    return made


def test_ray_is_asked_for_replicas_behind_a_front(deployed):
    name, (replica, largest) = app.build({"bundle": "/b"})
    assert (name, largest) == ("front", ServerOptions().max_body)
    assert replica == ("replica", (ClusterOptions("/b"),))
    (kind, options), (front, front_options) = deployed
    assert (kind, front) == (app.Replica, app.Front)
    assert options == {
        "name": "replica", "max_ongoing_requests": 40, "health_check_period_s": 5, "graceful_shutdown_timeout_s": 300.0,
        "ray_actor_options": {"num_cpus": 1.0, "num_gpus": 0.0}, "num_replicas": 1,
    }  # fmt: skip
    assert front_options == {
        "name": "front", "num_replicas": 1, "max_ongoing_requests": 10_000, "ray_actor_options": {"num_cpus": 0.1},
    }  # fmt: skip


@pytest.mark.parametrize(("most", "scales"), [(0, False), (2, False), (3, True)])
def test_ray_scales_where_there_may_be_more_replicas_than_there_must(deployed, most, scales):
    numbers = {"target": 1.5, "fronts": 3, "cpus": 2, "gpus": 0.5, "batch": 4, "queue": 5, "deadline": 60}
    app.build({"bundle": "/b", "replicas": 2, "max_replicas": most} | numbers)
    (_, options), (_, front) = deployed
    scaling = {"min_replicas": 2, "max_replicas": most, "target_ongoing_requests": 1.5}
    assert options.get("autoscaling_config") == (scaling if scales else None)
    assert options.get("num_replicas") == (None if scales else 2)
    assert (options["max_ongoing_requests"], options["graceful_shutdown_timeout_s"], front["num_replicas"]) == (9, 60, 3)
    assert options["ray_actor_options"] == {"num_cpus": 2, "num_gpus": 0.5}


def test_a_replica_is_a_server_with_its_share_of_the_options(monkeypatch):
    opened = []
    monkeypatch.setattr("runtime.server.models.Models.open", lambda *asked: opened.append(asked) or "models")
    monkeypatch.setattr("runtime.server.state.State", lambda *made: ("state", *made))
    monkeypatch.setattr("runtime.server.app.create_app", lambda state: ("app", state))
    words = {"backend": "onnx", "device": "cpu", "threads": 3, "batch": 4, "queue": 5, "deadline": 60, "api_key": "k"}
    words |= {"bundle": "/a,/b", "llm": "http://h/v1", "llm_model": "m", "max_media_mib": "7"}
    replica = app.Replica(options_from_values(ClusterOptions, words))
    served = ServerOptions(
        host="0.0.0.0", api_key="k", batch=4, queue=5, deadline=60.0, llm=LLMOptions("http://h/v1", "m"), max_media=7 << 20,
        backend="onnx", engine=EngineOptions("cpu", 3),
    )  # fmt: skip
    assert opened == [([Path("/a"), Path("/b")], served)]
    assert replica.state == ("state", "models", served)
    assert replica.app == ("app", replica.state)


def test_a_replica_without_a_reason_is_healthy():
    replica = _replica(None)
    replica.state = SimpleNamespace(not_ready=lambda: None)
    replica.check_health()
    replica.state = SimpleNamespace(not_ready=lambda: "draining")
    with pytest.raises(RuntimeError, match=r"^draining$"):
        replica.check_health()


def _replica(application) -> app.Replica:
    replica = app.Replica.__new__(app.Replica)
    replica.app = application
    return replica


async def _all(messages) -> list:
    return [message async for message in messages]


def test_a_replica_gives_its_app_the_request_and_passes_on_what_the_app_sends():
    asked = []

    async def application(scope, receive, send):
        asked.extend([scope, await receive()])
        await send({"type": "http.response.start"})
        await send({"type": "http.response.body"})

    messages = asyncio.run(_all(_replica(application).respond({"path": "/v1"}, b"body")))
    assert messages == [{"type": "http.response.start"}, {"type": "http.response.body"}]
    assert asked == [{"path": "/v1"}, {"type": "http.request", "body": b"body", "more_body": False}]


def test_the_error_of_an_app_is_the_callers_after_what_was_sent():
    async def application(scope, receive, send):
        await send("first")
        raise KeyError("broken")

    async def ask():
        messages = _replica(application).respond({}, b"")
        assert await anext(messages) == "first"
        with pytest.raises(KeyError, match="broken"):
            await anext(messages)

    asyncio.run(ask())


def test_the_client_is_there_until_nobody_reads_any_more():
    """Only then may the app see the end of the request: it stops an answer that nobody waits for."""
    ended = []

    async def application(scope, receive, send):
        await receive()
        await send("first")
        try:
            await receive()
            ended.append("told that the client left")
        except asyncio.CancelledError:
            ended.append("cancelled")
            raise

    async def ask():
        messages = _replica(application).respond({}, b"")
        assert await anext(messages) == "first"
        for _ in range(5):
            await asyncio.sleep(0)
        assert ended == []
        await messages.aclose()
        for _ in range(5):
            await asyncio.sleep(0)

    asyncio.run(ask())
    assert ended == ["cancelled"]


def test_an_app_is_not_far_ahead_of_who_reads():
    sent = []

    async def application(scope, receive, send):
        for number in range(100):
            await send(number)
            sent.append(number)

    async def ask():
        messages = _replica(application).respond({}, b"")
        await anext(messages)
        for _ in range(50):
            await asyncio.sleep(0)
        assert len(sent) <= 20
        await messages.aclose()

    asyncio.run(ask())


def test_a_scope_travels_as_plain_values_at_the_root_of_the_app():
    kept = {"type": "http", "http_version": "1.1", "method": "POST", "scheme": "http", "query_string": b"a=1"}
    kept |= {"headers": [(b"host", b"h")], "client": ("c", 1), "server": ("s", 2)}
    asgi = {"asgi": {"version": "3.0"}, "root_path": ""}
    got = app._plain(kept | {"path": "/video/v1/m\u00e9", "root_path": "/video", "app": object(), "state": {}})
    assert got == kept | asgi | {"path": "/v1/m\u00e9", "raw_path": "/v1/m\u00e9".encode()}
    assert app._plain({"type": "http", "path": "/video", "root_path": "/video"}) == {"type": "http"} | asgi | {
        "path": "/",
        "raw_path": b"/",
    }
    assert app._plain({"path": "/v1"})["path"] == "/v1"


def test_without_ray_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    loading = importlib.util.spec_from_file_location("a_second_one", app.__file__)
    module = importlib.util.module_from_spec(loading)
    monkeypatch.setitem(sys.modules, "a_second_one", module)
    with pytest.raises(UserError, match=naming('"ray"', "st-gridpool[ray]")):
        loading.loader.exec_module(module)
