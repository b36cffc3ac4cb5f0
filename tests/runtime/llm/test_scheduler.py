"""Continuous batching gives every request the ids that it gets alone, in order of arrival, and reuses equal beginnings."""

from __future__ import annotations

import threading
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from runtime.core.errors import ContextError, EngineError
from runtime.llm import scheduler as module
from runtime.llm.chat import Cancelled, DeadlineError, Piece
from runtime.llm.decoder import LocalDecoder
from runtime.llm.generation import Request
from runtime.llm.sampling import Sampling
from runtime.llm.scheduler import Scheduler
from runtime.llm.slots import SlotDecoder
from runtime.prompt import Prompt


class Asked:
    """One request and everything that came back; order: all that have ended, the first first."""

    def __init__(self, scheduler: Scheduler, request: Request, order: list[Asked] | None = None):
        self.pieces: list[Piece] = []
        self.order = [] if order is None else order
        self._changed = threading.Condition()
        self.generation = scheduler.submit(request, self._emit)

    def _emit(self, piece: Piece) -> None:
        with self._changed:
            self.pieces.append(piece)
            if piece.last:
                self.order.append(self)
            self._changed.notify()

    @property
    def ended(self) -> bool:
        return bool(self.pieces) and self.pieces[-1].last

    def wait(self, pieces: int | None = None) -> Asked:
        """Until the end, or until there are so many pieces."""
        with self._changed:
            assert self._changed.wait_for(lambda: self.ended if pieces is None else len(self.pieces) >= pieces, 30)
        return self


@pytest.fixture
def scheduler(bundle):
    one = Scheduler(SlotDecoder.open(bundle, 4, "onnx"), Prompt(bundle))
    yield one
    one.close()


@pytest.fixture
def endless(scheduler, monkeypatch):
    monkeypatch.setattr(scheduler.prompt, "eos", frozenset())
    return scheduler


def _request(bundle, seed: int, length: int, **more) -> Request:
    rng = np.random.default_rng(seed)
    ids = rng.integers(6, 60, length).tolist()
    return Request(ids, np.asarray(Prompt(bundle).embeddings[ids]), **more)


def _alone(bundle, request: Request, choose=None) -> list[int]:
    prompt = Prompt(bundle)
    conversation = LocalDecoder.open(bundle, "onnx").conversation()
    logits = conversation.extend(request.embeddings[None])
    choose = choose or request.sampling.chooser()
    ids = [choose(logits)]
    while len(ids) < request.max_tokens:
        ids.append(choose(conversation.extend(prompt.embeddings[ids[-1:]][None])))
    return ids


@pytest.mark.parametrize("sampling", [Sampling(), Sampling(1.5, 0.9, 11)], ids=["greedy", "sampled"])
def test_ids_are_those_of_each_request_alone(bundle, endless, sampling):
    requests = [_request(bundle, n, 5 + 37 * n % 300, max_tokens=3 + 7 * n, sampling=sampling) for n in range(11)]
    asked = [Asked(endless, request) for request in requests]
    for one, request in zip(asked, requests, strict=True):
        assert one.wait().generation.ids == _alone(bundle, request)
        assert one.pieces[-1].finish == "length"


def test_a_repetition_penalty_counts_the_prompt_the_clip_and_the_answer(bundle, endless, monkeypatch):
    request = _request(bundle, 3, 30, max_tokens=20)
    plain = _alone(bundle, request)
    monkeypatch.setattr(endless.prompt, "repetition_penalty", 50.0)
    monkeypatch.setattr(endless.prompt, "video_token_id", plain[0])
    about_a_clip = replace(request, keys=[*(("clip", row) for row in range(5)), *request.keys[5:]])
    choose = Sampling().chooser({plain[0], *request.keys[5:]}, 50.0)
    got = Asked(endless, about_a_clip).wait().generation.ids
    assert got == _alone(bundle, request, choose)
    assert got[0] != plain[0]


def test_requests_start_in_the_order_of_their_arrival(bundle, endless):
    order: list[Asked] = []
    asked = [Asked(endless, _request(bundle, n, 20, max_tokens=12), order) for n in range(12)]
    for one in asked:
        one.wait()
    assert order == asked


def test_a_long_prompt_does_not_stop_running_answers(bundle, endless):
    running = Asked(endless, _request(bundle, 0, 5, max_tokens=1000)).wait(pieces=5)
    long = Asked(endless, _request(bundle, 1, 1400, max_tokens=1))
    before = len(running.generation.ids)
    long.wait()
    assert len(running.generation.ids) - before >= 1400 // 128 - 1  # a token for every chunk of the prompt


def test_an_equal_beginning_is_not_computed_again(bundle, endless):
    base = _request(bundle, 0, 200, max_tokens=4)
    first = Asked(endless, base).wait()
    ids = [*base.keys[:150], *range(10, 30)]
    more = Request(ids, np.asarray(Prompt(bundle).embeddings[ids]), max_tokens=6)
    second = Asked(endless, more).wait()
    assert first.generation.cached == 0 and second.generation.cached == 150
    assert second.generation.ids == _alone(bundle, more)
    assert set(second.generation.seconds) == {"queue", "prefill", "decode"}
    again = Asked(endless, more).wait()  # all but the last position, whose logits are needed
    assert again.generation.cached == len(ids) - 1 and again.generation.ids == second.generation.ids


def test_an_answer_is_part_of_what_can_be_reused(bundle, endless):
    base = _request(bundle, 3, 60, max_tokens=8)
    first = Asked(endless, base).wait()
    ids = [*base.keys, *first.generation.ids, 12, 13]
    more = Asked(endless, Request(ids, np.asarray(Prompt(bundle).embeddings[ids]), max_tokens=2)).wait()
    assert more.generation.cached == 60 + 7  # the last id of an answer is never fed back


def test_the_same_text_behind_another_clip_is_not_the_same_beginning(bundle, endless):
    rng = np.random.default_rng(0)
    tokens = [rng.normal(0, 0.1, (8, bundle.manifest.hidden_size)).astype(np.float32) for _ in range(2)]
    requests = [
        Request([1, 7, *((clip, row) for row in range(8)), 9], np.concatenate([np.zeros((2, 128), np.float32), rows, rows[:1]]), 3)
        for clip, rows in zip("ab", tokens, strict=True)
    ]
    assert Asked(endless, requests[0]).wait().generation.cached == 0
    assert Asked(endless, requests[1]).wait().generation.cached <= 2


def test_clips_that_take_turns_keep_their_caches(bundle, endless):
    """All of them begin with the template's tokens; that must not make one take another's slot."""
    embeddings = Prompt(bundle).embeddings
    table = embeddings[range(len(embeddings))]
    template = [1, 7, 9]

    def ask(clip: int) -> int:
        ids = [*template, *np.random.default_rng(clip).integers(10, 60, 50).tolist()]
        return Asked(endless, Request(ids, table[ids], 2)).wait().generation.cached

    assert [ask(clip) for clip in range(4)] == [0, 0, 0, 0]
    assert [ask(clip) for clip in (0, 3, 1, 2, 0)] == [52] * 5
    assert ask(9) == 3  # nobody's beginning: it takes the slot that was idle for longest, and that one is clip 3's
    assert [ask(clip) for clip in (1, 2, 0)] == [52] * 3


def test_of_two_caches_the_one_that_has_more_in_common_is_taken_over(bundle, endless):
    first, other = _request(bundle, 0, 100, max_tokens=2), _request(bundle, 1, 100)
    keys = [*first.keys[:80], *other.keys[80:]]
    second = Request(keys, np.asarray(Prompt(bundle).embeddings[keys]), max_tokens=2)
    with endless._changed:  # both wait before either gets a slot, so that they get two
        asked = [Asked(endless, first), Asked(endless, second)]
    assert [one.wait().generation.cached for one in asked] == [0, 0]
    for request in (first, second):
        more = [*request.keys, *other.keys[:5]]
        again = Request(more, np.asarray(Prompt(bundle).embeddings[more]), max_tokens=1)
        assert Asked(endless, again).wait().generation.cached == 100


def test_a_cancelled_request_frees_its_slot(bundle, endless):
    asked = [Asked(endless, _request(bundle, n % 4, 5, max_tokens=1400)) for n in range(5)]  # answers that have text
    for one in asked[:4]:
        one.wait(pieces=1)
    busy = endless.busy()
    assert (busy["running"], busy["waiting"]) == (4, 1) and busy["kv_positions"] >= 20
    asked[0].generation.cancel()
    assert isinstance(asked[0].wait().pieces[-1].error, Cancelled)
    asked[4].wait(pieces=1)
    for one in asked[1:]:
        one.generation.cancel()
        one.wait()
    assert endless.busy() == {"running": 0, "waiting": 0, "kv_positions": 0}


def test_a_deadline_ends_requests_that_run_and_that_wait(bundle, endless, monkeypatch):
    clock = SimpleNamespace(now=100.0, monotonic=lambda: clock.now)
    monkeypatch.setattr(module, "time", clock)
    asked = [Asked(endless, _request(bundle, n, 5, max_tokens=1400, deadline=101.0)) for n in range(6)]
    for one in asked[:4]:
        one.wait(pieces=1)
    clock.now = 101.5
    assert all(isinstance(one.wait().pieces[-1].error, DeadlineError) for one in asked)
    assert all(asked[slot].generation.ids for slot in range(4)) and not asked[4].generation.ids


class FailingSampling(Sampling):
    """Chooses two tokens and then fails."""

    def chooser(self, seen=(), penalty=1.0):
        choose, left = super().chooser(seen, penalty), [None, None]

        def choose_twice(logits):
            left.pop()
            return choose(logits)

        return choose_twice


@pytest.mark.parametrize("where", ["sampling", "tokenizer", "stop strings", "embedding", "logits", "prefill", "asker"])
def test_an_error_in_one_generation_ends_that_one_alone(bundle, endless, monkeypatch, where):
    requests = [_request(bundle, n, 40 + n, max_tokens=12) for n in range(4)]
    if where == "sampling":
        requests[1] = replace(requests[1], sampling=FailingSampling())
    alone = [_alone(bundle, request) for request in requests if not isinstance(request.sampling, FailingSampling)]
    decoder, submit, spoilt = endless.decoder, endless.submit, []

    def fail(*_):
        raise RuntimeError("injected")

    def submit_one(request, emit):
        generation = submit(request, emit)  # the scheduler waits for the lock that the test holds
        if request is requests[1]:
            spoilt.append(generation)
            if where == "tokenizer":
                generation._stream.push = fail
            if where == "stop strings":
                generation._stops.push = fail
        return generation

    def step(slots, embeddings):
        logits = SlotDecoder.step(decoder, slots, embeddings)
        if where == "logits" and spoilt[0].slot in slots and len(spoilt[0].ids) == 3:
            logits[slots.index(spoilt[0].slot), 5] = np.nan
        return logits

    def extend(slot, embeddings):
        return fail() if where == "prefill" and slot == spoilt[0].slot else SlotDecoder.extend(decoder, slot, embeddings)

    class Table:
        def __getitem__(self, ids):
            return fail() if len(spoilt[0].ids) == 3 and ids == spoilt[0].ids[-1:] else table[ids]

    table = endless.prompt.embeddings
    monkeypatch.setattr(endless, "submit", submit_one)
    monkeypatch.setattr(decoder, "step", step)
    monkeypatch.setattr(decoder, "extend", extend)
    if where == "embedding":
        monkeypatch.setattr(endless.prompt, "embeddings", Table())
    with endless._changed:
        asked = [Asked(endless, request) for request in requests]
        if where == "asker":
            asked[1].generation.emit = lambda piece: fail() if not piece.last else asked[1]._emit(piece)
    ended = [one.wait() for one in asked]
    assert ended[1].pieces[-1].error is not None
    others = [one for number, one in enumerate(ended) if number != 1]
    assert [one.pieces[-1].finish for one in others] == ["length"] * 3
    assert [one.generation.ids for one in others] == (alone if len(alone) == 3 else [alone[0], *alone[2:]])
    assert endless.alive and endless.busy()["running"] == 0


def test_a_step_that_fails_is_tried_for_each_by_itself(bundle, endless, monkeypatch):
    requests = [_request(bundle, n, 30, max_tokens=6) for n in range(3)]
    alone = [_alone(bundle, request) for request in requests]
    decoder = endless.decoder

    def fails_midway(slots, embeddings):
        decoder.lengths[slots[0]] += 1  # as an engine that takes one conversation at a time fails at the second
        raise RuntimeError("out of memory")

    monkeypatch.setattr(decoder, "step", fails_midway)
    asked = [Asked(endless, request) for request in requests]
    assert [one.wait().generation.ids for one in asked] == alone


def test_a_failed_run_fails_its_requests_and_no_later_ones(bundle, endless, monkeypatch):
    """What a failed run left in its cache is not taken for what should be there."""
    request = _request(bundle, 0, 30, max_tokens=5)
    expected = _alone(bundle, request)
    decoder = endless.decoder

    def spoil(slot, embeddings):
        SlotDecoder.extend(decoder, slot, np.zeros_like(embeddings))
        raise RuntimeError("out of memory")

    for broken in ("step", "extend"):
        with monkeypatch.context() as patch:
            patch.setattr(decoder, "extend", spoil)
            if broken == "step":  # the prompt is computed, the first token's step is not, nor its second try
                Asked(endless, replace(request, max_tokens=1)).wait()
                patch.setattr(decoder, "step", lambda slots, rows: spoil(slots[0], rows))
            assert isinstance(Asked(endless, request).wait().pieces[-1].error, RuntimeError)
        again = Asked(endless, request).wait().generation
        assert again.ids == expected and again.cached == 0 and endless.alive


def test_the_cache_ends_an_answer(bundle, endless):
    request = _request(bundle, 0, endless.decoder.max_context - 3, max_tokens=50)
    one = Asked(endless, request).wait()
    assert len(one.generation.ids) == 4 and one.pieces[-1].finish == "length"
    with pytest.raises(ContextError):
        endless.submit(_request(bundle, 0, endless.decoder.max_context + 1), lambda _: None)


def test_closing_ends_what_runs_and_what_waits(bundle):
    scheduler = Scheduler(SlotDecoder.open(bundle, 1, "onnx"), Prompt(bundle))
    asked = [Asked(scheduler, _request(bundle, n, 5, max_tokens=1400)) for n in range(2)]
    scheduler.close()
    assert all(one.ended for one in asked) and not scheduler.alive


def test_a_scheduler_that_is_closed_takes_no_more_requests():
    closed = []
    decoder = SimpleNamespace(slots=1, max_context=8, lengths=[0], close=lambda: closed.append(True))
    prompt = SimpleNamespace(video_token_id=4, repetition_penalty=1.0, eos=frozenset(), tokenizer=None)
    scheduler = Scheduler(decoder, prompt)
    assert scheduler.alive and not closed
    scheduler.close()
    with pytest.raises(EngineError):  # nobody would answer
        scheduler.submit(Request([5, 6], np.zeros((2, 4), np.float32)), lambda _: None)
    assert (scheduler.busy()["waiting"], scheduler.alive, closed) == (0, False, [True])
