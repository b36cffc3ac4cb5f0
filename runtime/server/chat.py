"""POST /v1/chat/completions: parse, encode the clips, let the LLM answer, as one object or as server-sent events.

Whatever can be known to be wrong is said before a clip is decoded; the first piece of an answer is waited for before the
response begins, so that errors have a status of their own. When the client goes away its work is cancelled wherever it is.
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from secrets import token_hex
from typing import Any

from runtime.llm.chat import Chat, ClipTokens
from runtime.llm.sampling import Sampling
from runtime.llm.scheduler import DeadlineError, Piece
from runtime.server.clips import EncodedClip
from runtime.server.errors import ApiError, api_error
from runtime.server.media import load
from runtime.server.models import ServedModel
from runtime.server.schema import MAX_CLIPS, ChatRequest, ImagePart, InputVideoPart, MediaUrl, Message, TextPart, VideoPart
from runtime.server.state import State

log = logging.getLogger("runtime.server")


@dataclass
class Answering:
    """A request on its way to its answer."""

    id: str
    model: ServedModel
    chat: Chat
    pieces: AsyncGenerator[Piece, None]
    clips: list[EncodedClip]
    compression: dict[str, Any]
    created: int
    start: float

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
        """What this server says beyond OpenAI's fields."""
        seconds = {**self.compression["seconds"], **self.chat.usage.seconds}
        found: dict[str, Any] = {"compression": self.compression | {"seconds": {k: round(v, 6) for k, v in seconds.items()}}}
        return found | ({"warnings": self.chat.usage.warnings} if self.chat.usage.warnings else {})


async def prepare(state: State, request: ChatRequest, deadline: float, start: float) -> Answering:
    """Everything up to the LLM: checks, then the clips."""
    model = state.models[request.model]
    if model.llm is None:
        raise ApiError(400, f'"{model.name}" has no LLM; POST /v1/video/tokens gives its tokens', "no_llm", "model")
    if len(request.stops) > 4:
        raise ApiError(400, f"{len(request.stops)} stop strings, expected at most 4", "invalid_value", "stop")
    if request.stream_options and not request.stream:
        raise ApiError(400, "stream_options is for stream: true only", "invalid_value", "stream_options")
    messages, media = split(request.messages)
    if len(media) > MAX_CLIPS:
        raise ApiError(400, f"{len(media)} clips in one request, expected at most {MAX_CLIPS}", "too_many_clips", "messages")
    await asyncio.to_thread(model.llm.check, messages, request.limit)
    clips: list[EncodedClip] = []
    seconds: dict[str, float] = {}
    cached = 0
    for one in media:
        clip, was_there = await encode(state, model, one, deadline)
        clips.append(clip)
        cached += was_there
        for stage, duration in ({} if was_there else clip.seconds).items():
            seconds[stage] = seconds.get(stage, 0.0) + duration
    manifest = model.bundle.manifest
    tokens_in, tokens_out = manifest.patch_tokens * len(clips), sum(len(clip.tokens) for clip in clips)
    compression = {
        "spec": manifest.compression["spec"],
        "tokens_in": tokens_in,
        "tokens_out": tokens_out,
        "ratio": round(tokens_in / tokens_out, 2) if tokens_out else None,
        "clips": len(clips),
        "cached_clips": cached,
        "seconds": seconds,
    }
    sampling = Sampling(request.temperature or 0.0, request.top_p or 1.0, None if request.seed is None else request.seed % 2**64)
    chat = Chat(messages, [ClipTokens(c.key, c.tokens) for c in clips], request.limit, sampling, request.stops, deadline)
    pieces = model.llm.answer(chat)
    return Answering(f"chatcmpl-{token_hex(12)}", model, chat, pieces, clips, compression, int(time.time()), start)


async def encode(state: State, model: ServedModel, media: MediaUrl, deadline: float) -> tuple[EncodedClip, bool]:
    """(a request's clip, whether it was in the cache), counted; DeadlineError where there is no time left."""

    async def both() -> tuple[EncodedClip, bool]:
        return await state.clips.get(model.encoder, await asyncio.to_thread(load, media, state.options))

    try:
        clip, was_there = await asyncio.wait_for(both(), max(0.0, deadline - time.monotonic()))
    except asyncio.TimeoutError:  # noqa: UP041: a class of its own before Python 3.11
        raise DeadlineError("the request's deadline has passed while its clip was being encoded") from None
    state.metrics.clips.labels("hit" if was_there else "miss").inc()
    state.metrics.tokens_in.inc(model.bundle.manifest.patch_tokens)
    state.metrics.tokens_out.inc(len(clip.tokens))
    if not was_there:
        state.metrics.stages(clip.seconds)
    return clip, was_there


async def whole(state: State, answering: Answering) -> dict[str, Any]:
    """The answer as one object."""
    text, finish = "", None
    async with aclosing(answering.pieces) as pieces:
        async for piece in pieces:
            if not text and piece.text:
                state.metrics.first_token.observe(time.perf_counter() - answering.start)
            text, finish = text + piece.text, piece.finish
    state.metrics.used(answering.chat.usage)
    message = {"role": "assistant", "content": text, "refusal": None}
    choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": finish}
    return answering.envelope("chat.completion", [choice]) | {"usage": answering.usage(), "metadata": answering.metadata()}


async def first_piece(state: State, answering: Answering) -> Piece:
    """The first piece, before the response begins; raises what went wrong instead."""
    piece = await anext(answering.pieces)
    state.metrics.first_token.observe(time.perf_counter() - answering.start)
    return piece


async def events(state: State, answering: Answering, first: Piece, include_usage: bool) -> AsyncGenerator[bytes, None]:
    """Server-sent events. An error after the first piece is an event of its own, as OpenAI's clients expect it."""

    def chunk(delta: dict[str, Any], finish: str | None = None, **more: Any) -> bytes:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}
        return _event(answering.envelope("chat.completion.chunk", [choice]) | more)

    empty = {"usage": None} if include_usage else {}
    async with aclosing(answering.pieces) as pieces:
        try:
            yield chunk({"role": "assistant", "content": ""}, **empty)
            piece = first
            while True:
                if piece.text:
                    yield chunk({"content": piece.text}, **empty)
                if piece.last:
                    break
                piece = await anext(pieces)
            state.metrics.used(answering.chat.usage)
            yield chunk({}, piece.finish, metadata=answering.metadata(), **empty)
            if include_usage:
                usage = {"usage": answering.usage(), "metadata": answering.metadata()}
                yield _event(answering.envelope("chat.completion.chunk", []) | usage)
        except Exception as error:
            failed = api_error(error)
            if failed.status == 500:
                log.error("%s failed", answering.id, exc_info=error)
            yield _event(failed.body())
        yield b"data: [DONE]\n\n"


def split(messages: Sequence[Message]) -> tuple[list[dict[str, Any]], list[MediaUrl]]:
    """(messages for the chat template, their clips in order)."""
    plain: list[dict[str, Any]] = []
    media: list[MediaUrl] = []
    for number, message in enumerate(messages):
        role = "system" if message.role == "developer" else message.role
        content = [TextPart(type="text", text=message.content)] if isinstance(message.content, str) else message.content
        parts: list[dict[str, str]] = []
        for part in content:
            if isinstance(part, TextPart):
                parts.append({"type": "text", "text": part.text})
            elif role != "user":
                raise ApiError(400, f"a clip in a message of role {role}, expected user", "invalid_value", f"messages.{number}")
            else:
                media.append(_media(part))
                parts.append({"type": "video"})
        plain.append({"role": role, "content": parts})
    if not any(part.get("text", "").strip() or part["type"] == "video" for message in plain for part in message["content"]):
        raise ApiError(400, "the messages are empty; expected some text", "invalid_value", "messages")
    return plain, media


def _media(part: VideoPart | InputVideoPart | ImagePart) -> MediaUrl:
    if isinstance(part, VideoPart):
        return part.video_url
    return part.input_video if isinstance(part, InputVideoPart) else part.image_url


def _event(data: dict[str, Any]) -> bytes:
    return b"data: " + json.dumps(data, ensure_ascii=False, separators=(",", ":")).encode() + b"\n\n"
