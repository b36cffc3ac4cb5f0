"""POST /v1/chat/completions: check, encode the clips, let the LLM answer, as one object or as server-sent events.

Whatever can be known to be wrong is said before a clip is decoded. When the client goes away its work is cancelled wherever
it is. Server-sent events are in stream.py.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from secrets import token_hex
from typing import Any

from runtime.core.errors import ContextError
from runtime.llm.chat import Chat, ClipTokens, DeadlineError, LanguageModel, Piece
from runtime.llm.sampling import Sampling
from runtime.server.clips import EncodedClip
from runtime.server.errors import ApiError
from runtime.server.media import Media, load
from runtime.server.memory import Held
from runtime.server.models import ServedModel
from runtime.server.schema import IMAGES, MAX_CLIPS, ChatRequest, FrameCount, MediaUrl, Message, Part, StreamOptions, TextPart
from runtime.server.state import State

_STOPS, _STOP_LENGTH = 4, 1000
_ONE_CLIP = '; "image_parts": "frames" makes images that follow each other the frames of one clip'


@dataclass
class Job:
    """A request as the server works on it, its clips apart: they go from `asked`, which is text, to `clips`, which are files.

    messages: as in runtime/prompt/template.py; images: whether several of the clips are images; frame_counts: what parameters
    asked for.
    """

    model: str
    messages: list[dict[str, Any]]
    asked: list[MediaUrl]
    images: bool
    frame_counts: dict[str, int]
    max_tokens: int | None
    sampling: Sampling
    stops: list[str]
    stream: bool
    stream_options: StreamOptions

    @classmethod
    def of(cls, request: ChatRequest) -> Job:
        """ApiError 400 for what can be seen to be wrong without the model."""
        if len(request.stops) > _STOPS or max(map(len, request.stops), default=0) > _STOP_LENGTH:
            message = f"expected at most {_STOPS} stop strings of at most {_STOP_LENGTH} characters"
            raise ApiError(400, message, "invalid_value", "stop")
        messages, media = split(request.messages, request.image_parts == "frames")
        images = sum(isinstance(part, IMAGES) for message in request.messages for part in message.content or ()) > 1
        if len(media) > MAX_CLIPS:
            message = f"{len(media)} clips in one request, expected at most {MAX_CLIPS}{_ONE_CLIP if images else ''}"
            raise ApiError(400, message, "too_many_clips", "messages")
        seed = None if request.seed is None else request.seed % 2**64
        return cls(
            model=request.model,
            messages=messages,
            asked=media,
            images=images,
            frame_counts=_frame_counts(request),
            max_tokens=request.limit,
            sampling=Sampling(request.temperature, request.top_p, seed),
            stops=request.stops,
            stream=request.stream,
            stream_options=request.stream_options,
        )


@dataclass
class Ready:
    """A job that was found to be in order."""

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
        """What this server says beyond OpenAI's fields."""
        seconds = {**self.compression["seconds"], **self.chat.usage.seconds}
        found: dict[str, Any] = {"compression": self.compression | {"seconds": {k: round(v, 6) for k, v in seconds.items()}}}
        return found | ({"warnings": self.chat.usage.warnings} if self.chat.usage.warnings else {})


async def check(state: State, job: Job, held: Held) -> Ready:
    """All that can be refused without decoding a clip; then the clips are files, and `held` counts their bytes."""
    model = state.models[job.model]
    if model.llm is None:
        raise ApiError(400, f'"{model.name}" has no LLM; POST /v1/video/tokens gives its tokens', "no_llm", "model")
    for param, count in job.frame_counts.items():
        check_frames(model, count, param)
    gone = threading.Event()
    try:
        await asyncio.to_thread(model.llm.check, job.messages, gone.is_set)
    except ContextError as error:
        raise ContextError(f"{error}{_ONE_CLIP if job.images else ''}") from None
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


def check_frames(model: ServedModel, count: int | None, param: str) -> None:
    """ApiError where another number of frames is asked for than the bundle takes."""
    frames = model.bundle.manifest.frames
    if count is not None and count != frames:
        other = f", or export with --frames {count}" if count > 0 else ""
        message = f"{param} is {count}; this bundle takes {frames} frames of every clip: leave it out{other}"
        raise ApiError(400, message, "unsupported_value", param)


async def stored(state: State, asked: list[MediaUrl]) -> Media:
    """The first of the clips that are asked about, taken from the list so that its text does not stay in memory."""
    return await asyncio.to_thread(load, asked.pop(0), state.options)


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
        "spec": manifest.compression["spec"],
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


async def encode(state: State, model: ServedModel, media: Media, deadline: float) -> tuple[EncodedClip, bool]:
    """(a request's clip, whether it was in the cache), counted; DeadlineError where there is no time left."""
    try:
        clip, was_there = await asyncio.wait_for(state.clips.get(model.encoder, media), max(0.0, deadline - time.monotonic()))
    except asyncio.TimeoutError:  # noqa: UP041: a class of its own before Python 3.11
        raise DeadlineError("the request's deadline has passed while its clip was being encoded") from None
    state.metrics.clips.labels("hit" if was_there else "miss").inc()
    state.metrics.tokens_in.inc(model.bundle.manifest.patch_tokens)
    state.metrics.tokens_out.inc(len(clip.tokens))
    if not was_there:
        state.metrics.stages(clip.seconds)
    return clip, was_there


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


def split(messages: Sequence[Message], image_frames: bool) -> tuple[list[dict[str, Any]], list[MediaUrl]]:
    """(messages for the chat template, their clips in order); image_frames: images that follow each other are one clip."""
    plain: list[dict[str, Any]] = []
    media: list[MediaUrl] = []
    for number, message in enumerate(messages):
        role = "system" if message.role == "developer" else message.role
        content = [TextPart(type="text", text=message.content)] if isinstance(message.content, str) else message.content or []
        parts: list[dict[str, str]] = []
        before: Part | None = None
        for part in content:
            if isinstance(part, TextPart):
                parts.append({"type": "text", "text": part.text})
            elif role != "user":
                raise ApiError(400, f"a clip in a message of role {role}, expected user", "invalid_value", f"messages.{number}")
            elif image_frames and isinstance(part, IMAGES) and isinstance(before, IMAGES):
                media[-1] = _with_frame(media[-1], part.media)
            else:
                media.append(part.media)
                parts.append({"type": "video"})
            before = part
        plain.append({"role": role, "content": parts})
    if not any(part.get("text", "").strip() or part["type"] == "video" for message in plain for part in message["content"]):
        raise ApiError(400, "the messages are empty; expected some text", "invalid_value", "messages")
    return plain, media


def _with_frame(clip: MediaUrl, image: MediaUrl) -> MediaUrl:
    frames = [*(clip.frames or [_url(clip)]), _url(image)]
    return clip.model_copy(update={"url": None, "data": None, "frames": frames})


def _url(image: MediaUrl) -> str:
    return image.url if image.url is not None else f"data:image/jpeg;base64,{image.data or ''}"


def _frame_counts(request: ChatRequest) -> dict[str, int]:
    """Every number of frames that is asked for, by the parameter's name."""
    found: dict[str, FrameCount | None] = {
        "mm_processor_kwargs": request.mm_processor_kwargs,
        "media_io_kwargs.video": request.media_io_kwargs.video,
    }
    for number, message in enumerate(request.messages):
        for place, part in enumerate(message.content if isinstance(message.content, list) else ()):
            if not isinstance(part, TextPart):
                found[f"messages.{number}.content.{place}"] = part
                found[f"messages.{number}.content.{place}.{part.type}"] = part.media
    return {f"{name}.num_frames": one.asked_frames for name, one in found.items() if one and one.asked_frames is not None}
