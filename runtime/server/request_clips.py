"""The clips of a request: their number of frames checked, stored as files, and encoded before the request's deadline."""

from __future__ import annotations

import asyncio
import time

from runtime.llm.chat import DeadlineError
from runtime.server.clip_encoder import EncodedClip
from runtime.server.errors import ApiError
from runtime.server.media import Media, load
from runtime.server.models import ServedModel
from runtime.server.schema import MediaUrl
from runtime.server.state import State


def check_frames(model: ServedModel, count: int | None, param: str) -> None:
    """ApiError if `count` is not the bundle's number of frames."""
    frames = model.bundle.manifest.frames
    if count is not None and count != frames:
        other = f", or export with --frames {count}" if count > 0 else ""
        message = f"{param} is {count}; this bundle takes {frames} frames of every clip: leave it out{other}"
        raise ApiError(400, message, "unsupported_value", param)


async def stored(state: State, asked: list[MediaUrl]) -> Media:
    """The first clip of the list, removed from it so that its text does not stay in memory."""
    return await asyncio.to_thread(load, asked.pop(0), state.options)


async def encode(state: State, model: ServedModel, media: Media, deadline: float) -> tuple[EncodedClip, bool]:
    """The clip, and whether the cache had it; updates the metrics. DeadlineError once the deadline has passed."""
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
