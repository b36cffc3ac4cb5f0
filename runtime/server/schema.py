"""What a request may contain: OpenAI's chat completions with clips, and the two video routes.

A clip comes as video_url, input_video, image_url, input_image, video, image or file, which differ in name only. A parameter that
this server does not support is refused unless its value changes nothing (parameters.py); a parameter that no server has is refused
by name. null is the same as leaving a field out.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, TypeVar

from pydantic import AfterValidator, AliasChoices, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator
from pydantic_core import PydanticCustomError, from_json

from runtime.llm.sampling import Sampling
from runtime.server.errors import ApiError
from runtime.server.parameters import CLIP, EXTENSIONS, MESSAGE, OPENAI, TEXT, Inert, is_empty

MAX_MESSAGES, MAX_CLIPS, MAX_FRAMES = 256, 8, 4096
_VALUES = 100_000  # in a body: each takes about 300 bytes of memory, but as little as the three of "[]," in the body


class _Strict(BaseModel):
    """inert: parameters that are dropped where their value changes nothing."""

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


class FrameCount(_Strict):
    """What a request may say about a clip's frames; num_frames must be the bundle's."""

    inert: ClassVar[Mapping[str, Inert]] = CLIP
    num_frames: int | None = Field(None, validation_alias=AliasChoices("num_frames", "nframes"))
    fps: Annotated[float, Field(gt=0)] | None = None  # of a list of frames; the frames of a video have times of their own


class MediaUrl(FrameCount):
    """One of: a URL; base64 data; URLs of the frames of one clip, in order."""

    url: str | None = None
    data: str | None = None
    frames: Annotated[list[str], Field(max_length=MAX_FRAMES)] | None = None


def _as_object(value: Any) -> Any:
    """A clip as MediaUrl takes it: a bare string is a URL, a list is frames, OpenAI's file_data is a URL or base64."""
    if isinstance(value, str):
        return {"url": value}
    if isinstance(value, list):
        return {"frames": value}
    if not isinstance(value, dict):
        return value
    if value.get("file_id") is not None:
        raise PydanticCustomError("unsupported", "this server stores no files; send file_data")
    data = value.get("file_data")
    return {"url" if data[:5].lower() == "data:" else "data": data} if isinstance(data, str) else value


Media = Annotated[MediaUrl, BeforeValidator(_as_object)]


class TextPart(_Strict):
    inert: ClassVar[Mapping[str, Inert]] = TEXT
    type: Literal["text", "input_text", "output_text"]
    text: str


class ClipPart(FrameCount):
    type: Literal["video_url", "input_video", "image_url", "input_image", "video", "image", "file"]
    clip: Media = Field(validation_alias=AliasChoices("video_url", "input_video", "image_url", "video", "image", "file"))

    @property
    def is_image(self) -> bool:
        return self.type in ("image_url", "input_image", "image")

    @property
    def media(self) -> MediaUrl:
        return self.clip.model_copy(update={"fps": self.fps}) if self.clip.fps is None else self.clip


def _as_parts(value: Any) -> Any:
    return [{"type": "text", "text": value}] if isinstance(value, str) else value


class Message(_Strict):
    inert: ClassVar[Mapping[str, Inert]] = MESSAGE
    role: Literal["system", "developer", "user", "assistant"]
    content: Annotated[list[Annotated[TextPart | ClipPart, Field(discriminator="type")]], BeforeValidator(_as_parts)] = []
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
    """A number of tokens as clients write it: -1 means no limit, 16.0 and "16" mean 16."""
    if isinstance(value, str) and value.isascii() and value.isdecimal() and len(value) < 10:
        return int(value)
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return None if value == -1 and not isinstance(value, bool) else value


Count = Annotated[Annotated[int, Field(ge=1)] | None, BeforeValidator(_count)]
Seed = Annotated[int, Field(ge=-(2**63), lt=2**63), AfterValidator(lambda seed: seed % 2**64)]
Stops = Annotated[
    list[Annotated[str, Field(max_length=1000)]],
    Field(max_length=4),
    BeforeValidator(lambda value: [value] if isinstance(value, str) else value),
]


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
    stop: Stops = []
    seed: Seed | None = None
    image_parts: Literal["clips", "frames"] = "clips"
    mm_processor_kwargs: FrameCount | None = None
    media_io_kwargs: MediaOptions = MediaOptions()

    @property
    def limit(self) -> int | None:
        return self.max_completion_tokens or self.max_tokens

    @property
    def sampling(self) -> Sampling:
        return Sampling(self.temperature, self.top_p, self.seed)


class VideoRequest(_Strict):
    """POST /v1/video/tokens and /v1/video/inspect."""

    model: str
    clip: Media = Field(validation_alias=AliasChoices("video_url", "input_video"))
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
    first = error.errors(include_url=False, include_input=False)[0]
    location = first["loc"]
    # behind the index of a part of a message's content, pydantic puts the part's type
    path = ".".join(str(step) for at, step in enumerate(location) if at < 2 or location[at - 2] != "content")
    if first["type"] == "inert":
        name = first["ctx"]["name"]
        param = f"{path}.{name}" if path else name
        code = "invalid_value" if name in OPENAI or name in MESSAGE else "unknown_parameter"
        return ApiError(400, f"Unsupported value for '{param}': {first['msg']}.", code, param)
    if not path:
        return ApiError(400, "the body is not a JSON object", "invalid_value")
    if first["type"] == "extra_forbidden":
        return ApiError(400, f"Unknown parameter: '{path}'; leave it out.", "unknown_parameter", path)
    if first["type"] == "missing":
        if location[-1] == "video_url" and len(location) > 1:  # pydantic takes the first alias; the part's own name is its type
            path = path.removesuffix("video_url") + str(location[-2])
        return ApiError(400, f"Missing required parameter: '{path}'.", "missing_required_parameter", path)
    return ApiError(400, f"Invalid value for '{path}': {first['msg']}.", "invalid_value", path)
