"""The routes that need no model, and what every response says of itself and of what went wrong."""

from __future__ import annotations

import asyncio
import logging
import re
from contextlib import AsyncExitStack
from types import SimpleNamespace

import pytest
from fastapi.testclient import TestClient
from refusal import naming

from runtime.server.app import EventStream, _until_hung_up, create_app
from runtime.server.errors import ApiError
from runtime.server.models import Models, ServedModel
from runtime.server.options import ServerOptions
from runtime.server.state import State


class LLM:
    """healthy: as in runtime.llm.chat; closed: how often."""

    def __init__(self) -> None:
        self.healthy, self.closed, self.shared = True, 0, self

    def close(self) -> None:
        self.closed += 1


@pytest.fixture
def llm() -> LLM:
    return LLM()


@pytest.fixture
def state(llm) -> State:
    return State(Models([ServedModel("one", None, None, llm)]), ServerOptions())


@pytest.fixture
def client(state) -> TestClient:
    return TestClient(create_app(state), base_url="http://localhost", raise_server_exceptions=False)


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/", "text/html; charset=utf-8"),
        ("/page.js", "text/javascript; charset=utf-8"),
        ("/page.css", "text/css; charset=utf-8"),
    ],
)
def test_the_page_is_asked_for_again_and_may_load_nothing_from_elsewhere(client, path, kind):
    got = client.get(path)
    assert (got.status_code, got.headers["content-type"], got.headers["cache-control"]) == (200, kind, "no-cache")
    assert got.headers["content-security-policy"].startswith("default-src 'none'; script-src 'self';")
    assert got.headers["x-content-type-options"] == "nosniff"


def test_prometheus_is_told_the_format_of_the_metrics(state, client, monkeypatch):
    monkeypatch.setattr(state.metrics, "text", lambda: b"a 1\n")
    got = client.get("/metrics")
    assert (got.headers["content-type"], got.content) == ("text/plain; version=0.0.4; charset=utf-8", b"a 1\n")
    assert "content-security-policy" not in got.headers


def test_a_server_is_ready_until_it_drains_or_its_llm_fails(state, client, llm):
    def ready() -> tuple[int, dict]:
        got = client.get("/health/ready")
        return got.status_code, got.json()

    assert ready() == (200, {"status": "ready"})
    llm.healthy = False
    assert ready() == (503, {"status": "the LLM does not work"})
    state.admission.draining = True
    assert ready() == (503, {"status": "draining"})
    assert client.get("/health").json() == {"status": "ok"}


def test_models_are_closed_once_the_app_has_ended(state, llm):
    with TestClient(create_app(state)):
        assert llm.closed == 0
    assert llm.closed == 1


@pytest.mark.parametrize(
    ("method", "path", "status", "kind", "named"),
    [
        ("GET", "/v1/embeddings", 404, "not_found_error", ["/v1/embeddings"]),
        ("GET", f"/{'a' * 300}", 404, "not_found_error", [f"/{'a' * 199}"]),
        ("DELETE", "/v1/models", 405, "invalid_request_error", ["/v1/models", "DELETE"]),
        ("GET", "/docs", 404, "not_found_error", ["/docs"]),
        ("GET", "/redoc", 404, "not_found_error", ["/redoc"]),
        ("GET", "/openapi.json", 404, "not_found_error", ["/openapi.json"]),
        ("GET", "/health/", 404, "not_found_error", ["/health/"]),
        ("GET", "/v1/models/oen", 404, "not_found_error", ['"oen"', '"one"']),
    ],
    ids=lambda value: str(value)[:20],
)
def test_what_does_not_exist_is_refused_in_one_form(client, method, path, status, kind, named):
    got = client.request(method, path, follow_redirects=False)
    error = got.json()["error"]
    assert (got.status_code, error["type"]) == (status, kind) and naming(*named).match(error["message"])
    assert ("allow" in got.headers) == (status == 405)


def test_a_failure_inside_is_logged_under_the_number_that_the_answer_has(client, caplog):
    with caplog.at_level(logging.ERROR, "runtime.server"):
        got = client.get("/v1/models")  # this model has no bundle
    number = re.search(r" ([0-9a-f]{12})$", got.json()["error"]["message"])
    assert (got.status_code, got.json()["error"]["code"], got.headers["connection"]) == (500, "internal_error", "close")
    (record,) = [record for record in caplog.records if record.name == "runtime.server"]
    assert record.getMessage() == f"GET /v1/models failed ({number[1]})" and record.exc_info[0] is AttributeError


def test_a_stream_is_kept_by_nobody_on_its_way():
    async def events():
        yield b""

    headers = EventStream(events(), AsyncExitStack()).headers
    assert (headers["cache-control"], headers["x-accel-buffering"]) == ("no-store", "no")
    assert headers["content-type"] == "text/event-stream; charset=utf-8"


@pytest.mark.parametrize("path", ["/", "/page.js", "/page.css", "/health", "/health/ready", "/metrics"])
def test_what_can_be_read_can_be_asked_about(state, client, monkeypatch, path):
    monkeypatch.setattr(state.metrics, "text", lambda: b"a 1\n")
    got = client.head(path)
    assert (got.status_code, got.content) == (200, b"")


POSTED = ["/v1/chat/completions", "/v1/video/tokens", "/v1/video/inspect"]


@pytest.mark.parametrize("path", POSTED)
def test_a_request_that_is_wrong_is_no_failure_of_the_server(client, path, caplog):
    got = client.post(path, content=b"{", headers={"content-type": "application/json"})
    assert (got.status_code, got.json()["error"]["type"]) == (400, "invalid_request_error")
    assert not [record for record in caplog.records if record.name == "runtime.server"]


@pytest.mark.parametrize("path", POSTED)
def test_where_there_is_no_place_a_body_is_not_read(state, client, path):
    def asked() -> tuple[int, str, str]:
        got = client.post(path, content=b"{", headers={"content-type": "application/json"})
        return got.status_code, got.json()["error"]["code"], got.headers["retry-after"]

    state.admission.accepted = state.admission.limit
    assert asked() == (429, "queue_full", "1")
    state.admission.draining = True
    assert asked() == (503, "draining", "5")


def test_a_client_is_gone_once_its_connection_says_so():
    said = iter(["http.request", "http.request", "http.disconnect", "http.request"])

    async def receive() -> dict[str, str]:
        return {"type": next(said)}

    with pytest.raises(ApiError) as raised:
        asyncio.run(_until_hung_up(SimpleNamespace(receive=receive)))
    assert (raised.value.status, raised.value.code, next(said)) == (499, "client_gone", "http.request")
