"""What may be asked: OpenAI's chat completions with clips, and the two video routes.

A field that OpenAI has and this server can't honour is refused unless it has the value that changes nothing; a field that
nobody has is refused by name. null is as good as leaving a field out.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from runtime.server.errors import ApiError

MAX_MESSAGES, MAX_CLIPS = 256, 8


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


def _as_object(value: Any) -> Any:
    return {"url": value} if isinstance(value, str) else value


class MediaUrl(_Strict):
    """`detail` and `format` are accepted and change nothing: every clip becomes the bundle's frames."""

    url: str | None = None
    data: str | None = None
    format: str | None = None
    detail: str | None = None


Media = Annotated[MediaUrl, BeforeValidator(_as_object)]


class TextPart(_Strict):
    type: Literal["text"]
    text: str


class VideoPart(_Strict):
    type: Literal["video_url"]
    video_url: Media


class InputVideoPart(_Strict):
    type: Literal["input_video"]
    input_video: Media


class ImagePart(_Strict):
    type: Literal["image_url"]
    image_url: Media


Part = Annotated[TextPart | VideoPart | InputVideoPart | ImagePart, Field(discriminator="type")]


class Message(_Strict):
    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[Part]
    name: str | None = None
    refusal: None = None


class StreamOptions(_Strict):
    include_usage: bool | None = None
    include_obfuscation: bool | None = None


class TextFormat(_Strict):
    type: Literal["text"]


class ChatRequest(_Strict):
    model: str
    messages: list[Message] = Field(min_length=1, max_length=MAX_MESSAGES)
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    max_tokens: int | None = Field(None, ge=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, gt=0, le=1)
    stop: str | list[str] | None = None
    seed: int | None = Field(None, ge=-(2**63), lt=2**63)
    # accepted, of no consequence here
    user: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    service_tier: Literal["auto", "default"] | None = None
    store: Literal[False] | None = None
    metadata: dict[str, str] | None = None
    # only as the value that changes nothing
    n: Literal[1] | None = None
    logprobs: Literal[False] | None = None
    top_logprobs: Literal[0] | None = None
    presence_penalty: Annotated[float, Field(ge=0, le=0)] | None = None
    frequency_penalty: Annotated[float, Field(ge=0, le=0)] | None = None
    logit_bias: Annotated[dict[str, float], Field(max_length=0)] | None = None
    response_format: TextFormat | None = None
    tools: Annotated[list[Any], Field(max_length=0)] | None = None
    tool_choice: Literal["none", "auto"] | None = None
    modalities: list[Literal["text"]] | None = None

    @property
    def stops(self) -> list[str]:
        return [self.stop] if isinstance(self.stop, str) else self.stop or []

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


def parse(model: type[_Model], body: bytes) -> _Model:
    """A request's JSON body as `model`; ApiError 400 names the first thing that is wrong with it."""
    try:
        return model.model_validate_json(body)
    except ValidationError as error:
        raise _refused(error) from None


def _refused(error: ValidationError) -> ApiError:
    # of a union's branches, the one that got furthest is the one that was meant
    first = max(error.errors(include_url=False, include_input=False), key=lambda one: len(one["loc"]))
    param = _path(first["loc"]) or None
    if first["type"] == "json_invalid":
        return ApiError(400, f"the body is not valid JSON: {first['msg'].removeprefix('Invalid JSON: ')}", "invalid_json")
    if first["type"] == "extra_forbidden":
        return ApiError(400, f"Unknown parameter: '{param}'.", "unknown_parameter", param)
    if first["type"] == "missing":
        return ApiError(400, f"Missing required parameter: '{param}'.", "missing_required_parameter", param)
    return ApiError(400, f"Invalid value for '{param}': {first['msg']}.", "invalid_value", param)


def _path(location: tuple[int | str, ...]) -> str:
    """`location` as the client wrote it, without the steps that pydantic adds for the branches of a union."""
    found = []
    for at, step in enumerate(location):
        branch = isinstance(step, str) and (step == "str" or step.startswith(("list[", "function-")))
        tag = at > 1 and isinstance(location[at - 1], int) and str(location[at - 2]).startswith("list[")
        if not branch and not tag:
            found.append(str(step))
    return ".".join(found)
