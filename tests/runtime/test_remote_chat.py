"""A question with the LLM elsewhere: what is sent there, what the answer reports, and that every stream is closed."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from runtime import remote_chat
from runtime.chat import Answer, AskOptions
from runtime.core.errors import BundleError, PromptError, VideoError
from runtime.engine import EngineOptions
from runtime.llm.chat import Piece
from runtime.llm.sampling import Sampling
from runtime.remote_chat import RemoteChat


class FakeLLM:
    """Answers these pieces; an error is raised instead."""

    def __init__(self, *pieces: Piece | Exception):
        self.pieces, self.chats, self.calls = pieces, [], []

    def close(self) -> None:
        self.calls.append("forgotten")

    async def answer(self, chat):
        self.chats.append(chat)
        try:
            for piece in self.pieces:
                if isinstance(piece, Exception):
                    raise piece
                chat.usage.prompt_tokens, chat.usage.warnings = 30, ["another template"]
                yield piece
        finally:
            self.calls.append("closed")


@pytest.fixture
def video(tmp_path) -> Path:
    (tmp_path / "clip.mp4").write_bytes(b"x")
    return tmp_path / "clip.mp4"


def chat_with(llm: FakeLLM) -> RemoteChat:
    clip = SimpleNamespace(indices=(0, 0, 2), repeated=1, notes=["a gap"])
    visual = SimpleNamespace(tokens=np.ones((5, 2), np.float32), clip=clip, seconds={"decode": 100.0, "encode": 200.0})
    bundle = SimpleNamespace(manifest=SimpleNamespace(patch_tokens=40))
    return RemoteChat(SimpleNamespace(bundle=bundle, encode=lambda path: visual), llm)


def test_an_answer_is_streamed_with_the_counts_and_times_of_its_clip(video, monkeypatch):
    ticks = iter(range(5, 9))
    monkeypatch.setattr(remote_chat, "time", SimpleNamespace(perf_counter=lambda: next(ticks)))
    llm = FakeLLM(Piece("a "), Piece(""), Piece("cat"), Piece(finish="stop"), Piece("never"))
    chat = chat_with(llm)
    assert chat.answer == Answer() and chat.warnings == []
    stream = chat.ask(video, "what is it ?", AskOptions(9, Sampling(0.5)))
    assert chat.answer == Answer(
        patch_tokens=40,
        visual_tokens=5,
        frames=[0, 0, 2],
        repeated_frames=1,
        notes=["a gap"],
        seconds={"decode": 100, "encode": 200},
    )
    assert list(stream) == ["a ", "cat"]
    (asked,) = llm.chats
    assert asked.messages == [{"role": "user", "content": [{"type": "video"}, {"type": "text", "text": "what is it ?"}]}]
    assert [(clip.key, clip.tokens.shape) for clip in asked.clips] == [(str(video), (5, 2))]
    assert (asked.max_tokens, asked.sampling) == (9, Sampling(0.5))
    assert (chat.answer.text, chat.answer.prompt_tokens, chat.warnings) == ("a cat", 30, ["another template"])
    assert chat.answer.seconds == {"decode": 100, "encode": 200, "time_to_first_token": 301, "remote": 3}
    assert llm.calls == ["forgotten", "closed"]


def test_every_question_has_an_answer_of_its_own(video):
    llm = FakeLLM(Piece("a", "length"))
    chat = chat_with(llm)
    for _ in range(2):
        assert list(chat.ask(video, "what ?")) == ["a"] and chat.answer.text == "a"
    assert [(one.max_tokens, one.sampling) for one in llm.chats] == [(128, Sampling())] * 2


@pytest.mark.parametrize("how", ["left", "failed"])
def test_the_remote_s_stream_is_closed_when_the_answer_is_left_or_fails(video, how):
    llm = FakeLLM(Piece("a"), VideoError("it broke"))
    chat = chat_with(llm)
    stream = chat.ask(video, "what ?")
    assert next(stream) == "a" and llm.calls == ["forgotten"]
    if how == "left":
        stream.close()
    else:
        with pytest.raises(VideoError, match="it broke"):
            next(stream)
    assert llm.calls == ["forgotten", "closed"]
    assert chat.answer.prompt_tokens == 30 and chat.warnings == ["another template"] and "remote" in chat.answer.seconds


@pytest.mark.parametrize("question", ["", " \n\t"])
def test_a_question_must_have_some_text(video, question):
    chat = chat_with(FakeLLM())
    with pytest.raises(PromptError):
        chat.ask(video, question)
    with pytest.raises(VideoError):
        chat.ask(video.parent / "none.mp4", "what ?")
    chat.check(str(video), "what ?")


@pytest.mark.parametrize("arguments", [(), ("openvino", EngineOptions(threads=2))])
def test_opening_needs_the_vision_encoder_alone(monkeypatch, arguments):
    asked, bundle = [], SimpleNamespace(model=lambda name: asked.append(name))
    vision = SimpleNamespace(bundle=bundle)
    monkeypatch.setattr(remote_chat.VisionEncoder, "open", lambda *passed: asked.append(passed) or vision)
    monkeypatch.setattr(remote_chat, "RemoteLLM", lambda *passed: passed)
    chat = RemoteChat.open(bundle, "the remote", *arguments)
    assert (chat.vision, chat.bundle, chat.llm) == (vision, bundle, (bundle, "the remote"))
    assert asked == ["vision", (bundle, *(arguments or ("auto", EngineOptions())))]

    def none(name: str) -> None:
        raise BundleError("no vision graph")

    bundle.model = none
    with pytest.raises(BundleError, match="no vision graph"):
        RemoteChat.open(bundle, "the remote")
