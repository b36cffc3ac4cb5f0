"""A chat request before and after its answer, on stand-ins for models, clips and metrics: what is checked, stored and returned."""

from __future__ import annotations

import asyncio
import json
import threading
from types import SimpleNamespace
from typing import Any

import pytest

from runtime.core.errors import ContextError
from runtime.llm.chat import Usage
from runtime.server import chat
from runtime.server.chat import Answering, Ready, check, complete
from runtime.server.chat_job import Job
from runtime.server.errors import ApiError
from runtime.server.memory import Memory
from runtime.server.models import ServedModel
from runtime.server.schema import ChatRequest, parse

IMAGE = {"type": "image", "image": "u"}
VIDEO = {"type": "video", "video": "v"}
TEXT = {"type": "text", "text": "what ?"}


def asked(*content: Any, **more: Any) -> ChatRequest:
    return parse(ChatRequest, json.dumps({"model": "m", "messages": [{"role": "user", "content": content}]} | more).encode())


def model(llm: Any = None) -> ServedModel:
    manifest = SimpleNamespace(frames=16, patch_tokens=100)
    return ServedModel("m", SimpleNamespace(manifest=manifest), "encoder", llm)


class TestCheck:
    """Before a clip is decoded; a clip is stored as one of as many bytes as its URL has characters."""

    @pytest.fixture
    def checked(self, monkeypatch):
        """checked(job, llm): what is ready, and the bytes that the request holds of 30; `closed` has the clips that were removed."""
        self.closed: list[str] = []

        def load(media, options):
            if media.url == "bad":
                raise ApiError(413, "too large")
            return SimpleNamespace(size=len(media.url), url=media.url, close=lambda: self.closed.append(media.url))

        monkeypatch.setattr(chat, "load", load)

        def checked(job: Job, llm: Any) -> tuple[Ready, int]:
            state = SimpleNamespace(models={"m": model(llm)}, options="options")
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

        for llm, code, param in ((None, "no_llm", "model"), (self.llm(), "unsupported_value", "mm_processor_kwargs.num_frames")):
            with pytest.raises(ApiError) as refused:
                checked(counts(8), llm)
            assert (refused.value.status, refused.value.code, refused.value.param) == (400, code, param)
        assert checked(counts(16), self.llm())[1] == 1
        for parts, hint in (([IMAGE] * 2, True), ([IMAGE, VIDEO], False)):
            job = Job.of(asked(*parts))
            with pytest.raises(ContextError, match="too long") as raised:
                checked(job, self.llm(ContextError("too long")))
            assert ("image_parts" in str(raised.value)) == hint and len(job.asked) == 2 and self.seen[2]()


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
    first, usages, closed = [], [], []

    async def pieces():
        try:
            for text, finish in (("", None), ("a", None), ("", None), ("b", "length")):
                yield SimpleNamespace(text=text, finish=finish)
        finally:
            closed.append(1)

    one = answering(pieces(), prompt_tokens=3)

    async def begin(*arguments):
        assert arguments == (state, "ready", 5.0)
        return one

    metrics = SimpleNamespace(first_token=SimpleNamespace(observe=first.append), used=usages.append)
    state = SimpleNamespace(metrics=metrics)
    monkeypatch.setattr(chat, "begin", begin)
    monkeypatch.setattr(chat, "time", SimpleNamespace(perf_counter=lambda: 12.5))

    got = asyncio.run(complete(state, "ready", 5.0, 10.0))
    message = {"role": "assistant", "content": "ab", "refusal": None}
    assert got["choices"] == [{"index": 0, "message": message, "logprobs": None, "finish_reason": "length"}]
    assert (got["object"], got["usage"], got["metadata"]) == ("chat.completion", one.usage(), one.metadata())
    assert (first, usages, closed) == ([2.5], [one.chat.usage], [1])
