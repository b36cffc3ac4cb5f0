"""A chat request as the server works on it: the messages for the chat template, its clips beside them, and how to answer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from runtime.llm.sampling import Sampling
from runtime.server.errors import ApiError
from runtime.server.schema import IMAGES, MAX_CLIPS, ChatRequest, FrameCount, MediaUrl, Message, Part, StreamOptions, TextPart

ONE_CLIP = '; "image_parts": "frames" makes images that follow each other the frames of one clip'
_STOPS, _STOP_LENGTH = 4, 1000


@dataclass
class Job:
    """messages      as in runtime/prompt/template.py
    asked         the clips, as text; they leave this list as they become files
    images        whether several of the clips are images
    frame_counts  {parameter: number of frames that it asks for}
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
        """ApiError 400 for what is wrong whatever the model is."""
        if len(request.stops) > _STOPS or max(map(len, request.stops), default=0) > _STOP_LENGTH:
            message = f"expected at most {_STOPS} stop strings of at most {_STOP_LENGTH} characters"
            raise ApiError(400, message, "invalid_value", "stop")
        messages, media = split(request.messages, request.image_parts == "frames")
        images = sum(isinstance(part, IMAGES) for message in request.messages for part in message.content or ()) > 1
        if len(media) > MAX_CLIPS:
            message = f"{len(media)} clips in one request, expected at most {MAX_CLIPS}{ONE_CLIP if images else ''}"
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
