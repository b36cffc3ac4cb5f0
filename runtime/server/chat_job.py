"""A chat request as the server works on it: messages for the chat template, the clips separately, and how to answer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from runtime.server.errors import ApiError
from runtime.server.schema import MAX_CLIPS, ChatRequest, ClipPart, FrameCount, MediaUrl, Message, TextPart

ONE_CLIP = '; "image_parts": "frames" makes consecutive images the frames of one clip'


@dataclass
class Job:
    """request       what was asked, without its messages
    messages      as in runtime/prompt/template.py
    asked         the clips as text; each leaves this list when it is stored as a file
    images        whether several of the clips are images
    frame_counts  {parameter: the number of frames that it asks for}
    """

    request: ChatRequest
    messages: list[dict[str, Any]]
    asked: list[MediaUrl]
    images: bool
    frame_counts: dict[str, int]

    @classmethod
    def of(cls, request: ChatRequest) -> Job:
        """ApiError 400 for what is wrong regardless of the model."""
        messages, media = split(request.messages, request.image_parts == "frames")
        images = sum(isinstance(part, ClipPart) and part.is_image for message in request.messages for part in message.content) > 1
        if len(media) > MAX_CLIPS:
            message = f"{len(media)} clips in one request, expected at most {MAX_CLIPS}{ONE_CLIP if images else ''}"
            raise ApiError(400, message, "too_many_clips", "messages")
        return cls(request.model_copy(update={"messages": []}), messages, media, images, _frame_counts(request))


def split(messages: Sequence[Message], image_frames: bool) -> tuple[list[dict[str, Any]], list[MediaUrl]]:
    """(messages for the chat template, their clips in order); image_frames: consecutive images are one clip."""
    plain: list[dict[str, Any]] = []
    media: list[MediaUrl] = []
    for number, message in enumerate(messages):
        role = "system" if message.role == "developer" else message.role
        parts: list[dict[str, str]] = []
        after_image = False
        for part in message.content:
            is_image = isinstance(part, ClipPart) and part.is_image
            if isinstance(part, TextPart):
                parts.append({"type": "text", "text": part.text})
            elif role != "user":
                raise ApiError(400, f"a clip in a message of role {role}, expected user", "invalid_value", f"messages.{number}")
            elif image_frames and is_image and after_image:
                frames = [*(media[-1].frames or [_url(media[-1])]), _url(part.media)]
                media[-1] = media[-1].model_copy(update={"url": None, "data": None, "frames": frames})
            else:
                media.append(part.media)
                parts.append({"type": "video"})
            after_image = is_image
        plain.append({"role": role, "content": parts})
    if not any(part.get("text", "").strip() or part["type"] == "video" for message in plain for part in message["content"]):
        raise ApiError(400, "the messages are empty; expected some text", "invalid_value", "messages")
    return plain, media


def _url(image: MediaUrl) -> str:
    return image.url if image.url is not None else f"data:image/jpeg;base64,{image.data or ''}"


def _frame_counts(request: ChatRequest) -> dict[str, int]:
    found: dict[str, FrameCount | None] = {
        "mm_processor_kwargs": request.mm_processor_kwargs,
        "media_io_kwargs.video": request.media_io_kwargs.video,
    }
    for number, message in enumerate(request.messages):
        for place, part in enumerate(message.content):
            if isinstance(part, ClipPart):
                name = f"messages.{number}.content.{place}"
                found |= {name: part, f"{name}.{part.type}": part.clip}
    return {f"{name}.num_frames": one.num_frames for name, one in found.items() if one and one.num_frames is not None}
