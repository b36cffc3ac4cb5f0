"""The shapes of requests one by one: limits at their edges, defaults, and what is said of the first thing that is wrong."""

from __future__ import annotations

import json
from typing import Any

import pytest

from runtime.llm.sampling import Sampling
from runtime.server.errors import ApiError
from runtime.server.schema import ChatRequest, StreamOptions, VideoRequest, parse

HELLO = {"role": "user", "content": "hello"}


def chat(**more: Any) -> ChatRequest:
    return parse(ChatRequest, json.dumps({"model": "m", "messages": [HELLO]} | more).encode())


def video(**more: Any) -> VideoRequest:
    return parse(VideoRequest, json.dumps({"model": "m"} | more).encode())


def content(*parts: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": list(parts)}]}


def said(call: Any, *args: Any, **more: Any) -> tuple[str, str | None, str | None]:
    with pytest.raises(ApiError) as raised:
        call(*args, **more)
    assert raised.value.status == 400
    return str(raised.value), raised.value.code, raised.value.param


def test_what_is_left_out_has_its_default():
    for one in (
        chat(),
        chat(stream=None, temperature=None, seed=None, stop=None, messages=[HELLO | {"name": None}], stream_options=None),
    ):
        assert (one.stream, one.stream_options, one.limit, one.temperature, one.top_p) == (False, StreamOptions(), None, 0, 1)
        assert (one.stop, one.seed, one.image_parts) == ([], None, "clips")
        assert one.mm_processor_kwargs is None and one.media_io_kwargs.video is None
    assert (StreamOptions().include_usage, StreamOptions().continuous_usage_stats) == (False, False)
    one = video(video_url="u")
    assert (one.clip.url, one.clip.fps, one.format, one.dtype) == ("u", None, "safetensors", "float16")


@pytest.mark.parametrize(
    ("name", "least", "most", "beyond"),
    [
        ("temperature", 0, 2, [-0.01, 2.01]),
        ("top_p", 0.01, 1, [0, 1.01]),
        ("seed", -(2**63), 2**63 - 1, [-(2**63) - 1, 2**63, 1.5, True]),
        ("max_tokens", 1, 10**9, [0, -2]),
        ("max_completion_tokens", 1, 10**9, [0, -2]),
        ("stream", False, True, [0, "true"]),
        ("image_parts", "clips", "frames", ["all", ""]),
        ("messages", [HELLO], [HELLO] * 256, [[], [HELLO] * 257]),
        ("stop", "", ["a" * 1000] * 4, [1, [1], "a" * 1001, ["a"] * 5, ["a", "b" * 1001]]),
        ("model", "", "m", [1]),
    ],
)
def test_a_value_may_be_at_its_limits_and_not_beyond(name, least, most, beyond):
    for value in (least, most):
        assert len(chat(**{name: value}).messages) >= 1
    for value in beyond:
        message, code, param = said(chat, **{name: value})
        assert (code, (param or "").split(".")[0]) == ("invalid_value", name) and f"'{param}'" in message


@pytest.mark.parametrize(("stop", "stops"), [("a", ["a"]), (["a", "b"], ["a", "b"]), ([], []), ("", [""]), (None, [])])
def test_one_stop_string_is_a_list_of_one(stop, stops):
    assert chat(stop=stop).stop == stops


@pytest.mark.parametrize("seed", [3, 0, -1, -(2**63), 2**63 - 1])
def test_every_seed_is_one_of_its_own(seed):
    assert chat(seed=seed, temperature=0.5, top_p=0.25).sampling == Sampling(0.5, 0.25, seed + (2**64 if seed < 0 else 0))


def test_the_newer_name_of_the_limit_goes_first():
    assert (chat(max_tokens=3).limit, chat(max_tokens=3, max_completion_tokens=2).limit) == (3, 2)
    assert chat(max_tokens=3, max_completion_tokens=-1).limit == 3


@pytest.mark.parametrize(
    ("asked", "count"), [("123456789", 123456789), ("007", 7), (5.0, 5), (-1.0, None), (-1, None), ("1", 1), (1, 1)]
)
def test_a_number_of_tokens_is_taken_as_clients_write_it(asked, count):
    assert chat(max_tokens=asked).limit == count


@pytest.mark.parametrize("asked", ["1234567890", "\u0663", "\u00b2", "-1", "1.0", 0.5, True, False, 0, "0"])
def test_what_is_no_number_of_tokens_is_refused(asked):
    assert said(chat, max_tokens=asked)[1:] == ("invalid_value", "max_tokens")


@pytest.mark.parametrize(("asked", "frames"), [({}, None), ({"num_frames": 0}, 0), ({"nframes": 3}, 3)])
def test_the_number_of_frames_has_two_names(asked, frames):
    assert chat(mm_processor_kwargs=asked).mm_processor_kwargs.num_frames == frames
    both = {"num_frames": 3, "nframes": 3}
    assert said(chat, mm_processor_kwargs=both)[1:] == ("unknown_parameter", "mm_processor_kwargs.nframes")


@pytest.mark.parametrize(
    ("part", "url", "data", "frames", "fps"),
    [
        ({"type": "video_url", "video_url": "u"}, "u", None, None, None),
        ({"type": "video_url", "video_url": {"url": "u", "fps": 3}, "fps": 2}, "u", None, None, 3),
        ({"type": "video", "video": ["a", "b"], "fps": 2}, None, None, ["a", "b"], 2),
        ({"type": "image_url", "image_url": "u"}, "u", None, None, None),
        ({"type": "input_image", "image_url": {"data": "d"}}, None, "d", None, None),
        ({"type": "image", "image": "u"}, "u", None, None, None),
        ({"type": "input_video", "input_video": {"frames": ["a"]}}, None, None, ["a"], None),
        ({"type": "file", "file": {"file_data": "data:x", "filename": "f"}}, "data:x", None, None, None),
        ({"type": "file", "file": {"file_data": "DATA:x", "file_id": None}}, "DATA:x", None, None, None),
        ({"type": "file", "file": {"file_data": "dataQUJD"}}, None, "dataQUJD", None, None),
        ({"type": "file", "file": {"url": "u"}}, "u", None, None, None),
        ({"type": "file", "file": "u"}, "u", None, None, None),
    ],
)
def test_a_clip_s_place_and_rate_are_found_in_every_part(part, url, data, frames, fps):
    media = chat(**content(part)).messages[0].content[0].media
    assert (media.url, media.data, media.frames, media.fps) == (url, data, frames, fps)


@pytest.mark.parametrize(
    ("part", "param"),
    [
        ({"type": "video_url", "video_url": 5}, "messages.0.content.0.video_url"),
        ({"type": "file", "file": 5}, "messages.0.content.0.file"),
        ({"type": "file", "file": {"file_id": "f"}}, "messages.0.content.0.file"),
        ({"type": "video_url", "video_url": "u", "image": "u"}, "messages.0.content.0.image"),
        ({"type": "video_url", "video_url": None, "uuid": "u1"}, "messages.0.content.0.video_url"),
        ({"type": "image"}, "messages.0.content.0.image"),
        ({"type": "file", "file": {"file_data": 5}}, "messages.0.content.0.file.file_data"),
        ({"type": "video_url", "video_url": {"url": "u", "fps": 0}}, "messages.0.content.0.video_url.fps"),
        ({"type": "text", "text": "a", "video_url": "u"}, "messages.0.content.0.video_url"),
        ({"type": "text"}, "messages.0.content.0.text"),
        ({"text": "a"}, "messages.0.content.0"),
        ("text", "messages.0.content.0"),
    ],
)
def test_what_is_wrong_with_a_part_is_found_where_it_is(part, param):
    assert said(chat, **content(part))[2] == param


def test_a_clip_has_at_most_4096_frames():
    part = {"type": "video", "video": ["u"] * 4096}
    assert len(chat(**content(part)).messages[0].content[0].media.frames) == 4096
    part["video"].append("u")
    assert said(chat, **content(part))[2] == "messages.0.content.0.video.frames"


@pytest.mark.parametrize(
    ("more", "code", "param", "named"),
    [
        ({"colour": 1}, "unknown_parameter", "colour", ()),
        ({"n": 2}, "invalid_value", "n", (2, "each answer")),
        ({"top_k": 5}, "unknown_parameter", "top_k", (5, "temperature", "top_p")),
        ({"logit_bias": {"a": "b" * 50}}, "invalid_value", "logit_bias", (json.dumps({"a": "b" * 50}),)),
        ({"logit_bias": {"a": "b" * 51}}, "invalid_value", "logit_bias", ("what was sent",)),
        ({"messages": [HELLO | {"refusal": "no"}]}, "invalid_value", "messages.0.refusal", ('"no"', "content")),
        ({"messages": [{"content": "a"}]}, "missing_required_parameter", "messages.0.role", ()),
        ({"messages": HELLO}, "invalid_value", "messages", ()),
        ({"messages": ["a"]}, "invalid_value", "messages.0", ()),
        ({"messages": [HELLO | {"content": 5}]}, "invalid_value", "messages.0.content", ()),
        ({"stop": [1]}, "invalid_value", "stop.0", ()),
        ({"media_io_kwargs": {"video": {"fps": 0}}}, "invalid_value", "media_io_kwargs.video.fps", ()),
        ({"media_io_kwargs": {"text": 1}}, "unknown_parameter", "media_io_kwargs.text", ()),
    ],
    ids=lambda value: str(value)[:40],
)
def test_the_first_thing_that_is_wrong_is_named_as_the_client_wrote_it(more, code, param, named):
    message, *got = said(chat, **more)
    assert got == [code, param] and all(str(one) in message for one in (f"'{param}'", *named))


def test_what_has_no_use_for_this_server_is_dropped():
    options = {"include_usage": True, "include_obfuscation": True}
    one = chat(stream_options=options, media_io_kwargs={"image": 1, "audio": 2, "video": {"num_frames": 4, "size": 3}})
    assert one.stream_options.include_usage and one.media_io_kwargs.video.num_frames == 4
    assert chat(colour=[], n=1) == chat()


@pytest.mark.parametrize(
    ("body", "code", "param"),
    [
        (b"[]", "invalid_value", None),
        (b'"x"', "invalid_value", None),
        (b"{", "invalid_json", None),
        (b'{"a": NaN}', "invalid_json", None),
        (b"{}", "missing_required_parameter", "model"),
    ],
)
def test_a_body_that_is_not_a_request(body, code, param):
    assert said(parse, ChatRequest, body)[1:] == (code, param)


def test_a_body_may_have_100000_values_and_no_more():
    """The object, the list and its commas."""
    for commas, code in ((99_998, "missing_required_parameter"), (99_999, "invalid_json")):
        assert said(parse, VideoRequest, b'{"a":[' + b"1," * commas + b"1]}")[1] == code
    assert "100000 values" in said(parse, VideoRequest, b"[" * 100_001)[0]


def test_one_object_in_the_place_of_a_clip_is_read_like_a_part_s():
    one = video(video_url={"url": "u", "fps": 2.5, "detail": "low"}, format="npz", dtype="float32")
    assert (one.clip.url, one.clip.fps, one.format, one.dtype) == ("u", 2.5, "npz", "float32")
    assert video(input_video=["a", "b"], video_url=None).clip.frames == ["a", "b"]
    assert said(video, video_url="u", format="pt")[2] == "format" and said(video, video_url="u", dtype="int8")[2] == "dtype"
    assert said(video)[1:] == ("missing_required_parameter", "video_url")
    assert said(video, video_url="u", input_video="u")[1:] == ("unknown_parameter", "input_video")
