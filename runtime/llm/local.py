"""The bundle's decoder as an async LLM: requests go to the scheduler's thread, pieces come back to the event loop.

N visual tokens, S prompt positions, D hidden.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Hashable, Sequence
from typing import Any

import numpy as np

from runtime.bundle import Bundle
from runtime.engine import EngineOptions
from runtime.llm.chat import Chat, Piece
from runtime.llm.generation import Request, keys_of
from runtime.llm.length import check_length
from runtime.llm.scheduler import Scheduler
from runtime.llm.slots import SlotDecoder
from runtime.llm.step import check_context
from runtime.prompt import Prompt

DEFAULT_MAX_TOKENS = 512  # of an answer whose length was not asked for


class LocalLLM:
    """One decoder with its scheduler; bundles that differ only in their vision encoder can share it."""

    def __init__(self, prompt: Prompt, scheduler: Scheduler):
        self.prompt, self.scheduler = prompt, scheduler
        self.tokens_per_clip = prompt.bundle.manifest.tokens_per_clip
        self.max_context: int | None = scheduler.decoder.max_context

    @classmethod
    def open(cls, bundle: Bundle, slots: int, backend: str = "auto", options: EngineOptions = EngineOptions()) -> LocalLLM:
        prompt = Prompt(bundle)
        return cls(prompt, Scheduler(SlotDecoder.open(bundle, slots, backend, options), prompt))

    def sharing(self, bundle: Bundle) -> LocalLLM:
        """This decoder for another bundle of the same LLM."""
        return LocalLLM(Prompt(bundle), self.scheduler)

    @property
    def shared(self) -> object:
        return self.scheduler

    def check(self, messages: Sequence[dict[str, Any]], gone: Callable[[], bool] = lambda: False) -> int:
        check_length(self.prompt.tokenizer, messages, self.scheduler.decoder.max_context, gone)
        needed = self.prompt.message_ids(messages).positions(self.tokens_per_clip)
        check_context(needed, self.scheduler.decoder.max_context)
        return needed

    async def answer(self, chat: Chat) -> AsyncGenerator[Piece, None]:
        keys, embeddings = await asyncio.to_thread(self._prompt, chat)
        check_context(len(keys), self.scheduler.decoder.max_context)
        chat.usage.prompt_tokens = len(keys)
        pieces: asyncio.Queue[Piece] = asyncio.Queue()
        loop = asyncio.get_running_loop()
        limit = chat.max_tokens or DEFAULT_MAX_TOKENS  # the scheduler ends an answer where its context is full
        request = Request(keys, embeddings, limit, chat.sampling, chat.stop, chat.deadline)
        generation = self.scheduler.submit(request, lambda piece: _call(loop, pieces, piece))
        try:
            while True:
                piece = await pieces.get()
                chat.usage.completion_tokens = len(generation.ids)
                chat.usage.cached_tokens = generation.cached
                chat.usage.seconds |= generation.seconds
                if piece.error:
                    raise piece.error
                yield piece
                if piece.last:
                    return
        finally:
            generation.cancel()

    def busy(self) -> dict[str, float]:
        return self.scheduler.busy()

    @property
    def healthy(self) -> bool:
        return self.scheduler.alive

    def close(self) -> None:
        if self.scheduler.alive:
            self.scheduler.close()

    def _prompt(self, chat: Chat) -> tuple[list[Hashable], np.ndarray]:
        """(what is at each position, embeddings [S, D])."""
        ids = self.prompt.message_ids(chat.messages)
        return keys_of(ids, chat.clips), self.prompt.embed(ids, *(clip.tokens for clip in chat.clips))[0]


def _call(loop: asyncio.AbstractEventLoop, pieces: asyncio.Queue[Piece], piece: Piece) -> None:
    if not loop.is_closed():  # nobody waits in a loop that is gone
        loop.call_soon_threadsafe(pieces.put_nowait, piece)
