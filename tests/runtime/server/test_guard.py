"""What is looked at before any route: the host, the key; and what is counted after it."""

from __future__ import annotations

import asyncio
import http.client
import json
from types import SimpleNamespace

import httpx
import pytest
from http_server import NAME, question
from raw_http import Raw, head

from runtime.server.admission import Admission
from runtime.server.guard import Guard
from runtime.server.options import ServerOptions

BODY = {"model": NAME, "messages": question("what is it ?"), "max_tokens": 1}


def _get(server, path: str, **headers: str) -> tuple[int, dict]:
    with Raw(server) as one:
        status, content = one.send(head(path, "GET", **headers)).answer()
        return status, json.loads(content) if content.startswith(b"{") else {}


@pytest.mark.parametrize(
    ("host", "status"),
    [("localhost", 200), ("LOCALHOST:8000", 200), ("127.0.0.1:8000", 200), ("127.8.9.1", 200), ("[::1]:8000", 200),
     ("evil.example", 403), ("127.0.0.1.evil.example", 403), ("localhost.evil.example:8000", 403), ("10.0.0.1", 403), ("[", 403), ("", 403),
     ("[::1", 403), ("[::1]evil", 403), ("localhost:evil", 403), ("localhost:1:2", 403)],
)  # fmt: skip
def test_a_keyless_server_on_loopback_answers_to_loopback_s_names_alone(server, host, status):
    for path in ("/v1/models", "/", "/metrics"):
        got, content = _get(server, path, Host=host)
        assert got == status
        assert status == 200 or content["error"]["code"] == "host_not_allowed"


def test_where_there_is_a_key_or_another_address_any_host_will_do(start):
    assert _get(start(api_key="k"), "/v1/models", Host="video.example", Authorization="Bearer k")[0] == 200
    assert _get(start(host="0.0.0.0"), "/v1/models", Host="video.example")[0] == 200


def test_an_unreadable_host_is_no_failure(start):
    status, content = _get(start(host="0.0.0.0"), "/nowhere", Host="[")
    assert status == 404 and content["error"]["message"] == "no such path: /nowhere"


@pytest.mark.parametrize("path", ["/v1/chat/completions/", "/v1/models/", "/health/"])
def test_nobody_is_sent_elsewhere(start, path):
    with Raw(start(api_key="k")) as one:
        assert one.send(head(path, "GET", Host="evil.example", Authorization="Bearer k")).answer()[0] in (404, 405)


@pytest.mark.parametrize("header", ["Basic right", "right", "bearer wrong", "Bearer", "Token right", "Bearer rightright"])
def test_only_a_bearer_of_the_key_comes_in(start, header):
    server = start(api_key="right")
    assert httpx.get(f"{server.url}/v1/models", headers={"Authorization": header}).status_code == 401
    for good in ("Bearer right", "bearer  right"):
        assert httpx.get(f"{server.url}/v1/models", headers={"Authorization": good}).status_code == 200


def test_made_up_paths_are_one_label_whatever_their_status(start):
    server = start(api_key="right")
    key = {"Authorization": "Bearer right"}
    for number in range(3):
        httpx.get(f"{server.url}/v1/made-up-{number}")  # 401
        httpx.get(f"{server.url}/v1/made-up-{number}", headers=key)  # 404
        httpx.get(f"{server.url}/v1/models/made-up-{number}", headers=key)  # 404
        httpx.get(f"{server.url}/v1/models/{NAME}", headers=key)
        httpx.delete(f"{server.url}/v1/models", headers=key)  # 405
    server.state.admission.draining = True
    httpx.post(f"{server.url}/v1/made-up-4", headers=key, json={})  # 503
    counts = {line for line in httpx.get(f"{server.url}/metrics").text.splitlines() if line.startswith("gridpool_requests_total{")}
    assert counts == {
        'gridpool_requests_total{path="other",status="401"} 3.0',
        'gridpool_requests_total{path="other",status="404"} 6.0',
        'gridpool_requests_total{path="other",status="503"} 1.0',
        f'gridpool_requests_total{{path="/v1/models/{NAME}",status="200"}} 3.0',
        'gridpool_requests_total{path="/v1/models",status="405"} 3.0',
    }


def test_head_is_get_without_its_body(server):
    connection = http.client.HTTPConnection(server.url.removeprefix("http://"))
    for path in ("/health", "/v1/models", "/"):
        connection.request("HEAD", path)
        response = connection.getresponse()
        assert response.status == 200 and not response.read()


class Behind:
    """A guard before an app that answers 200; `ask` is the status that comes out and what was counted."""

    def __init__(self, **options):
        self.counted, self.given = [], []

        def labels(*labels):
            return SimpleNamespace(inc=lambda: self.counted.append(labels))

        state = SimpleNamespace(
            options=ServerOptions(**options),
            admission=Admission(ServerOptions()),
            metrics=SimpleNamespace(requests=SimpleNamespace(labels=labels)),
            models=SimpleNamespace(served={"one": None}),
        )
        self.guard = Guard(self.app, state, ["/v1/models", "/health"])

    async def app(self, scope, receive, send):
        self.given.append(scope["type"])
        if scope["type"] == "http":
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": b""})

    def ask(self, path: str = "/v1/models", kind: str = "http", **scope) -> tuple[int, dict[bytes, bytes]]:
        sent = []

        async def receive():
            return {"type": "http.request"}

        async def send(message):
            sent.append(message)

        asyncio.run(self.guard({"type": kind, "path": path, "headers": [], **scope}, receive, send))
        return (sent[0]["status"], dict(sent[0]["headers"])) if sent else (0, {})


def test_a_head_may_be_as_long_as_the_limit():
    """64 KiB of the path, the query, the names and the values."""
    left = 65_536 - len("/v1/models" + "a=b" + "host" + "localhost" + "x")
    for more, status in ((0, 200), (1, 431)):
        headers = [(b"host", b"localhost"), (b"x", b"y" * (left + more))]
        assert Behind().ask(raw_path=b"/v1/models", query_string=b"a=b", headers=headers)[0] == status
    for more, status in ((0, 200), (1, 431)):
        assert Behind().ask(raw_path=None, query_string=b"y" * (65_536 + more))[0] == status
        assert Behind().ask(raw_path=b"y" * (65_536 + more))[0] == status


@pytest.mark.parametrize(
    ("path", "label", "policy"),
    [
        ("/v1/models", "/v1/models", False),
        ("/v1/models/one", "/v1/models/one", False),
        ("/v1/models/other", "other", False),
        ("/v1/other/one", "other", False),
        ("one", "other", True),
        ("/health", "/health", False),
        ("/metrics", "other", False),
        ("/", "other", True),
    ],
)
def test_every_response_is_counted_by_a_known_path_and_pages_say_what_they_may_load(path, label, policy):
    one = Behind()
    status, headers = one.ask(path)
    assert (status, one.counted) == (200, [(label, "200")])
    assert headers[b"x-content-type-options"] == b"nosniff" and (b"content-security-policy" in headers) == policy


def test_what_is_no_request_goes_by_without_a_key():
    one = Behind(api_key="k")
    assert one.ask(kind="lifespan") == (0, {}) and one.given == ["lifespan"] and not one.counted
    assert one.ask("/health")[0] == 200 and one.ask()[0] == 401 and one.given == ["lifespan", "http"]
    bearer = [(b"authorization", b"Bearer k")]
    assert one.ask(headers=bearer)[0] == 200
    one.guard.state.admission.draining = True
    assert (one.ask(headers=bearer)[0], one.ask("/health")[0]) == (503, 200)
    assert one.counted[-2:] == [("/v1/models", "503"), ("/health", "200")]
