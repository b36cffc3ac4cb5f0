"""What the local LLM asks its scheduler for and passes on, with a scheduler whose answers are scripted."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace

import numpy as np
import pytest

from runtime.core.errors import ContextError, EngineError
from runtime.engine import EngineOptions
from runtime.llm import local
from runtime.llm.chat import Chat, ClipTokens, Piece, Usage
from runtime.llm.generation import keys_of
from runtime.llm.local import LocalLLM
from runtime.llm.sampling import Sampling
from runtime.prompt import PromptIds

PIECES = [Piece("a "), Piece(""), Piece("cat", "stop"), Piece("never")]


class FakePrompt:
    """Every message has the ids `texts`, a clip 4 tokens."""

    def __init__(self, texts: tuple[list[int], ...]):
        self.texts, self.tokenizer = texts, SimpleNamespace(longest_token=9)
        self.bundle = SimpleNamespace(manifest=SimpleNamespace(tokens_per_clip=4))

    def message_ids(self, messages: list) -> PromptIds:
        return PromptIds(self.texts)

    def embed(self, ids: PromptIds, *clips: np.ndarray) -> tuple:
        assert ids.texts is self.texts
        return (("embeddings around", *clips),)


class FakeScheduler:
    """Answers `pieces` at once; each counts as one more id."""

    def __init__(self, pieces: list[Piece], max_context: int = 100):
        self.decoder, self.alive, self.busy = SimpleNamespace(max_context=max_context), True, lambda: "busy"
        self.pieces, self.requests, self.cancelled, self.closed = pieces, [], 0, 0

    def submit(self, request, emit) -> SimpleNamespace:
        self.requests.append(request)
        for piece in self.pieces:
            emit(piece)
        return SimpleNamespace(ids=[7, 8], cached=5, seconds={"prefill": 0.25}, cancel=self.cancel)

    def cancel(self) -> None:
        self.cancelled += 1

    def close(self) -> None:
        self.closed += 1


@pytest.fixture
def opened():
    """opened(pieces, max_context) -> (the LLM, its scheduler)."""

    def make(pieces=PIECES, max_context=100):
        scheduler = FakeScheduler(pieces, max_context)
        return LocalLLM(FakePrompt(([1, 2], [3])), scheduler), scheduler

    return make


def answered(llm: LocalLLM, chat: Chat) -> list[Piece]:
    async def collect() -> list[Piece]:
        return [piece async for piece in llm.answer(chat)]

    return asyncio.run(asyncio.wait_for(collect(), 5))


def clip(rows: int = 4) -> ClipTokens:
    return ClipTokens("clip", np.full((rows, 2), 0.5, np.float32))


def test_a_request_has_what_the_chat_has(opened):
    llm, scheduler = opened()
    sampling = Sampling(0.5, 0.9, 3)
    chat = Chat([], [about := clip()], 17, sampling, ["zz"], 1e12)
    assert answered(llm, chat) == PIECES[:3]
    (request,) = scheduler.requests
    assert request.keys == [1, 2, ("clip", 0), ("clip", 1), ("clip", 2), ("clip", 3), 3]
    assert request.embeddings == ("embeddings around", about.tokens)
    assert (request.max_tokens, request.sampling, request.stop, request.deadline) == (17, sampling, ["zz"], 1e12)
    assert chat.usage == Usage(prompt_tokens=7, completion_tokens=2, cached_tokens=5, seconds={"prefill": 0.25})
    assert scheduler.cancelled == 1


@pytest.mark.parametrize("asked", [None, 0])
def test_an_answer_whose_length_is_not_asked_for_has_512_tokens(opened, asked):
    llm, scheduler = opened()
    answered(llm, Chat([], [clip()], asked))
    assert scheduler.requests[0].max_tokens == 512


def test_an_error_in_a_piece_is_raised_and_the_work_stopped(opened):
    llm, scheduler = opened([Piece("a"), Piece(error=EngineError("out of memory"))])
    with pytest.raises(EngineError, match="out of memory"):
        answered(llm, Chat([], [clip()]))
    assert scheduler.cancelled == 1


@pytest.mark.parametrize(("max_context", "fits"), [(7, True), (6, False)])
def test_prompt_and_clips_must_fit_the_context(opened, max_context, fits):
    llm, scheduler = opened(max_context=max_context)
    assert (llm.max_context, llm.tokens_per_clip) == (max_context, 4)
    if fits:
        assert llm.check([]) == 2 + 4 + 1 and answered(llm, Chat([], [clip()]))
        return
    with pytest.raises(ContextError, match=r"7 .* 6"):
        llm.check([])
    with pytest.raises(ContextError, match="7"):
        answered(llm, Chat([], [clip()]))
    assert not scheduler.requests


def test_what_is_checked_is_the_length_first(opened, monkeypatch):
    llm, _ = opened()
    asked = []
    monkeypatch.setattr(local, "check_length", lambda *arguments: asked.append(arguments))
    assert llm.check(["messages"], len) == 7 and llm.check(["messages"]) == 7
    assert asked[0] == (llm.prompt.tokenizer, ["messages"], 100, len)
    assert asked[1][:3] == asked[0][:3] and asked[1][3]() is False


def test_clips_stand_between_the_texts():
    clips = [ClipTokens("a", np.ones((2, 2), np.float32)), ClipTokens("b", np.zeros((1, 2), np.float16))]
    assert keys_of(PromptIds(([1], [], [2, 3])), clips) == [1, ("a", 0), ("a", 1), ("b", 0), 2, 3]
    assert keys_of(PromptIds(([4, 5],)), []) == [4, 5]


def test_its_state_is_that_of_the_scheduler(opened):
    llm, scheduler = opened()
    assert llm.busy() == "busy" and llm.healthy
    llm.close()
    assert scheduler.closed == 1
    scheduler.alive = False
    llm.close()
    assert scheduler.closed == 1 and not llm.healthy


def test_a_piece_for_a_loop_that_is_gone_is_dropped():
    loop, pieces = asyncio.new_event_loop(), asyncio.Queue()
    local._call(loop, pieces, Piece("kept"))
    loop.run_until_complete(asyncio.sleep(0))
    loop.close()
    local._call(loop, pieces, Piece("dropped"))
    assert pieces.get_nowait() == Piece("kept") and pieces.empty()


@pytest.mark.parametrize("arguments", [(), ("openvino", EngineOptions(threads=2))])
def test_a_decoder_is_opened_once_for_bundles_that_share_it(monkeypatch, arguments):
    first, second = (SimpleNamespace(manifest=SimpleNamespace(tokens_per_clip=count)) for count in (4, 9))
    asked = []
    monkeypatch.setattr(local, "Prompt", lambda bundle: SimpleNamespace(bundle=bundle))
    monkeypatch.setattr(local, "Scheduler", lambda decoder, prompt: SimpleNamespace(decoder=decoder, prompt=prompt))
    opening = SimpleNamespace(open=lambda *passed: asked.append(passed) or SimpleNamespace(max_context=50))
    monkeypatch.setattr(local, "SlotDecoder", opening)
    llm = LocalLLM.open(first, 3, *arguments)
    assert asked == [(first, 3, *(arguments or ("auto", EngineOptions())))] and llm.scheduler.prompt is llm.prompt
    other = llm.sharing(second)
    assert (
        other.shared is llm.shared is llm.scheduler and (llm.tokens_per_clip, other.tokens_per_clip) == (4, 9) and len(asked) == 1
    )
