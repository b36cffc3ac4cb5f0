"""A clip store at work on an event loop of its own."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from runtime.server.clips import ClipStore


def with_store(work: Callable[[ClipStore], Awaitable[None]], **options: Any) -> None:
    """Run work(store) to its end and close the store. options: as ClipStore takes them."""

    async def main() -> None:
        store = ClipStore(**{"capacity": 1000, "decode_seconds": 1000} | options)
        try:
            await work(store)
        finally:
            store.close()

    asyncio.run(main())
