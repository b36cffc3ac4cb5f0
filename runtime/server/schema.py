"""What may be asked: OpenAI's chat completions with clips, and the two video routes.

A clip comes as video_url, input_video, image_url, input_image, video, image or file: they differ in names alone. A parameter
that this server can't honour is refused unless it has a value that changes nothing (parameters.py); one that nobody has is
refused by name. null is as good as leaving a field out.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator
from pydantic_core import PydanticCustomError, from_json

from runtime.server.errors import ApiError
from runtime.server.parameters import CLIP, EXTENSIONS, MESSAGE, OPENAI, TEXT, Inert, is_empty

MAX_MESSAGES, MAX_CLIPS, MAX_FRAMES = 256, 8, 4096
_VALUES = 100_000  # of a body: each takes some 300 bytes of memory, "[]," three of the body


class _Strict(BaseModel):
    """inert: parameters that are dropped where they have a value that changes nothing."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)
    inert: ClassVar[Mapping[str, Inert]] = {}

    @model_validator(mode="before")
    @classmethod
    def _without_inert(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        kept = {}
        for name, value in data.items():
            is_field = name in cls.model_fields
            known = None if is_field else cls.inert.get(name)
            if known is not None and not known.accepts(value):
                shown = json.dumps(value) if len(str(value)) < 60 else "what was sent"
                raise PydanticCustomError("inert", "{shown}; {remedy}", {"shown": shown, "remedy": known.remedy, "name": name})
            if known is None and (value is not None if is_field else not is_empty(value)):
                kept[name] = value
        return kept


def _as_object(value: Any) -> Any:
    if isinstance(value, str):
        return {"url": value}
    return {"frames": value} if isinstance(value, list) else value


class FrameCount(_Strict):
    """What may be asked of a clip's frames: only the number that the bundle takes anyway."""

    inert: ClassVar[Mapping[str, Inert]] = CLIP
    num_frames: int | None = None
    nframes: int | None = None
    fps: Annotated[float, Field(gt=0)] | None = None  # of a list of frames; a clip's own frames have times

    @property
    def asked_frames(self) -> int | None:
        return self.num_frames if self.num_frames is not None else self.nframes


class MediaUrl(FrameCount):
    """One of: a URL; base64 data; URLs of the frames of one clip, in order."""

    url: str | None = None
    data: str | None = None
    frames: Annotated[list[str], Field(max_length=MAX_FRAMES)] | None = None


Media = Annotated[MediaUrl, BeforeValidator(_as_object)]


class TextPart(_Strict):
    inert: ClassVar[Mapping[str, Inert]] = TEXT
    type: Literal["text", "input_text", "output_text"]
    text: str


class _ClipPart(FrameCount):
    """A part with a clip in the field that `type` names."""

    @property
    def media(self) -> MediaUrl:
        media: MediaUrl | None = getattr(self, "image_url" if self.type == "input_image" else self.type)  # type: ignore[attr-defined]
        if media is None:
            raise ApiError(400, "the part has no clip: none is known here by its uuid; send the clip itself", "invalid_media")
        return media.model_copy(update={"fps": self.fps}) if media.fps is None else media


class VideoUrlPart(_ClipPart):
    type: Literal["video_url"]
    video_url: Media | None = None


class InputVideoPart(_ClipPart):
    type: Literal["input_video"]
    input_video: Media | None = None


class ImageUrlPart(_ClipPart):
    type: Literal["image_url"]
    image_url: Media | None = None


class InputImagePart(_ClipPart):
    type: Literal["input_image"]
    image_url: Media | None = None


class VideoPart(_ClipPart):
    type: Literal["video"]
    video: Media | None = None


class ImagePart(_ClipPart):
    type: Literal["image"]
    image: Media | None = None


def _of_file(value: Any) -> Any:
    if isinstance(value, dict) and value.get("file_id") is not None:
        raise PydanticCustomError("unsupported", "this server stores no files; send file_data")
    data = value.get("file_data") if isinstance(value, dict) else None
    if not isinstance(data, str):
        return value
    return {("url" if data[:5].lower() == "data:" else "data"): data}


class FilePart(_ClipPart):
    type: Literal["file"]
    file: Annotated[MediaUrl, BeforeValidator(_of_file)] | None = None


IMAGES = (ImageUrlPart, InputImagePart, ImagePart)
Part = Annotated[
    TextPart | VideoUrlPart | InputVideoPart | ImageUrlPart | InputImagePart | VideoPart | ImagePart | FilePart,
    Field(discriminator="type"),
]


class Message(_Strict):
    inert: ClassVar[Mapping[str, Inert]] = MESSAGE
    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[Part] | None = None
    name: str | None = None


class StreamOptions(_Strict):
    inert: ClassVar[Mapping[str, Inert]] = {"include_obfuscation": Inert(None)}
    include_usage: bool = False
    continuous_usage_stats: bool = False


class MediaOptions(_Strict):
    """vLLM's media_io_kwargs."""

    inert: ClassVar[Mapping[str, Inert]] = {"image": Inert(None), "audio": Inert(None)}
    video: FrameCount | None = None


def _count(value: Any) -> Any:
    """A number of tokens as clients write it: -1 is none, 16.0 and "16" are 16."""
    if isinstance(value, str) and value.isascii() and value.isdecimal() and len(value) < 10:
        return int(value)
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return None if value == -1 and not isinstance(value, bool) else value


Count = Annotated[Annotated[int, Field(ge=1)] | None, BeforeValidator(_count)]


class ChatRequest(_Strict):
    inert: ClassVar[Mapping[str, Inert]] = {**OPENAI, **EXTENSIONS}
    model: str
    messages: list[Message] = Field(min_length=1, max_length=MAX_MESSAGES)
    stream: bool = False
    stream_options: StreamOptions = StreamOptions()
    max_tokens: Count = None
    max_completion_tokens: Count = None
    temperature: float = Field(0.0, ge=0, le=2)
    top_p: float = Field(1.0, gt=0, le=1)
    stop: str | list[str] = ""
    seed: int | None = Field(None, ge=-(2**63), lt=2**63)
    image_parts: Literal["clips", "frames"] = "clips"
    mm_processor_kwargs: FrameCount = FrameCount()
    media_io_kwargs: MediaOptions = MediaOptions()

    @property
    def stops(self) -> list[str]:
        return [self.stop] if isinstance(self.stop, str) else self.stop

    @property
    def limit(self) -> int | None:
        return self.max_completion_tokens or self.max_tokens


class VideoRequest(_Strict):
    """POST /v1/video/tokens and /v1/video/inspect."""

    model: str
    video_url: Media | None = None
    input_video: Media | None = None
    format: Literal["safetensors", "npz"] = "safetensors"
    dtype: Literal["float16", "float32"] = "float16"


_Model = TypeVar("_Model", bound=BaseModel)


def parse(model: type[_Model], body: bytes | bytearray) -> _Model:
    """A request's JSON body as `model`; ApiError 400 names the first thing that is wrong with it."""
    if sum(body.count(mark) for mark in (b"[", b"{", b",")) > _VALUES:
        raise ApiError(400, f"the body has more than {_VALUES} values, the most that this server takes", "invalid_json")
    try:
        data = from_json(body, allow_inf_nan=False)
    except ValueError as error:
        raise ApiError(400, f"the body is not valid JSON: {error}", "invalid_json") from None
    try:
        return model.model_validate(data)
    except ValidationError as error:
        raise _refused(error) from None


def _refused(error: ValidationError) -> ApiError:
    # of a union's branches, the one that got furthest is the one that was meant
    first = max(error.errors(include_url=False, include_input=False), key=lambda one: len(one["loc"]))
    if first["type"] == "inert":
        name = first["ctx"]["name"]
        param = _path((*first["loc"], name))
        code = "invalid_value" if name in OPENAI or name in MESSAGE else "unknown_parameter"
        return ApiError(400, f"Unsupported value for '{param}': {first['msg']}.", code, param)
    path = _path(first["loc"])
    if not path:
        return ApiError(400, "the body is not a JSON object", "invalid_value")
    if first["type"] == "extra_forbidden":
        return ApiError(400, f"Unknown parameter: '{path}'; leave it out.", "unknown_parameter", path)
    if first["type"] == "missing":
        return ApiError(400, f"Missing required parameter: '{path}'.", "missing_required_parameter", path)
    return ApiError(400, f"Invalid value for '{path}': {first['msg']}.", "invalid_value", path)


def _path(location: tuple[int | str, ...]) -> str:
    """`location` as the client wrote it, without the steps that pydantic adds for the branches of a union."""
    found = []
    for at, step in enumerate(location):
        branch = isinstance(step, str) and (step in ("str", "int") or step.startswith(("list[", "function-", "constrained-")))
        tag = at > 1 and isinstance(location[at - 1], int) and str(location[at - 2]).startswith("list[")
        if not branch and not tag:
            found.append(str(step))
    return ".".join(found)
