"""A chat request taken apart: its messages, its clips in order, the frames that it asks for, and what is refused at once."""

from __future__ import annotations

import json
from typing import Any

import pytest
from refusal import naming

from runtime.server.chat_job import Job
from runtime.server.errors import ApiError
from runtime.server.schema import ChatRequest, MediaUrl, parse

IMAGE = {"type": "image", "image": "u"}
VIDEO = {"type": "video", "video": "v"}
TEXT = {"type": "text", "text": "what ?"}


def asked(*content: Any, **more: Any) -> ChatRequest:
    return parse(
        ChatRequest, json.dumps({"model": "m", "messages": [{"role": "user", "content": list(content or [TEXT])}]} | more).encode()
    )


def refused(**more: Any) -> ApiError:
    with pytest.raises(ApiError) as raised:
        Job.of(asked(**more))
    assert raised.value.status == 400
    return raised.value


def test_a_job_is_what_was_asked_for():
    request = asked(VIDEO, TEXT, max_tokens=5, stop=["a", "b"], stream=True)
    job = Job.of(request)
    assert (job.request.model, job.request.limit, job.request.stop, job.request.stream) == ("m", 5, ["a", "b"], True)
    assert not job.request.messages and request.messages  # the clips' text is not kept here
    assert job.messages == [{"role": "user", "content": [{"type": "video"}, {"type": "text", "text": "what ?"}]}]
    assert [one.url for one in job.asked] == ["v"] and job.frame_counts == {} and not job.images


def test_eight_clips_are_taken_and_of_more_images_it_is_said_how_to_make_them_one():
    assert len(Job.of(asked(*[VIDEO] * 8)).asked) == 8
    for parts, hint in (([VIDEO] * 9, False), ([VIDEO] * 8 + [IMAGE], False), ([VIDEO] * 7 + [IMAGE] * 2, True)):
        error = refused(messages=[{"role": "user", "content": parts}])
        assert (error.code, error.param, "image_parts" in str(error)) == ("too_many_clips", "messages", hint)
        assert naming("9 clips", 8).match(str(error))
    assert len(Job.of(asked(*[IMAGE] * 9, image_parts="frames")).asked) == 1
    assert [Job.of(asked(*[IMAGE] * count)).images for count in (1, 2)] == [False, True]


def test_images_that_follow_each_other_become_frames_wherever_their_bytes_are():
    def image(**media: Any) -> dict[str, Any]:
        return {"type": "image_url", "image_url": media}

    more = [{"type": "input_image", "image_url": "b"}, VIDEO, image(url="c"), TEXT, image(url="d")]
    job = Job.of(asked(image(url="a", fps=3), image(data="QQ=="), *more, image_parts="frames"))
    first, *rest = job.asked
    assert first == MediaUrl(frames=["a", "data:image/jpeg;base64,QQ==", "b"], fps=3)
    assert [(one.url, one.frames) for one in rest] == [("v", None), ("c", None), ("d", None)]
    assert [part["type"] for part in job.messages[0]["content"]] == ["video", "video", "video", "text", "video"]
    (only,) = Job.of(asked(image(data="QQ=="), image(data="QUE="), image(frames=["x"]), image_parts="frames")).asked
    jpeg = "data:image/jpeg;base64,"
    assert (only.data, only.frames) == (None, [f"{jpeg}QQ==", f"{jpeg}QUE=", jpeg])
    (only,) = Job.of(asked(image(frames=["x", "y"]), image(url="z"), image_parts="frames")).asked
    assert only.frames == ["x", "y", "z"]


def test_messages_have_roles_that_templates_know_and_some_text():
    messages = [
        {"role": "developer", "content": "a"},
        {"role": "system", "content": [TEXT]},
        {"role": "assistant", "content": None},
        {"role": "user", "content": "b"},
    ]
    job = Job.of(asked(messages=messages))
    assert [(one["role"], [part["text"] for part in one["content"]]) for one in job.messages] == [
        ("system", ["a"]), ("system", ["what ?"]), ("assistant", []), ("user", ["b"]),
    ]  # fmt: skip
    for content in ("", " \n", [], None):
        error = refused(messages=[{"role": "user", "content": content}])
        assert (error.code, error.param) == ("invalid_value", "messages")
    assert len(Job.of(asked(VIDEO)).asked) == 1
    for role, shown in (("assistant", "assistant"), ("developer", "system")):
        messages = [{"role": "user", "content": "a"}, {"role": role, "content": [VIDEO]}]
        error = refused(messages=messages)
        assert (error.code, error.param) == ("invalid_value", "messages.1") and naming(shown, "user").match(str(error))


def test_every_number_of_frames_that_is_asked_for_is_known_by_its_place():
    inner = {"type": "video_url", "video_url": {"url": "u", "nframes": 3}, "num_frames": 2}
    more = {"mm_processor_kwargs": {"num_frames": 0}, "media_io_kwargs": {"video": {"num_frames": 1}}}
    messages = [{"role": "user", "content": "a"}, {"role": "user", "content": [TEXT, inner]}]
    assert Job.of(asked(messages=messages, **more)).frame_counts == {
        "mm_processor_kwargs.num_frames": 0,
        "media_io_kwargs.video.num_frames": 1,
        "messages.1.content.1.num_frames": 2,
        "messages.1.content.1.video_url.num_frames": 3,
    }
