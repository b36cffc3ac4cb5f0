"""Who is accepted, without a server, and work that may have to end early: whose result counts, and that nothing goes on behind it."""

from __future__ import annotations

import asyncio
import contextlib
from types import SimpleNamespace

import pytest

from runtime.server.admission import Admission, unless
from runtime.server.errors import ApiError
from runtime.server.options import ServerOptions


@pytest.fixture
def clock(monkeypatch) -> list[float]:
    now = [1000.0]
    monkeypatch.setattr("runtime.server.admission.time", SimpleNamespace(monotonic=lambda: now[0]))
    return now


def refused(call) -> tuple[int, str, dict]:
    with pytest.raises(ApiError) as raised:
        call()
    return raised.value.status, raised.value.code, raised.value.headers


def test_as_many_as_are_answered_and_may_wait(clock):
    admission = Admission(ServerOptions(batch=2, queue=1, deadline=7))
    with admission.request() as deadline, admission.request():
        assert deadline == 1007 and admission.accepted == 2
        admission.check()
        with admission.request():
            assert refused(admission.check) == (429, "queue_full", {"Retry-After": "1"})
            assert refused(lambda: admission.request().__enter__())[0] == 429 and admission.accepted == 3
            admission.check_open()
        admission.check()
    assert admission.accepted == 0
    with pytest.raises(ValueError, match="an error"), admission.request():
        raise ValueError("an error")
    assert admission.accepted == 0


@pytest.mark.parametrize(
    ("batch", "took", "wait"),
    [
        (1, [], 1),
        (1, [31], 4),  # 1 s before the first, and a tenth of the way from there to 31
        (2, [31], 2),
        (1, [31, 24], 6),
        (1, [1, 1], 1),
        (1, [0, 0, 0], 1),
        (1, [581], 59),
        (1, [601], 60),  # 61
        (1, [5000], 60),
    ],
)
def test_when_to_come_back_follows_from_how_long_requests_took(clock, batch, took, wait):
    admission = Admission(ServerOptions(batch=batch, queue=0))
    for seconds in took:
        with admission.request():
            clock[0] += seconds
    with contextlib.ExitStack() as held:
        for _ in range(batch):
            held.enter_context(admission.request())
        assert refused(admission.check) == (429, "queue_full", {"Retry-After": str(wait)})


def test_nobody_comes_in_once_it_drains(clock):
    admission = Admission(ServerOptions(batch=1, queue=0))
    closed = (503, "draining", {"Retry-After": "5"})
    assert not admission.draining
    with admission.request():
        admission.drain()
        assert admission.draining
        for call in (admission.check, admission.check_open, lambda: asyncio.run(admission.until_draining())):
            assert refused(call) == closed
    assert admission.accepted == 0 and refused(lambda: admission.request().__enter__()) == closed


def test_what_is_not_answered_ends_with_it(clock):
    async def waited() -> list[bool]:
        admission = Admission(ServerOptions())
        waiting = [asyncio.ensure_future(one()) for one in (admission.until_draining, admission.until_ended)]
        done = []
        for act in (lambda: None, admission.drain, admission.end):
            act()
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            done.append([one.done() for one in waiting])
        error = waiting[1].exception()
        assert (error.status, error.code, error.headers) == (503, "draining", {})
        assert isinstance(waiting[0].exception(), ApiError)
        return done

    assert asyncio.run(waited()) == [[False, False], [True, False], [True, True]]


class Work:
    """log: what was begun and what was cancelled."""

    def __init__(self) -> None:
        self.log: list[str] = []

    async def after(self, name: str, turns: int, ends: BaseException | None = None) -> str:
        try:
            for _ in range(turns):
                await asyncio.sleep(0)
        except asyncio.CancelledError:
            self.log.append(f"{name} cancelled")
            raise
        if ends:
            raise ends
        return name


@pytest.mark.parametrize("turns", [0, 3])
def test_the_result_of_work_that_ends_first(turns):
    work = Work()
    reasons = (work.after("one", 50, ValueError()), work.after("other", 50, ValueError()))
    assert asyncio.run(unless(work.after("work", turns), *reasons)) == "work"
    assert sorted(work.log) == ["one cancelled", "other cancelled"]
    assert asyncio.run(unless(work.after("alone", turns))) == "alone"


def test_a_reason_ends_the_work():
    work = Work()
    with pytest.raises(ValueError, match="over"):
        asyncio.run(unless(work.after("work", 50), work.after("one", 50, KeyError()), work.after("other", 2, ValueError("over"))))
    assert sorted(work.log) == ["one cancelled", "work cancelled"]


def test_where_both_end_at_once_the_work_s_own_end_counts():
    work = Work()
    for _ in range(5):  # a set has no order
        assert (
            asyncio.run(unless(work.after("work", 1), work.after("one", 1, ValueError()), work.after("other", 1, ValueError())))
            == "work"
        )
    with pytest.raises(KeyError):
        asyncio.run(unless(work.after("work", 1, KeyError()), work.after("one", 1, ValueError())))


def test_what_was_begun_has_ended_when_nobody_waits_any_more():
    work = Work()

    async def main() -> None:
        waiting = asyncio.ensure_future(unless(work.after("work", 50), work.after("one", 50, ValueError())))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        assert sorted(work.log) == ["one cancelled", "work cancelled"]

    asyncio.run(main())
