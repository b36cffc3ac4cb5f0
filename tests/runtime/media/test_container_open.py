"""What FFmpeg is asked for a file, on a stand-in for it, and which files it is not asked about at all."""

from __future__ import annotations

import os
import sys
from contextlib import nullcontext
from fractions import Fraction
from types import SimpleNamespace

import av
import pytest
from refusal import naming

from runtime.core.errors import UserError, VideoError
from runtime.media.container import check_file, opened
from runtime.media.limits import DecodeLimits, limited


def _stream(name: str = "h264", duration: int | None = 50) -> SimpleNamespace:
    codec = SimpleNamespace(name=name, width=30, height=20, codec=SimpleNamespace(name=name), options=None)
    return SimpleNamespace(
        codec_context=codec,
        disposition=av.stream.Disposition(0),
        time_base=Fraction(1, 25),
        duration=duration,
        frames=50,
        type="video",
    )


class Streams(list):
    def __init__(self, *streams: SimpleNamespace):
        super().__init__(streams)
        self.video = self

    def best(self, kind: str) -> SimpleNamespace:
        return self[0]


@pytest.fixture
def asked(monkeypatch) -> list[tuple]:
    """What PyAV was asked to open; it gives `asked.found`."""

    class Asked(list):
        found = SimpleNamespace(streams=Streams(_stream()), duration=2_000_000, metadata={})

    calls = Asked()

    def opens(source, **more):
        calls.append((source, more))
        return nullcontext_of(calls.found)

    monkeypatch.setattr(av, "open", opens)
    return calls


def nullcontext_of(container: SimpleNamespace):
    class Open(nullcontext):
        def __getattr__(self, name):
            return getattr(container, name)

    return Open()


def test_a_file_is_opened_as_a_file_and_within_the_limits(asked, tmp_path):
    with opened(tmp_path / "a") as (container, stream):
        assert stream is asked.found.streams[0] and container.duration == 2_000_000
        assert stream.codec_context.options == {"err_detect": "explode"}
    with limited(DecodeLimits(streams=1, pixels=600, seconds=2)), opened(tmp_path / "a"):
        assert stream.codec_context.options == {"max_pixels": "600", "err_detect": "explode"}
    (source, free), (_, bounded) = asked
    assert source == f"file:{tmp_path / 'a'}" and free["metadata_errors"] == bounded["metadata_errors"] == "replace"
    assert free["options"].pop("format_whitelist").split(",")[:3] == ["mov", "mp4", "m4a"]
    assert free["options"] == {"protocol_whitelist": "file", "pattern_type": "none"}
    assert bounded["options"].items() >= {"max_streams": "2", "max_pixels": "600", "protocol_whitelist": "file"}.items()


@pytest.mark.parametrize(
    ("limits", "named"),
    [
        ({"streams": 1}, ("2 streams", 1)),
        ({"pixels": 599}, ("30x20", "599 pixels a frame")),
        ({"side": 29}, ("30x20", "29 pixels a side")),
        ({"seconds": 2.9}, ("3 s",)),
        ({"seconds": 3.9}, ("4 s",)),
        ({}, ("png", "H.264", "HEVC", "VP9", "AV1")),
    ],
)
def test_what_a_file_says_of_itself_is_held_against_the_limits(asked, tmp_path, limits, named):
    asked.found = SimpleNamespace(
        streams=Streams(_stream("png" if not limits else "h264", 100), _stream()), duration=3_000_000, metadata={}
    )
    refused = pytest.raises(VideoError, match=naming(tmp_path / "a", *named))
    with limited(DecodeLimits(**limits)), refused, opened(tmp_path / "a"):
        pytest.fail("it was opened")
    with opened(tmp_path / "a") as (_, stream):  # a file of the user's own
        assert stream is asked.found.streams[0]


def test_a_file_that_tells_no_length_has_none(asked, tmp_path):
    asked.found = SimpleNamespace(streams=Streams(_stream(duration=None)), duration=None, metadata={})
    with limited(DecodeLimits(seconds=0)), opened(tmp_path / "a"):
        assert len(asked) == 1


@pytest.mark.parametrize(
    ("codec", "strict", "threads", "kind", "options"),
    [
        ("h264", True, True, "AUTO", True),
        ("hevc", True, True, "AUTO", True),
        ("vp8", True, True, "AUTO", True),
        ("vp9", True, True, "AUTO", True),
        ("av1", True, True, "SLICE", True),
        ("h264", False, True, "NONE", False),
        ("h264", True, False, "NONE", True),
        ("mjpegb", False, True, "SLICE", True),
        ("mjpeg", False, False, "NONE", True),
    ],
)
def test_which_decoders_work_in_threads(asked, tmp_path, codec, strict, threads, kind, options):
    asked.found = SimpleNamespace(streams=Streams(_stream(codec)), duration=None, metadata={})
    with opened(tmp_path / "a", strict, threads) as (_, stream):
        assert (stream.thread_type, stream.codec_context.options) == (kind, {"err_detect": "explode"} if options else {})


def test_decoding_is_strict_and_in_threads_where_nobody_says_otherwise(asked, tmp_path):
    with opened(tmp_path / "a") as (_, stream):
        assert (stream.thread_type, stream.codec_context.options) == ("AUTO", {"err_detect": "explode"})


def test_what_can_t_be_opened_is_no_video(monkeypatch, tmp_path):
    def refuse(*_, **__):
        raise av.error.InvalidDataError(1, "Invalid data")

    monkeypatch.setattr(av, "open", refuse)
    with pytest.raises(VideoError, match=naming(tmp_path / "a", "Invalid data", "mp4")), opened(tmp_path / "a"):
        pytest.fail("it was opened")


def test_without_pyav_the_message_says_how_to_get_it(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "av", None)
    with (
        pytest.raises(UserError, match=naming('"av"', "pip install")),
        opened(tmp_path / "a"),
    ):
        pytest.fail("it was opened")


@pytest.mark.parametrize(
    ("name", "named"),
    [
        ("none", "no such file"),
        ("a" * 300, "no such file"),
        ("folder", "directory"),
        ("pipe", "regular file"),
        ("locked", "permission"),
        ("empty", "0 bytes"),
    ],
)
def test_what_is_no_file_with_something_in_it_is_called_what_it_is(tmp_path, monkeypatch, name, named):
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    for file, content in (("locked", b"a"), ("empty", b""), ("fine", b"a")):
        (tmp_path / file).write_bytes(content)
    monkeypatch.setattr(os, "access", lambda path, mode: mode == os.R_OK and path.name != "locked")
    check_file(tmp_path / "fine")
    with pytest.raises(VideoError, match=naming(tmp_path / name, named)):
        check_file(tmp_path / name)
