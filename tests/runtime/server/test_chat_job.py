"""A chat request before and after its answer, on stand-ins for models, clips and metrics: what is refused, counted and said."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from refusal import naming

from runtime.core.errors import ContextError
from runtime.llm.chat import DeadlineError, Usage
from runtime.llm.sampling import Sampling
from runtime.server import chat, request_clips
from runtime.server.chat import Answering, Ready, check, complete
from runtime.server.chat_job import Job
from runtime.server.errors import ApiError
from runtime.server.memory import Memory
from runtime.server.request_clips import check_frames, encode
from runtime.server.schema import ChatRequest, MediaUrl, StreamOptions, parse

IMAGE = {"type": "image", "image": "u"}
VIDEO = {"type": "video", "video": "v"}
TEXT = {"type": "text", "text": "what ?"}


def asked(*content: Any, **more: Any) -> ChatRequest:
    return parse(
        ChatRequest, json.dumps({"model": "m", "messages": [{"role": "user", "content": list(content or [TEXT])}]} | more).encode()
    )


def refused(call: Any, *args: Any) -> tuple[int, str, str | None, str | None]:
    with pytest.raises(ApiError) as raised:
        call(*args)
    return raised.value.status, str(raised.value), raised.value.code, raised.value.param


def test_a_job_is_what_was_asked_for():
    stream = {"stream": True, "stream_options": {"include_usage": True}}
    job = Job.of(asked(VIDEO, TEXT, max_tokens=5, temperature=0.5, top_p=0.25, seed=-1, stop=["a", "b"], **stream))
    assert (job.model, job.max_tokens, job.sampling, job.stops) == ("m", 5, Sampling(0.5, 0.25, 2**64 - 1), ["a", "b"])
    assert job.stream and job.stream_options == StreamOptions(include_usage=True) and not job.images
    assert job.messages == [{"role": "user", "content": [{"type": "video"}, {"type": "text", "text": "what ?"}]}]
    assert [one.url for one in job.asked] == ["v"] and job.frame_counts == {}
    assert Job.of(asked()).sampling.seed is None and Job.of(asked(seed=0)).sampling.seed == 0


@pytest.mark.parametrize("stop", ["a" * 1000, ["a" * 1000] * 4, [], ""])
def test_four_stop_strings_of_a_thousand_characters_are_taken(stop):
    assert Job.of(asked(stop=stop)).stops == ([stop] if isinstance(stop, str) else stop)


@pytest.mark.parametrize("stop", ["a" * 1001, ["a"] * 5, ["a", "b" * 1001]])
def test_more_or_longer_stop_strings_are_refused(stop):
    message = "expected at most 4 stop strings of at most 1000 characters"
    assert refused(Job.of, asked(stop=stop)) == (400, message, "invalid_value", "stop")


ONE_CLIP = '; "image_parts": "frames" makes images that follow each other the frames of one clip'


def test_eight_clips_are_taken_and_of_more_images_it_is_said_how_they_are_one():
    assert len(Job.of(asked(*[VIDEO] * 8)).asked) == 8
    for parts, hint in (([VIDEO] * 9, ""), ([VIDEO] * 8 + [IMAGE], ""), ([VIDEO] * 7 + [IMAGE] * 2, ONE_CLIP)):
        message = f"9 clips in one request, expected at most 8{hint}"
        assert refused(Job.of, asked(*parts)) == (400, message, "too_many_clips", "messages")
    assert len(Job.of(asked(*[IMAGE] * 9, image_parts="frames")).asked) == 1
    assert [Job.of(asked(*[IMAGE] * count)).images for count in (1, 2)] == [False, True]


def test_images_that_follow_each_other_become_frames_wherever_their_bytes_are():
    def image(**media: Any) -> dict[str, Any]:
        return {"type": "image_url", "image_url": media}

    parts = [
        image(url="a", fps=3),
        image(data="QQ=="),
        {"type": "input_image", "image_url": "b"},
        VIDEO,
        image(url="c"),
        TEXT,
        image(url="d"),
    ]
    job = Job.of(asked(*parts, image_parts="frames"))
    first, *rest = job.asked
    assert first == MediaUrl(frames=["a", "data:image/jpeg;base64,QQ==", "b"], fps=3)
    assert [(one.url, one.frames) for one in rest] == [("v", None), ("c", None), ("d", None)]
    assert [part["type"] for part in job.messages[0]["content"]] == ["video", "video", "video", "text", "video"]
    (only,) = Job.of(asked(image(data="QQ=="), image(data="QUE="), image(frames=["x"]), image_parts="frames")).asked
    assert (only.data, only.frames) == (
        None,
        ["data:image/jpeg;base64,QQ==", "data:image/jpeg;base64,QUE=", "data:image/jpeg;base64,"],
    )
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
        got = refused(Job.of, asked(messages=[{"role": "user", "content": content}]))
        assert got == (400, "the messages are empty; expected some text", "invalid_value", "messages")
    assert len(Job.of(asked(VIDEO)).asked) == 1
    for role, shown in (("assistant", "assistant"), ("developer", "system")):
        messages = [{"role": "user", "content": "a"}, {"role": role, "content": [VIDEO]}]
        got = refused(Job.of, asked(messages=messages))
        assert got == (400, f"a clip in a message of role {shown}, expected user", "invalid_value", "messages.1")


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


def model(**more: Any) -> SimpleNamespace:
    manifest = SimpleNamespace(frames=16, patch_tokens=100)
    return SimpleNamespace(**{"name": "m", "bundle": SimpleNamespace(manifest=manifest), "encoder": "encoder"} | more)


@pytest.mark.parametrize(
    ("count", "other"), [(8, ", or export with --frames 8"), (1, ", or export with --frames 1"), (0, ""), (-1, "")]
)
def test_only_the_bundle_s_number_of_frames_is_taken(count, other):
    check_frames(model(), None, "a")
    check_frames(model(), 16, "a")
    message = f"a is {count}; this bundle takes 16 frames of every clip: leave it out{other}"
    assert refused(check_frames, model(), count, "a") == (400, message, "unsupported_value", "a")


class TestCheck:
    """Before a clip is decoded; a clip is stored as one of as many bytes as its URL has characters."""

    @pytest.fixture
    def checked(self, monkeypatch):
        """checked(job, llm): what is ready, and the bytes that the request holds of 30; `closed` has the clips that were removed."""
        self.closed: list[str] = []

        async def stored(state, asked):
            url = asked.pop(0).url
            if url == "bad":
                raise ApiError(413, "too large")
            return SimpleNamespace(size=len(url), url=url, close=lambda: self.closed.append(url))

        monkeypatch.setattr(chat, "stored", stored)

        def checked(job: Job, llm: Any) -> tuple[Ready, int]:
            state = SimpleNamespace(models={"m": model(llm=llm)})
            with Memory(100).hold() as held:
                held.grow(30)
                return asyncio.run(check(state, job, held)), held.size

        return checked

    def llm(self, error: Exception | None = None) -> SimpleNamespace:
        def look(messages, gone):
            self.seen = (messages, gone(), gone, threading.current_thread() is threading.main_thread())
            if error:
                raise error

        return SimpleNamespace(check=look)

    def test_its_clips_are_files_and_take_its_body_s_place(self, checked):
        job, llm = Job.of(asked(VIDEO, {"type": "video", "video": "vvvv"}, TEXT)), self.llm()
        ready, held = checked(job, llm)
        assert (held, job.asked, [clip.url for clip in ready.clips]) == (5, [], ["v", "vvvv"])
        assert (ready.job, ready.llm, ready.model.name) == (job, llm, "m")
        messages, gone_then, gone, in_loop = self.seen
        assert (messages, gone_then, in_loop) == (job.messages, False, False) and gone()
        assert not self.closed
        ready.close()
        assert self.closed == ["v", "vvvv"]

    def test_a_clip_that_can_t_be_stored_takes_the_others_with_it(self, checked):
        job = Job.of(asked(VIDEO, {"type": "video", "video": "bad"}, VIDEO))
        with pytest.raises(ApiError, match="too large"):
            checked(job, self.llm())
        assert self.closed == ["v"]

    def test_what_is_refused_is_refused_before_a_clip_is_stored(self, checked):
        def counts(number: int) -> Job:
            return Job.of(asked(VIDEO, mm_processor_kwargs={"num_frames": number}))

        message = '"m" has no LLM; POST /v1/video/tokens gives its tokens'
        assert refused(checked, counts(8), None) == (400, message, "no_llm", "model")
        assert refused(checked, counts(8), self.llm())[3] == "mm_processor_kwargs.num_frames"
        assert checked(counts(16), self.llm())[1] == 1
        for parts, hint in (([IMAGE] * 2, ONE_CLIP), ([IMAGE, VIDEO], "")):
            job = Job.of(asked(*parts))
            with pytest.raises(ContextError) as raised:
                checked(job, self.llm(ContextError("too long")))
            assert str(raised.value) == f"too long{hint}" and len(job.asked) == 2 and self.seen[2]()


class Counted:
    """Metrics that remember; labels: what was counted under which."""

    def __init__(self) -> None:
        self.labels, self.tokens, self.stages_of, self.first, self.usages = [], [], [], [], []
        self.clips = SimpleNamespace(labels=lambda *labels: SimpleNamespace(inc=lambda: self.labels.append(labels)))
        self.tokens_in = SimpleNamespace(inc=lambda count: self.tokens.append(("in", count)))
        self.tokens_out = SimpleNamespace(inc=lambda count: self.tokens.append(("out", count)))
        self.first_token = SimpleNamespace(observe=self.first.append)
        self.stages, self.used = self.stages_of.append, self.usages.append


@pytest.mark.parametrize(("was_there", "label", "stages"), [(True, "hit", []), (False, "miss", [{"decode": 1}])])
def test_a_clip_is_counted_and_its_time_where_it_took_some(was_there, label, stages):
    clip, metrics = SimpleNamespace(tokens=np.zeros((7, 2)), seconds={"decode": 1}), Counted()

    async def get(encoder, media):
        assert (encoder, media) == ("encoder", "media")
        return clip, was_there

    state = SimpleNamespace(clips=SimpleNamespace(get=get), metrics=metrics)
    assert asyncio.run(encode(state, model(), "media", time.monotonic() + 50)) == (clip, was_there)
    assert (metrics.labels, metrics.tokens, metrics.stages_of) == ([(label,)], [("in", 100), ("out", 7)], stages)


@pytest.mark.parametrize(("deadline", "seconds"), [(103.5, 3.5), (100, 0), (90, 0)])
def test_a_clip_has_the_time_up_to_the_deadline(monkeypatch, deadline, seconds):
    waits = []

    async def wait_for(coming, timeout):
        coming.close()
        waits.append(timeout)
        raise asyncio.TimeoutError

    async def get(encoder, media): ...

    monkeypatch.setattr(asyncio, "wait_for", wait_for)
    monkeypatch.setattr(request_clips, "time", SimpleNamespace(monotonic=lambda: 100.0))
    state = SimpleNamespace(clips=SimpleNamespace(get=get), metrics=Counted())
    with pytest.raises(DeadlineError, match=naming("deadline", "clip")):
        asyncio.run(encode(state, model(), "media", deadline))
    assert waits == [seconds]


def answering(pieces: Any = None, **usage: Any) -> Answering:
    compression = {"spec": "nsp", "seconds": {"decode": 0.12345678, "prefill": 9.0}}
    return Answering("id", model(), SimpleNamespace(usage=Usage(**usage)), pieces, compression, 1700)


def test_usage_and_metadata_of_an_answer():
    one = answering(prompt_tokens=30, completion_tokens=4, cached_tokens=20, seconds={"prefill": 1.0000004}, warnings=["w"])
    assert one.usage() == {
        "prompt_tokens": 30, "completion_tokens": 4, "total_tokens": 34, "prompt_tokens_details": {"cached_tokens": 20},
    }  # fmt: skip
    assert one.metadata() == {"compression": {"spec": "nsp", "seconds": {"decode": 0.123457, "prefill": 1.0}}, "warnings": ["w"]}
    assert "warnings" not in answering().metadata()
    assert one.envelope("kind", [1]) == {"id": "id", "object": "kind", "created": 1700, "model": "m", "choices": [1]}


def test_an_answer_as_one_object(monkeypatch):
    metrics, closed = Counted(), []

    async def pieces():
        try:
            for text, finish in (("", None), ("a", None), ("", None), ("b", "length")):
                yield SimpleNamespace(text=text, finish=finish)
        finally:
            closed.append(1)

    one = answering(pieces(), prompt_tokens=3)

    async def begin(*arguments):
        assert arguments == ("state", "ready", 5.0)
        return one

    monkeypatch.setattr(chat, "begin", begin)
    monkeypatch.setattr(chat, "time", SimpleNamespace(perf_counter=lambda: 12.5))

    class State(str):
        pass

    state = State("state")
    state.metrics = metrics
    got = asyncio.run(complete(state, "ready", 5.0, 10.0))
    message = {"role": "assistant", "content": "ab", "refusal": None}
    assert got["choices"] == [{"index": 0, "message": message, "logprobs": None, "finish_reason": "length"}]
    assert (got["object"], got["usage"], got["metadata"]) == ("chat.completion", one.usage(), one.metadata())
    assert (metrics.first, metrics.usages, closed) == ([2.5], [one.chat.usage], [1])
