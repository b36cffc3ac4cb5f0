"""The bundle's decoder as an async LLM: requests go to the scheduler's thread, pieces come back to the event loop.

N visual tokens, S prompt positions, D hidden.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Hashable, Sequence
from typing import Any

import numpy as np

from runtime.bundle import Bundle
from runtime.core.errors import ContextError
from runtime.engine import EngineOptions
from runtime.llm.chat import Chat, Piece
from runtime.llm.decoder import check_context
from runtime.llm.generation import Request, keys_of
from runtime.llm.scheduler import Scheduler
from runtime.llm.slots import SlotDecoder
from runtime.prompt import Prompt
from runtime.prompt.tokenizer import Tokenizer

DEFAULT_MAX_TOKENS = 512  # of an answer whose length was not asked for
_PIECE = 1 << 15  # characters tokenized at once
_CUT = 8  # tokens that a cut between two pieces may add to the count


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


def check_length(
    tokenizer: Tokenizer, messages: Sequence[dict[str, Any]], positions: int, gone: Callable[[], bool] = lambda: False
) -> None:
    """ContextError where the text of `messages` surely needs more than `positions` tokens; returns early once `gone()`.

    No token is longer than the longest of the vocabulary, so a text of more characters than positions times that can't fit. What
    passes is counted piece by piece, which ends soon after the context is full or the client has gone: tokenizing a text of some
    megabytes takes many seconds and can't be interrupted.
    """
    texts = [part["text"] for message in messages for part in message["content"] if part["type"] == "text"]
    characters = sum(map(len, texts))
    most = positions * tokenizer.longest_token
    if characters > most:
        raise ContextError(f"the messages have {characters} characters, and {positions} positions hold at most {most}; ask less")
    if characters <= _PIECE:
        return
    count = 0
    for text in texts:
        for start in range(0, len(text), _PIECE):
            count += max(0, len(tokenizer.encode_literal(text[start : start + _PIECE])) - _CUT)
            if gone():
                return
            if count > positions:
                raise ContextError(f"the messages need more than {positions} positions, all that the context has; ask less")


def _call(loop: asyncio.AbstractEventLoop, pieces: asyncio.Queue[Piece], piece: Piece) -> None:
    if not loop.is_closed():  # nobody waits in a loop that is gone
        loop.call_soon_threadsafe(pieces.put_nowait, piece)
