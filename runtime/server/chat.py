"""POST /v1/chat/completions: check, encode the clips, let the LLM answer as one object; stream.py sends server-sent events.

Whatever can be known to be wrong is refused before a clip is decoded. When the client goes away its work is cancelled wherever it is.
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
from runtime.server.media import Media
from runtime.server.memory import Held
from runtime.server.models import ServedModel
from runtime.server.request_clips import check_frames, encode, stored
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
    """A request on its way to its answer."""

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
    """Refuse what can be refused without decoding a clip; then the clips are files, and `held` counts their bytes."""
    model = state.models[job.model]
    if model.llm is None:
        raise ApiError(400, f'"{model.name}" has no LLM; POST /v1/video/tokens gives its tokens', "no_llm", "model")
    for param, count in job.frame_counts.items():
        check_frames(model, count, param)
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
            ready.clips.append(await stored(state, job.asked))
    except BaseException:
        ready.close()
        raise
    held.shrink(sum(clip.size for clip in ready.clips))  # the request's body is gone
    return ready


async def begin(state: State, ready: Ready, deadline: float) -> Answering:
    """Encode the clips and ask the LLM, whose answer is still to come."""
    clips: list[EncodedClip] = []
    seconds: dict[str, float] = {}
    cached = 0
    while ready.clips:
        clip, was_there = await encode(state, ready.model, ready.clips.pop(0), deadline)
        clips.append(clip)
        cached += was_there
        for stage, duration in ({} if was_there else clip.seconds).items():
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
        "cached_clips": cached,
        "seconds": seconds,
    }
    job = ready.job
    chat = Chat(job.messages, [ClipTokens(c.key, c.tokens) for c in clips], job.max_tokens, job.sampling, job.stops, deadline)
    return Answering(f"chatcmpl-{token_hex(12)}", ready.model, chat, ready.llm.answer(chat), compression, int(time.time()))


async def complete(state: State, ready: Ready, deadline: float, start: float) -> dict[str, Any]:
    """The answer as one object. start: of the request, of time.perf_counter()."""
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
