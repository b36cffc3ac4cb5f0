"""A streamed answer as server-sent events, which begin almost at once.

A proxy that receives nothing for a minute gives up, and on a busy server a first token may take longer. So a stream waits only a
moment for its first token, or for an error, which then has an HTTP status of its own. After that it begins with a comment, which
clients skip, and further comments every few seconds keep it open. A later error is an event, as with OpenAI and vLLM.
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
    """An answer that is produced from construction on; leaving the context ends the work."""

    def __init__(self, state: State, ready: Ready, deadline: float, start: float):
        self.state, self.options, self.start = state, ready.job.request.stream_options, start
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
        """Wait a moment for the first piece; raises an error that occurs in that time."""
        await asyncio.wait({self._begun}, timeout=self.state.options.grace_seconds)
        if self._begun.done():
            self._begun.result()

    async def events(self) -> AsyncGenerator[bytes, None]:
        """Everything from the first comment to [DONE]."""
        try:
            if not self._begun.done():
                yield _COMMENT
            coming: asyncio.Future[Piece] = self._begun
            while True:
                async with aclosing(self._until(coming)) as comments:
                    async for comment in comments:
                        yield comment
                piece, answering = coming.result(), self.answering
                assert answering is not None  # `begin` has returned it
                if coming is self._begun:
                    yield self._chunk(answering, {"role": "assistant", "content": ""})
                if piece.text:
                    yield self._chunk(answering, {"content": piece.text})
                if piece.last:
                    break
                coming = asyncio.ensure_future(anext(answering.pieces))
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

    async def _begin(self, ready: Ready, deadline: float) -> Piece:
        """Start the answer and wait for its first piece."""
        self.answering = await begin(self.state, ready, deadline)
        piece = await anext(self.answering.pieces)
        self.state.metrics.first_token.observe(time.perf_counter() - self.start)
        return piece

    async def _until(self, task: asyncio.Future[Any]) -> AsyncGenerator[bytes, None]:
        """Comments until `task` is done. It is cancelled if the reader leaves or the server ends, which raises ApiError."""
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
