"""Which options make sense, and what follows from them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from refusal import naming

from runtime.cli.commands import parser
from runtime.core.errors import UsageError
from runtime.core.options import options_from_args
from runtime.engine import EngineOptions
from runtime.llm.remote import LLMOptions
from runtime.media.limits import DecodeLimits
from runtime.server.options import ServerOptions


def parsed(*words: str | Path) -> ServerOptions:
    return options_from_args(ServerOptions, parser().parse_args(["serve", "one", *map(str, words)]))


POSITIVE = (
    *("batch", "max_body", "max_media", "deadline", "drain"),
    *("fetch_seconds", "header_seconds", "body_seconds", "decode_seconds"),
)


@pytest.mark.parametrize("name", POSITIVE)
def test_amounts_are_more_than_0(name):
    assert getattr(ServerOptions(**{name: 1}), name) == 1
    for value in (0, -1):
        with pytest.raises(UsageError, match=f"^{name} is {value}, "):
            ServerOptions(**{name: value})


def test_a_server_without_options_is_the_one_that_the_documents_tell_of(monkeypatch):
    """docs/server.md, "Limits"; a MiB is 1,048,576 bytes."""
    documented = {
        "host": "127.0.0.1", "port": 8000, "api_key": None, "llm": LLMOptions("local", None, None, "float16"),
        "batch": 8, "queue": 32, "deadline": 300, "drain": 30, "max_body": 100_663_296, "max_media": 67_108_864,
        "header_seconds": 10, "body_seconds": 20, "grace_seconds": 0.5, "decode_seconds": 30, "cache": 268_435_456,
        "media_hosts": (), "media_paths": (), "fetch_seconds": 30, "limits": DecodeLimits(),
        "backend": "auto", "engine": EngineOptions("auto", 0, False),
    }  # fmt: skip
    for name in ("GRIDPOOL_API_KEY", "GRIDPOOL_LLM_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    assert vars(ServerOptions()) == vars(parsed()) == documented


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"limits": DecodeLimits(pixels=0)}, "pixels"),
        ({"limits": DecodeLimits(pixels=-1)}, "pixels"),
        ({"limits": DecodeLimits(seconds=0)}, "seconds"),
        ({"port": -1}, "port"),
        ({"port": 65_536}, "port"),
        ({"queue": -1}, "queue"),
        ({"cache": -1}, "cache"),
        ({"api_key": " "}, "API key"),
        ({"backend": "onxx"}, "backend"),
    ],
)
def test_what_makes_no_sense_is_refused(options: dict[str, Any], named: str) -> None:
    with pytest.raises(UsageError, match=named):
        ServerOptions(**options)


def test_a_directory_of_clips_must_be_one(tmp_path):
    (tmp_path / "file").touch()
    assert ServerOptions(media_paths=(tmp_path,), queue=0, cache=0, port=65_535, limits=DecodeLimits(pixels=1, seconds=1e-3))
    with pytest.raises(UsageError, match=naming("file", "directory")):
        ServerOptions(media_paths=(tmp_path, tmp_path / "file"))


@pytest.mark.parametrize(
    ("options", "keyless"),
    [
        ({}, True),
        ({"host": "localhost."}, True),
        ({"host": "0.0.0.0"}, False),
        ({"api_key": "k"}, False),
        ({"host": "0.0.0.0", "api_key": "k"}, False),
    ],
)
def test_who_may_ask_without_a_key(options, keyless):
    assert ServerOptions(**options).keyless_loopback is keyless


def test_bodies_and_clips_of_all_requests_are_four_bodies_at_most():
    assert ServerOptions(max_body=7).memory == 28


@pytest.mark.parametrize(("option", "variable"), [("api_key", "GRIDPOOL_API_KEY"), ("llm_api_key", "GRIDPOOL_LLM_API_KEY")])
@pytest.mark.parametrize("key", ["", "  ", "über", "a\nb"])
def test_a_key_that_no_header_can_hold_is_refused_wherever_it_comes_from(monkeypatch, option, variable, key):
    flag = f"--{option.replace('_', '-')}"

    def key_of(options: ServerOptions) -> str | None:
        return options.api_key if option == "api_key" else options.llm.api_key

    monkeypatch.setenv(variable, "from the environment")
    assert key_of(parsed()) == "from the environment"
    assert key_of(parsed(flag, "from the command line")) == "from the command line"
    with pytest.raises(UsageError, match=flag):
        parsed(flag, key)
    monkeypatch.setenv(variable, key)
    with pytest.raises(UsageError, match=variable):
        parsed()
