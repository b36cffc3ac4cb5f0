"""POST /v1/chat/completions: check, encode the clips, and let the LLM answer with one object; stream.py sends server-sent events.

Whatever can be recognized as wrong is refused before a clip is decoded. When the client disconnects, its work is cancelled wherever
it is.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass
from secrets import token_hex
from typing import Any

from runtime.core.errors import ContextError
from runtime.llm.chat import Chat, ClipTokens, LanguageModel, Piece
from runtime.server.chat_job import ONE_CLIP, Job
from runtime.server.clip_encoder import EncodedClip
from runtime.server.errors import ApiError
from runtime.server.media import Media, load
from runtime.server.memory import Held
from runtime.server.models import ServedModel
from runtime.server.state import State


@dataclass
class Ready:
    """A job that passed every check."""

    job: Job
    model: ServedModel
    llm: LanguageModel
    clips: list[Media]
    held: Held

    def close(self) -> None:
        """Remove the clips that were not encoded."""
        for clip in self.clips:
            clip.close()


@dataclass
class Answering:
    """A request whose answer is being produced."""

    id: str
    model: ServedModel
    chat: Chat
    pieces: AsyncGenerator[Piece, None]
    compression: dict[str, Any]
    created: int

    def envelope(self, kind: str, choices: list[dict[str, Any]]) -> dict[str, Any]:
        return {"id": self.id, "object": kind, "created": self.created, "model": self.model.name, "choices": choices}

    def usage(self) -> dict[str, Any]:
        usage = self.chat.usage
        return {
            "prompt_tokens": usage.prompt_tokens,
            "completion_tokens": usage.completion_tokens,
            "total_tokens": usage.prompt_tokens + usage.completion_tokens,
            "prompt_tokens_details": {"cached_tokens": usage.cached_tokens},
        }

    def metadata(self) -> dict[str, Any]:
        """The fields beyond OpenAI's."""
        seconds = {**self.compression["seconds"], **self.chat.usage.seconds}
        found: dict[str, Any] = {"compression": self.compression | {"seconds": {k: round(v, 6) for k, v in seconds.items()}}}
        return found | ({"warnings": self.chat.usage.warnings} if self.chat.usage.warnings else {})


async def check(state: State, job: Job, held: Held) -> Ready:
    """Refuse what can be refused without decoding a clip, then store the clips as files; `held` then counts only their bytes."""
    model = state.models[job.request.model]
    if model.llm is None:
        raise ApiError(400, f'"{model.name}" has no LLM; POST /v1/video/tokens returns its tokens', "no_llm", "model")
    for param, count in job.frame_counts.items():
        model.check_frames(count, param)
    gone = threading.Event()
    try:
        await asyncio.to_thread(model.llm.check, job.messages, gone.is_set)
    except ContextError as error:
        raise ContextError(f"{error}{ONE_CLIP if job.images else ''}") from None
    finally:
        gone.set()
    ready = Ready(job, model, model.llm, [], held)
    try:
        while job.asked:
            ready.clips.append(await asyncio.to_thread(load, job.asked.pop(0), state.options))
    except BaseException:
        ready.close()
        raise
    held.shrink(sum(clip.size for clip in ready.clips))  # the request's body is gone
    return ready


async def begin(state: State, ready: Ready, deadline: float) -> Answering:
    """Encode the clips and ask the LLM, whose answer is still to come."""
    clips: list[EncodedClip] = []
    seconds: dict[str, float] = {}
    hits = 0
    while ready.clips:
        clip, cached = await state.encode(ready.model, ready.clips.pop(0), deadline)
        clips.append(clip)
        hits += cached
        for stage, duration in ({} if cached else clip.seconds).items():
            seconds[stage] = seconds.get(stage, 0.0) + duration
    ready.held.shrink(0)
    manifest = ready.model.bundle.manifest
    tokens_in, tokens_out = manifest.patch_tokens * len(clips), sum(len(clip.tokens) for clip in clips)
    compression = {
        "spec": manifest.compression.spec,
        "tokens_in": tokens_in,
        "tokens_out": tokens_out,
        "ratio": round(tokens_in / tokens_out, 2) if tokens_out else None,
        "clips": len(clips),
        "cached_clips": hits,
        "seconds": seconds,
    }
    request, tokens = ready.job.request, [ClipTokens(clip.key, clip.tokens) for clip in clips]
    chat = Chat(ready.job.messages, tokens, request.limit, request.sampling, request.stop, deadline)
    return Answering(f"chatcmpl-{token_hex(12)}", ready.model, chat, ready.llm.answer(chat), compression, int(time.time()))


async def complete(state: State, ready: Ready, deadline: float, start: float) -> dict[str, Any]:
    """The answer as one object. start: when the request arrived, in time of time.perf_counter()."""
    answering = await begin(state, ready, deadline)
    text, finish = "", None
    async with aclosing(answering.pieces) as pieces:
        async for piece in pieces:
            if not text and piece.text:
                state.metrics.first_token.observe(time.perf_counter() - start)
            text, finish = text + piece.text, piece.finish
    state.metrics.used(answering.chat.usage)
    message = {"role": "assistant", "content": text, "refusal": None}
    choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": finish}
    return answering.envelope("chat.completion", [choice]) | {"usage": answering.usage(), "metadata": answering.metadata()}
