"""The scheduler one round at a time, without its thread, on a decoder whose next id is always the last one and 1."""

from __future__ import annotations

import threading
from types import SimpleNamespace

import numpy as np
import pytest

from runtime.core.errors import ContextError, EngineError
from runtime.llm import generation as one_generation
from runtime.llm import scheduler as module
from runtime.llm.chat import Cancelled, DeadlineError, Piece
from runtime.llm.generation import Generation, Request
from runtime.llm.sampling import Sampling
from runtime.llm.scheduler import Scheduler

END, HALF = 26, 20  # the id that ends an answer, and one whose bytes are half a character


class Decoder:
    """Logits [27] choose the last embedding's id and 1; `ran`: what each run got. `broken`: slots whose runs fail."""

    def __init__(self, slots: int, max_context: int):
        self.slots, self.max_context, self.lengths, self.chunk = slots, max_context, [0] * slots, 256
        self.ran, self.broken, self.closed = [], set(), 0

    def extend(self, slot: int, rows: np.ndarray) -> np.ndarray:
        self.ran.append((slot, len(rows)))
        if slot in self.broken:
            raise RuntimeError("out of memory")
        self.lengths[slot] += len(rows)
        return np.eye(27, dtype=np.float32)[int(rows[-1, 0]) + 1]

    def step(self, slots: list[int], rows: np.ndarray) -> np.ndarray:
        self.ran.append((list(slots), rows[:, 0].tolist()))
        for slot in slots:
            self.lengths[slot] += 1
            if slot in self.broken:
                raise RuntimeError("out of memory")
        return np.eye(27, dtype=np.float32)[rows[:, 0].astype(int) + 1]

    def close(self) -> None:
        self.closed += 1


class Table:
    """Embeddings [n, 1]: the ids. `missing`: an id that has none."""

    missing = None

    def __getitem__(self, ids: list[int]) -> np.ndarray:
        if self.missing in ids:
            raise RuntimeError("no row")
        return np.array(ids, np.float32)[:, None]


class Prompt(SimpleNamespace):
    def __init__(self):
        super().__init__(video_token_id=4, repetition_penalty=1.0, eos=frozenset([END]), embeddings=Table(), tokenizer=self)

    @staticmethod
    def decode(ids: list[int]) -> str:
        return "".join("\ufffd" if token == HALF else chr(96 + token) for token in ids)  # 1 is "a"


class Thread:
    """A thread that is not started."""

    def __init__(self, target, **more):
        self.more, self.joined, self.started = more, 0, 0

    def start(self) -> None:
        self.started += 1

    def join(self) -> None:
        self.joined += 1

    def is_alive(self) -> bool:
        return not self.joined


@pytest.fixture
def opened(monkeypatch):
    """opened(slots, max_context) -> a scheduler that does nothing by itself."""
    monkeypatch.setattr(module, "threading", SimpleNamespace(Thread=Thread, Condition=threading.Condition))
    return lambda slots=2, max_context=1000: Scheduler(Decoder(slots, max_context), Prompt())


def asked(scheduler: Scheduler, keys, **more) -> SimpleNamespace:
    """A request, and the pieces that come back."""
    embeddings = np.array([[key if isinstance(key, int) else 0] for key in keys], np.float32)
    pieces: list[Piece] = []
    generation = scheduler.submit(Request(keys, embeddings, **more), pieces.append)
    return SimpleNamespace(generation=generation, pieces=pieces)


def busy(scheduler: Scheduler) -> tuple[float, ...]:
    """Generations that run, that wait, and KV positions."""
    return tuple(scheduler.busy()[name] for name in ("running", "waiting", "kv_positions"))


def text_of(one: SimpleNamespace) -> list[tuple[str, str | None]]:
    return [(piece.text, piece.finish) for piece in one.pieces]


def finished(scheduler: Scheduler, one: SimpleNamespace) -> SimpleNamespace:
    for _ in range(50):
        if one.pieces and one.pieces[-1].last:
            return one
        scheduler._round()
    raise AssertionError("no end")


def test_defaults():
    request = Request([1], np.zeros((1, 1)))
    assert (request.max_tokens, request.sampling, request.stop, request.deadline) == (128, Sampling(), (), float("inf"))
    assert Piece() == Piece("", None, None)
    assert [piece.last for piece in (Piece("x"), Piece("x", "stop"), Piece(error=ValueError()))] == [False, True, True]


def test_its_thread_does_not_keep_the_process(opened):
    one = opened()
    assert one._thread.more == {"name": "scheduler", "daemon": True} and one._thread.started == 1
    assert one.alive and busy(one) == (0, 0, 0)


def test_a_long_prompt_takes_256_positions_a_round_and_128_beside_an_answer(opened):
    one = opened(3)
    first = asked(one, [1] * 300)
    one._round()
    assert one.decoder.ran == [(0, 256)] and busy(one) == (1, 0, 256)
    one._round()
    assert one.decoder.ran[1:] == [(0, 44)] and first.generation.ids == [2]
    second, third = asked(one, [2] * 129), asked(one, [3] * 5)
    assert busy(one)[1] == 2
    one._round()
    assert one.decoder.ran[2:] == [(1, 128), ([0], [2.0])]
    one._round()
    assert one.decoder.ran[4:] == [(1, 1), ([0], [3.0])] and second.generation.ids == [3] and third.generation.ids == []
    one._round()
    assert one.decoder.ran[6:] == [(2, 5), ([0, 1], [4.0, 3.0])]
    assert busy(one)[::2] == (3, 303 + 130 + 5)
    assert first.generation.ids == [2, 3, 4, 5] and second.generation.ids == [3, 4] and third.generation.ids == [4]
    assert text_of(first) == [("b", None), ("c", None), ("d", None), ("e", None)]


@pytest.mark.parametrize(
    ("begin", "more", "pieces"),
    [
        (23, {}, [("x", None), ("y", None), ("", "stop")]),
        (1, {"max_tokens": 1}, [("b", "length")]),
        (1, {"max_tokens": 3}, [("b", None), ("c", None), ("d", "length")]),
        (23, {"max_tokens": 2}, [("x", None), ("y", "length")]),
        (1, {"stop": ["d"]}, [("b", None), ("c", None), ("", "stop")]),
        (1, {"stop": ["cde"]}, [("b", None), ("", "stop")]),
        (1, {"stop": ["cdx"], "max_tokens": 3}, [("b", None), ("cd", "length")]),
        (22, {"stop": ["xyz"]}, [("w", None), ("xy", "stop")]),
        (18, {"max_tokens": 2}, [("s", None), ("\ufffd", "length")]),
        (18, {"max_tokens": 2, "stop": ["\ufffd"]}, [("s", None), ("", "stop")]),
        (18, {"max_tokens": 3}, [("s", None), ("\ufffdu", "length")]),
    ],
)
def test_an_answer_comes_in_pieces_and_its_end_is_text_of(opened, begin, more, pieces):
    """Ids follow `begin`; what may be a stop string, or half a character, waits until the next one decides."""
    one = opened(1)
    assert text_of(finished(one, asked(one, [begin], **more))) == pieces
    assert busy(one)[:2] == (0, 0)


def test_a_full_cache_ends_an_answer_and_a_longer_prompt_is_refused(opened):
    one = opened(1, max_context=4)
    answer = finished(one, asked(one, [1, 2]))
    assert text_of(answer) == [("c", None), ("d", None), ("e", "length")] and one.decoder.lengths == [4]
    assert text_of(finished(one, asked(one, [5, 5, 5, 5]))) == [("f", "length")]
    with pytest.raises(ContextError, match=r"5 .* 4"):
        asked(one, [5] * 5)
    assert busy(one)[1] == 0


def test_a_penalty_sees_a_clip_as_its_placeholder(opened):
    one, seen = opened(), []
    one.prompt.repetition_penalty = 1.5
    sampling = SimpleNamespace(chooser=lambda ids, penalty: seen.append((list(ids), penalty)))
    asked(one, [1, ("clip", 0), ("clip", 1), 9], sampling=sampling)
    assert seen == [([1, 4, 4, 9], 1.5)]


def test_requests_get_free_slots_in_turn_and_the_rest_wait(opened):
    one = opened(2)
    requests = [asked(one, [key, key], max_tokens=1) for key in (1, 2, 3)]
    one._admit()
    assert [request.generation.slot for request in requests] == [0, 1, -1] and busy(one)[:2] == (2, 1)
    assert list(requests[0].generation.seconds) == ["queue"] and not requests[2].generation.seconds
    for request in requests:
        finished(one, request)
    assert requests[2].generation.slot == 0 and one.caches.filled == [[3, 3], [2, 2]]
    assert [list(request.generation.seconds) for request in requests] == [["queue", "prefill", "decode"]] * 3


def test_the_seconds_of_the_stages_are_those_that_passed(opened, monkeypatch):
    clock = SimpleNamespace(now=10.0, perf_counter=lambda: clock.now)
    monkeypatch.setattr(one_generation, "time", clock)
    one = opened(1)
    request = asked(one, [1, 2], max_tokens=3)
    for now in (11.0, 13.0, 17.0):
        clock.now = now
        one._round()
    assert request.generation.seconds == {"queue": 1, "prefill": 0, "decode": 6}
    generation = Generation(Request([1], np.zeros((1, 1))), one.prompt)
    for clock.now in (18.0, 20.0):
        generation.lap("x")
    assert generation.seconds == {"x": 3}


def test_what_nobody_waits_for_is_dropped_wherever_it_is(opened, monkeypatch):
    one = opened(2)
    monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: 50.0))
    kept, running = asked(one, [1], deadline=50.0), asked(one, [2])
    one._round(), one._round()
    waiting, late, patient = asked(one, [3]), asked(one, [4], deadline=49.9), asked(one, [5])
    running.generation.cancel()
    waiting.generation.cancel()
    assert running.generation.cancelled and not kept.generation.cancelled
    one._drop()
    assert [type(request.pieces[-1].error) for request in (running, waiting, late)] == [Cancelled, Cancelled, DeadlineError]
    assert busy(one)[:2] == (1, 1) and not kept.pieces[-1].last and not patient.pieces
    assert list(one._waiting) == [patient.generation]
    assert "decode" in running.generation.seconds and "decode" not in waiting.generation.seconds


def test_a_prompt_that_fails_ends_alone_and_its_slot_is_empty(opened):
    one = opened(2)
    first, second = asked(one, [1, 1]), asked(one, [2, 2])
    one._round()
    one.decoder.broken = {1}
    one._round()
    assert str(second.pieces[-1].error) == "out of memory" and one.caches.filled[1] == [] and busy(one)[0] == 1
    assert first.generation.ids == [2, 3]


def test_a_step_that_fails_is_repeated_for_each_alone(opened, caplog):
    one = opened(2)
    first, second = asked(one, [1, 1]), asked(one, [5, 5])
    one._round(), one._round()
    assert (first.generation.ids, second.generation.ids) == ([2, 3], [6])
    one.decoder.broken = {1}
    one._round()
    assert one.decoder.ran[-3:] == [([0, 1], [3.0, 6.0]), (0, 1), (1, 1)]
    assert one.decoder.lengths[0] == len(one.caches.filled[0]) == 4 and one.caches.filled == [[1, 1, 2, 3], []]
    assert first.generation.ids == [2, 3, 4] and str(second.pieces[-1].error) == "out of memory"
    (record,) = caplog.records
    assert record.levelname == "WARNING" and "2 answers" in record.message and "out of memory" in record.message


def test_an_id_without_an_embedding_ends_its_answer_alone(opened):
    one = opened(2)
    first, second = asked(one, [1]), asked(one, [5])
    one._round(), one._round()
    one.prompt.embeddings.missing = 6
    one._round()
    assert first.generation.ids == [2, 3, 4] and str(second.pieces[-1].error) == "no row"
    assert one.decoder.ran[-1] == ([0], [3.0])
    one.prompt.embeddings.missing = 4
    one._round()  # no answer is left to run
    assert str(first.pieces[-1].error) == "no row" and one.decoder.ran[-1] == ([0], [3.0]) and busy(one)[0] == 0


def test_a_token_that_can_t_be_chosen_ends_its_answer_alone(opened):
    one = opened(2)
    request = asked(one, [1])

    def no_number(slot: int, rows: np.ndarray) -> np.ndarray:
        return np.full(27, np.nan, np.float32)

    one.decoder.extend = no_number
    one._round()
    assert isinstance(request.pieces[-1].error, EngineError) and busy(one)[0] == 0 and one.caches.filled == [[], []]


def test_a_client_that_fails_is_cancelled(opened, caplog):
    one = opened(1)

    def fail(piece: Piece) -> None:
        raise RuntimeError("gone")

    generation = one.submit(Request([1], np.ones((1, 1), np.float32)), fail)
    one._round()
    assert generation.cancelled and "gone" in caplog.text
    one._round()
    assert busy(one)[0] == 0


def test_a_round_that_fails_ends_what_runs_and_closing_tells_the_rest(opened):
    one = opened(1)
    first, second = asked(one, [1]), asked(one, [2])
    rounds = []

    def scripted() -> None:
        rounds.append(busy(one)[:2])
        if len(rounds) == 1:
            one._admit()
            raise RuntimeError("a bug")
        one._admit()
        asked(one, [3])
        one._closing = True

    one._round = scripted
    one._run()
    assert rounds == [(0, 2), (0, 1)] and busy(one)[:2] == (0, 0)
    assert str(first.pieces[0].error) == "a bug" and len(first.pieces) == len(second.pieces) == 1
    assert isinstance(second.pieces[0].error, EngineError)
    one.close()
    assert one._thread.joined == 1 and one.decoder.closed == 1 and not one.alive
    with pytest.raises(EngineError):
        asked(one, [4])
    assert busy(one)[1] == 0
