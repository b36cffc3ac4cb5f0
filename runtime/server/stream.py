"""A streamed answer as server-sent events, which begin at once.

A proxy that receives nothing for a minute gives up, and a first token may take longer while others are answered. So a stream waits
for its first token, or an error with an HTTP status, for a moment only; then it begins with a comment, which clients
skip, and a comment every few seconds keeps it open. An error after that is an event, as of OpenAI and vLLM.
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

from runtime.llm.chat import Piece
from runtime.server.chat import Answering, Ready, begin
from runtime.server.errors import api_error, forget_frames
from runtime.server.state import State

log = logging.getLogger("runtime.server")
_COMMENT = b": working\n\n"
_EVERY = 10.0  # seconds between comments


class Stream:
    """An answer on its way from the start on; leave the context to end the work."""

    def __init__(self, state: State, ready: Ready, deadline: float, start: float):
        self.state, self.options, self.start = state, ready.job.stream_options, start
        self.answering: Answering | None = None
        self._begun = asyncio.ensure_future(self._begin(ready, deadline))

    async def __aenter__(self) -> Stream:
        return self

    async def __aexit__(self, *_: object) -> None:
        self._begun.cancel()
        await asyncio.gather(self._begun, return_exceptions=True)
        if self.answering is not None:
            await self.answering.pieces.aclose()

    async def grace(self) -> None:
        """Wait a moment for the first piece; raises what went wrong by then."""
        await asyncio.wait({self._begun}, timeout=self.state.options.grace_seconds)
        if self._begun.done():
            self._begun.result()

    async def events(self) -> AsyncGenerator[bytes, None]:
        """Everything from the first comment to [DONE]."""
        try:
            if not self._begun.done():
                yield _COMMENT
            async with aclosing(self._until(self._begun)) as comments:
                async for comment in comments:
                    yield comment
            answering, piece = self._begun.result()
            yield self._chunk(answering, {"role": "assistant", "content": ""})
            while True:
                if piece.text:
                    yield self._chunk(answering, {"content": piece.text})
                if piece.last:
                    break
                coming = asyncio.ensure_future(anext(answering.pieces))
                async with aclosing(self._until(coming)) as comments:
                    async for comment in comments:
                        yield comment
                piece = coming.result()
            self.state.metrics.used(answering.chat.usage)
            yield self._chunk(answering, {}, piece.finish, metadata=answering.metadata())
            if self.options.include_usage:
                usage = {"usage": answering.usage(), "metadata": answering.metadata()}
                yield _event(answering.envelope("chat.completion.chunk", []) | usage)
        except Exception as error:
            failed = api_error(error)
            if failed.status == 500:
                log.error("a stream failed", exc_info=error)
            forget_frames(error)
            yield _event(failed.body())
        yield b"data: [DONE]\n\n"

    async def _begin(self, ready: Ready, deadline: float) -> tuple[Answering, Piece]:
        """The answer and its first piece."""
        self.answering = await begin(self.state, ready, deadline)
        piece = await anext(self.answering.pieces)
        self.state.metrics.first_token.observe(time.perf_counter() - self.start)
        return self.answering, piece

    async def _until(self, task: asyncio.Future[Any]) -> AsyncGenerator[bytes, None]:
        """Comments until `task` is done, which is cancelled where nobody waits any more; raises where the server's time is over."""
        ended = asyncio.ensure_future(self.state.admission.until_ended())
        try:
            while True:
                await asyncio.wait({task, ended}, timeout=_EVERY, return_when=asyncio.FIRST_COMPLETED)
                if task.done():
                    return
                if ended.done():
                    ended.result()
                yield _COMMENT
        finally:
            for one in (task, ended):
                one.cancel()
            await asyncio.gather(task, ended, return_exceptions=True)

    def _chunk(self, answering: Answering, delta: dict[str, Any], finish: str | None = None, **more: Any) -> bytes:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}
        if self.options.include_usage:
            more["usage"] = answering.usage() if self.options.continuous_usage_stats else None
        return _event(answering.envelope("chat.completion.chunk", [choice]) | more)


def _event(data: dict[str, Any]) -> bytes:
    return b"data: " + json.dumps(data, ensure_ascii=False, separators=(",", ":")).encode() + b"\n\n"
