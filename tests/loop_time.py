"""Time that passes on an event loop without being waited for."""

from __future__ import annotations

import asyncio


async def pass_time(seconds: float) -> None:
    """Set the clock of the running loop `seconds` ahead and let the timers that are due then run."""
    loop = asyncio.get_running_loop()
    ahead = getattr(loop, "ahead", 0.0) + seconds
    vars(loop).update(ahead=ahead, time=lambda: type(loop).time(loop) + ahead)
    await turns()


async def turns(count: int = 10) -> None:
    """Let everything that is ready run, and what that makes ready, `count` times."""
    for _ in range(count):
        await asyncio.sleep(0)
