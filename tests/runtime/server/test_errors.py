"""What is wrong with a request is said with the status that makes the official client raise the right class."""

from __future__ import annotations

import json
import logging

import httpx
import openai
import pytest
from http_server import NAME, data_url, question

from runtime.core.errors import ContextError, EngineError, PromptError, UserError, VideoError
from runtime.llm.chat import DeadlineError
from runtime.llm.remote import RemoteError
from runtime.server.errors import ApiError, api_error, forget_frames


def _fails(client, kind: type[openai.APIStatusError], status: int, code: str | None, **ask) -> openai.APIStatusError:
    values = {"model": NAME, "messages": question("what is it ?")} | ask
    with pytest.raises(kind) as raised:
        client.chat.completions.create(**values)
    assert (raised.value.status_code, raised.value.code) == (status, code)
    assert raised.value.body["message"] and "Traceback" not in raised.value.response.text
    return raised.value


@pytest.mark.parametrize(
    ("ask", "code", "param"),
    [
        ({"extra_body": {"top_k": 3}}, "unknown_parameter", "top_k"),
        ({"messages": [{"role": "user", "content": "hi", "colour": 1}]}, "unknown_parameter", "messages.0.colour"),
        ({"messages": []}, "invalid_value", "messages"),
        ({"messages": [{"role": "user", "content": [{"type": "audio"}]}]}, "invalid_value", "messages.0.content.0"),
        (
            {"messages": [{"role": "user", "content": [{"type": "video_url", "video_url": {"uri": "x"}}]}]},
            "unknown_parameter",
            "messages.0.content.0.video_url.uri",
        ),
        ({"messages": [{"role": "tool", "content": "x"}]}, "invalid_value", "messages.0.role"),
        ({"messages": question("  ")}, "invalid_value", "messages"),
        ({"messages": [{"role": "system", "content": question("a", "data:,")[0]["content"]}]}, "invalid_value", "messages.0"),
        ({"temperature": 2.1}, "invalid_value", "temperature"),
        ({"top_p": 0}, "invalid_value", "top_p"),
        ({"max_tokens": 0}, "invalid_value", "max_tokens"),
        ({"n": 2}, "invalid_value", "n"),
        ({"logprobs": True}, "invalid_value", "logprobs"),
        ({"stop": ["a"] * 5}, "invalid_value", "stop"),
        ({"tools": [{"type": "function", "function": {"name": "f"}}]}, "invalid_value", "tools"),
        ({"messages": question("what " * 5000)}, "context_length_exceeded", "messages"),
        ({"messages": question("x", "https://example.com/a.mp4")}, "media_not_allowed", None),
        ({"messages": question("x", "file:///etc/passwd")}, "media_not_allowed", None),
        ({"messages": question("x", "ftp://example.com/a.mp4")}, "media_not_allowed", None),
        ({"messages": question("x", "data:text/html;base64,QQ==")}, "invalid_media", None),
        ({"messages": question("x", "data:video/mp4;base64,%%%%")}, "invalid_media", None),
        ({"messages": question("x", "data:video/mp4,QQ")}, "invalid_url", None),
        ({"messages": question("x", *["data:video/mp4;base64,QQ=="] * 9)}, "too_many_clips", "messages"),
    ],
    ids=str,
)
def test_a_bad_request_names_what_is_wrong(client, ask, code, param):
    assert _fails(client, openai.BadRequestError, 400, code, **ask).param == param


def test_an_unknown_model_names_the_known_ones(client):
    assert NAME in str(_fails(client, openai.NotFoundError, 404, "model_not_found", model="llava-ow"))
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("other")


def test_an_unknown_path_is_a_not_found_error(client):
    with pytest.raises(openai.NotFoundError):
        client.embeddings.create(model=NAME, input="x")


@pytest.mark.parametrize("content", [b"\x00" * 100, b"<html>", b""], ids=["zeros", "html", "empty"])
def test_what_is_no_video_is_unprocessable(client, content, tmp_path):
    (tmp_path / "clip").write_bytes(content)
    messages = question("what is it ?", data_url(tmp_path / "clip"))
    error = _fails(client, openai.UnprocessableEntityError, 422, "invalid_video", messages=messages)
    assert "/tmp" not in str(error)


@pytest.mark.parametrize(
    "body", ["{", "[]", '"x"', "{}", "[" * 100_000, '{"model": "\\ud800", "messages": [{"role": "user", "content": "x"}]}']
)
def test_a_body_that_is_no_request_is_refused_in_one_line(server, body):
    got = httpx.post(f"{server.url}/v1/chat/completions", content=body, headers={"content-type": "application/json"})
    assert got.status_code in (400, 404) and "\n" not in got.json()["error"]["message"]


def test_a_lone_surrogate_is_refused(server):
    body = json.dumps({"model": NAME, "messages": [{"role": "user", "content": "\ud800"}]})
    got = httpx.post(f"{server.url}/v1/chat/completions", content=body, headers={"content-type": "application/json"})
    assert got.status_code == 400


def test_only_json_is_taken(server):
    got = httpx.post(f"{server.url}/v1/chat/completions", content="{}", headers={"content-type": "text/plain"})
    assert got.status_code == 415


def test_a_wrong_method_is_refused_in_our_form(server):
    got = httpx.get(f"{server.url}/v1/chat/completions")
    assert got.status_code in (404, 405) and got.json()["error"]["message"]


@pytest.mark.parametrize("stream", [False, True])
def test_a_failure_inside_says_nothing_of_itself_but_a_number_for_the_log(client, models, monkeypatch, caplog, stream):
    def fail(*_):
        raise EngineError("secret of the engine at /secret/path")

    monkeypatch.setattr(models[NAME].llm.scheduler.decoder, "extend", fail)
    with caplog.at_level(logging.ERROR, "runtime.server"):
        error = _fails(client, openai.InternalServerError, 500, "internal_error", stream=stream, messages=question("a new one ?"))
    assert "secret" not in error.response.text and "secret of the engine" in caplog.text
    monkeypatch.undo()
    assert client.chat.completions.create(model=NAME, messages=question("what is it ?")).choices  # and it goes on


def test_a_failure_of_a_route_that_takes_no_body_has_our_form_too(server, served, monkeypatch):
    monkeypatch.setattr(type(served), "card", lambda _: 1 / 0)
    got = httpx.get(f"{server.url}/v1/models")
    assert got.status_code == 500 and got.json()["error"]["code"] == "internal_error"
    monkeypatch.undo()
    assert httpx.get(f"{server.url}/v1/models").status_code == 200


INTERNAL = (500, None, "internal_error", None, {})  # and a text that says nothing of the error
LATER = {"Retry-After": "5"}


@pytest.mark.parametrize(
    ("error", "answer"),
    [
        (ContextError("too long"), (400, "too long", "context_length_exceeded", "messages", {})),
        (PromptError("empty"), (400, "empty", "invalid_prompt", "messages", {})),
        (VideoError("torn"), (422, "torn", "invalid_video", "messages", {})),
        (DeadlineError("late"), (504, "late", "deadline_exceeded", None, {})),
        (RemoteError("no", 400), (400, "no", "remote_llm", None, {})),
        (RemoteError("no", 413), (413, "no", "remote_llm", None, {})),
        (RemoteError("no", 422), (422, "no", "remote_llm", None, {})),
        (RemoteError("no", 429), (429, "no", "remote_llm", None, LATER)),
        (RemoteError("no", 401), (503, "no", "remote_llm", None, LATER)),
        (RemoteError("no", 500), (503, "no", "remote_llm", None, LATER)),
        (RemoteError("no"), (503, "no", "remote_llm", None, LATER)),
        (EngineError("secret"), INTERNAL),
        (UserError("secret"), INTERNAL),
        (KeyError("secret"), INTERNAL),
    ],
    ids=repr,
)
def test_every_exception_has_its_answer(error, answer):
    got = api_error(error)
    status, text, *more = answer
    assert [got.status, got.code, got.param, got.headers] == [status, *more]
    assert str(got) == text if text else "secret" not in str(got)


def test_an_answer_stays_what_it_is():
    error = ApiError(403, "no", headers={"A": "b"})
    assert api_error(error) is error


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, "invalid_request_error"),
        (401, "authentication_error"),
        (403, "permission_error"),
        (404, "not_found_error"),
        (413, "invalid_request_error"),
        (422, "invalid_request_error"),
        (429, "rate_limit_error"),
        (499, "invalid_request_error"),
        (500, "server_error"),
        (503, "server_error"),
    ],
)
def test_a_status_has_the_type_that_openai_gives_it(status, kind):
    body = ApiError(status, "why", "code", "messages.0").body()
    assert body == {"error": {"message": "why", "type": kind, "param": "messages.0", "code": "code"}}


def test_frames_are_forgotten_of_an_error_and_of_what_it_came_from():
    try:
        try:
            raise KeyError("first")
        except KeyError as error:
            raise ApiError(400, "second") from error
    except ApiError as error:
        last = error
    assert last.__traceback__ and last.__context__.__traceback__
    forget_frames(last)
    assert last.__traceback__ is None and last.__context__.__traceback__ is None
    forget_frames(None)
    assert (last.code, last.param, last.headers) == (None, None, {})
