"""Work that may have to end early: whose result or error counts, and that nothing goes on behind it."""

from __future__ import annotations

import asyncio

import pytest

from runtime.server.waiting import unless


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
