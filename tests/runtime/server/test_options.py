"""Which options make sense, and what follows from them."""

from __future__ import annotations

from pathlib import Path

import pytest

from runtime.__main__ import _parser
from runtime.core.errors import UsageError
from runtime.llm.remote import RemoteOptions
from runtime.media.clip import DecodeLimits
from runtime.server.arguments import options_of, remote_of
from runtime.server.options import ServerOptions


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("batch", "batch"),
        ("max_body", "max-body"),
        ("max_media", "max-media"),
        ("deadline", "deadline"),
        ("drain", "drain"),
        ("fetch_seconds", "fetch-seconds"),
        ("header_seconds", "header-seconds"),
        ("body_seconds", "body-seconds"),
        ("decode_seconds", "decode-seconds"),
    ],
)
def test_amounts_are_more_than_0(name, said):
    assert getattr(ServerOptions(**{name: 1}), name) == 1
    for value in (0, -1):
        with pytest.raises(UsageError, match=f"^{said} is {value}, expected more than 0$"):
            ServerOptions(**{name: value})


def test_a_server_without_options_is_the_one_that_the_documents_tell_of():
    """docs/server.md, "Limits"; a MiB is 1,048,576 bytes."""
    told = {
        "host": "127.0.0.1", "port": 8000, "api_key": None, "llm": "local", "llm_model": None, "llm_api_key": None, "llm_dtype": "float16",
        "batch": 8, "queue": 32, "deadline": 300, "drain": 30, "max_body": 100_663_296, "max_media": 67_108_864,
        "header_seconds": 10, "body_seconds": 20, "grace_seconds": 0.5, "decode_seconds": 30, "cache": 268_435_456,
        "media_hosts": (), "media_paths": (), "fetch_seconds": 30, "limits": DecodeLimits(),
    }  # fmt: skip
    assert vars(ServerOptions()) == told
    args = _parser().parse_args(["serve", "b", "--max-body-mib", "1", "--max-media-mib", "2", "--cache-mib", "3"])
    got = options_of(args)
    assert (got.max_body, got.max_media, got.cache) == (1_048_576, 2_097_152, 3_145_728)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"limits": DecodeLimits(pixels=0)}, "max-clip-seconds and max-clip-pixels must be more than 0"),
        ({"limits": DecodeLimits(seconds=0)}, "max-clip-seconds and max-clip-pixels must be more than 0"),
        ({"port": -1}, "port is -1, expected 0 to 65535"),
        ({"limits": DecodeLimits(pixels=-1)}, "max-clip-seconds and max-clip-pixels must be more than 0"),
        ({"port": 65_536}, "port is 65536, expected 0 to 65535"),
        ({"queue": -1}, "queue and cache can't be negative"),
        ({"cache": -1}, "queue and cache can't be negative"),
        ({"api_key": " "}, "the API key is empty; give one, or leave the option out for a server without a key"),
        ({"llm": "http://h/v1"}, "--llm http://h/v1 needs --llm-model, the model's name there"),
    ],
)
def test_what_makes_no_sense_is_refused(options, message):
    with pytest.raises(UsageError) as raised:
        ServerOptions(**options)
    assert str(raised.value) == message


def test_a_directory_of_clips_must_be_one(tmp_path):
    (tmp_path / "file").touch()
    assert ServerOptions(media_paths=(tmp_path,), queue=0, cache=0, port=65_535, limits=DecodeLimits(pixels=1, seconds=1e-3))
    assert ServerOptions(port=0, llm="http://h/v1", llm_model="m").llm_model == "m"
    with pytest.raises(UsageError, match=r"^--allow-media-path \S+file is not a directory$"):
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


@pytest.mark.parametrize("option", ["api_key", "llm_api_key"])
@pytest.mark.parametrize("key", ["", "  ", "über", "a\nb"])
def test_a_key_that_no_header_can_hold_is_refused_wherever_it_comes_from(monkeypatch, option, key):
    words = ["serve", "b"]
    variable = {"api_key": "GRIDPOOL_API_KEY", "llm_api_key": "GRIDPOOL_LLM_API_KEY"}[option]
    monkeypatch.setenv(variable, "from the environment")
    assert getattr(options_of(_parser().parse_args(words)), option) == "from the environment"
    message = f"^the key in {variable} or on the command line is empty or not plain ASCII; give one that is$"
    with pytest.raises(UsageError, match=message):
        options_of(_parser().parse_args([*words, f"--{option.replace('_', '-')}", key]))
    monkeypatch.setenv(variable, key)
    with pytest.raises(UsageError, match=message):
        options_of(_parser().parse_args(words))


ALL = """serve one two three --host h --port 1 --api-key k --llm http://l/v1 --llm-model m --llm-api-key lk --llm-dtype bfloat16
 --batch 2 --queue 3 --deadline 4.5 --drain 5.5 --max-body-mib 6 --max-media-mib 7 --max-clip-seconds 8.5 --max-clip-pixels 9
 --max-decode-seconds 10.5 --cache-mib 11 --allow-media-host a --allow-media-host b --allow-media-path"""


def test_every_option_is_taken_from_the_command_line(tmp_path):
    folders = [tmp_path / "c", tmp_path / "d"]
    for folder in folders:
        folder.mkdir()
    args = _parser().parse_args([*ALL.split(), str(folders[0]), "--allow-media-path", str(folders[1])])
    assert (args.bundle, args.more) == (Path("one"), [Path("two"), Path("three")])
    expected = ServerOptions(
        host="h", port=1, api_key="k", llm="http://l/v1", llm_model="m", llm_api_key="lk", llm_dtype="bfloat16", batch=2, queue=3,
        deadline=4.5, drain=5.5, max_body=6 << 20, max_media=7 << 20, decode_seconds=10.5, cache=11 << 20, media_hosts=("a", "b"),
        media_paths=tuple(folders), limits=DecodeLimits(pixels=9, seconds=8.5),
    )  # fmt: skip
    assert repr(options_of(args)) == repr(expected)  # which tells 2 from 2.0


def test_without_options_they_are_those_that_are_documented(monkeypatch):
    for name in ("GRIDPOOL_API_KEY", "GRIDPOOL_LLM_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    args = _parser().parse_args(["serve", "one"])
    assert args.more == [] and repr(options_of(args)) == repr(ServerOptions())
    assert ServerOptions() == ServerOptions(
        host="127.0.0.1", port=8000, api_key=None, llm="local", llm_model=None, llm_api_key=None, llm_dtype="float16", batch=8, queue=32,
        deadline=300, drain=30, max_body=100_663_296, max_media=67_108_864, header_seconds=10, body_seconds=20, grace_seconds=0.5,
        decode_seconds=30, cache=268_435_456, media_hosts=(), media_paths=(), fetch_seconds=30,
    )  # fmt: skip


def test_where_an_llm_is_comes_from_the_command_line():
    run = ["run", "one", "clip", "what", "--llm", "http://l/v1"]
    words = [*run, "--llm-model", "m", "--llm-api-key", "lk"]
    assert remote_of(_parser().parse_args(words)) == RemoteOptions("http://l/v1", "m", "lk", "float16")
    for given in (run, [*run, "--llm-model="]):
        with pytest.raises(UsageError, match=r"^--llm http://l/v1 needs --llm-model, the model's name there$"):
            remote_of(_parser().parse_args(given))


def test_embeddings_are_sent_in_two_types_and_no_other():
    for name in ("float16", "bfloat16"):
        assert options_of(_parser().parse_args(["serve", "one", "--llm-dtype", name])).llm_dtype == name
    with pytest.raises(UsageError, match=r"^argument --llm-dtype: invalid choice: 'float32'"):
        _parser().parse_args(["serve", "one", "--llm-dtype", "float32"])
