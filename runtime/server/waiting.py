"""Waiting for work that may have to end early: `await unless(work, reason, …)`."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, NoReturn, TypeVar

_Result = TypeVar("_Result")


async def unless(work: Coroutine[Any, Any, _Result], *reasons: Coroutine[Any, Any, NoReturn]) -> _Result:
    """The result of `work`, which is cancelled as soon as one of `reasons` raises; that error is then raised here."""
    task = asyncio.ensure_future(work)
    others = [asyncio.ensure_future(reason) for reason in reasons]
    try:
        done, _ = await asyncio.wait({task, *others}, return_when=asyncio.FIRST_COMPLETED)
        return (task if task in done else done.pop()).result()
    finally:
        for one in (task, *others):
            one.cancel()
        await asyncio.gather(task, *others, return_exceptions=True)
