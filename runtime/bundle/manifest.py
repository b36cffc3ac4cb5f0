"""`manifest.json` as records: frozen dataclasses with one field per key, whose type says which values the key takes.

`python -m runtime.bundle.schema` writes `schema.json` from them, which the Python and the C++ runtime check manifests with. A key
whose field has a default may be absent, and is not written while the field is None; a record that may be None and has no default
is the object {} then. A key that a later export adds gets a default here, so that older bundles open; readers ignore keys that they
don't know.

T frames, H, W patch rows and columns, h, w pixels, N visual tokens, D hidden, V vocabulary.
"""

from __future__ import annotations

from dataclasses import MISSING, Field, dataclass, field, fields, is_dataclass
from types import NoneType
from typing import Any, Literal, get_args, get_origin, get_type_hints

SCHEMA_VERSION = 1
RESAMPLING = ("nearest", "lanczos", "bilinear", "bicubic", "box", "hamming")  # Pillow's filters, each at its number
REPETITION_PENALTIES = 1e-3, 1e3  # least and most; logits divided by less, or times more, may overflow

_COUNT: dict[str, Any] = {"minimum": 1, "maximum": 2**31 - 1}  # products of two counts fit 64 bits
_ID: dict[str, Any] = {"minimum": -(2**31), "maximum": 2**31 - 1}
_SIDE: dict[str, Any] = {"minimum": 1, "maximum": 2**15}
_FLOAT32 = 3.4028234663852886e38


def key(description: str, default: Any = MISSING, name: str = "", **limits: Any) -> Any:
    """A dataclass field. name: of the key, where it can't be the field's; limits: JSON schema's keywords for a scalar or an item."""
    return field(default=default, metadata={"description": description, "name": name, "limits": limits})


@dataclass(frozen=True)
class Checkpoint:
    """Which weights were exported."""

    id: str = key("hub id or directory name")
    sha256: str = key("digest over the weight files")


@dataclass(frozen=True)
class Compression:
    """How patch tokens become visual tokens."""

    preset: str = key("the name that was asked for")
    spec: str = key("the spec with every option written out")
    place: str = key("after-projector or before-projector")


@dataclass(frozen=True)
class Preprocessing:
    """From frames to pixel values."""

    size: tuple[int, int] = key("[h, w] of the encoder's input", **_SIDE)
    resample: Literal["nearest", "lanczos", "bilinear", "bicubic", "box", "hamming", 0, 1, 2, 3, 4, 5] = key("Pillow's filter")
    rescale_factor: float = key("what pixels from 0 to 255 are multiplied by", minimum=-_FLOAT32 / 255, maximum=_FLOAT32 / 255)
    image_mean: float | tuple[float, float, float] = key("one number, or three", minimum=-_FLOAT32, maximum=_FLOAT32)
    image_std: float | tuple[float, float, float] = key("as image_mean", minimum=2.0**-126, maximum=_FLOAT32)
    frames: tuple[int, int] | None = key("[h, w] of the uint8 frames that the graphs preprocess themselves", None, **_SIDE)


@dataclass(frozen=True)
class PromptInfo:
    """What prompts are made of."""

    chat_template: str = key("name of the template's file in llm/")
    video_token: str = key("the token that visual tokens replace")
    video_token_id: int = key("its id", **_ID)
    eos_token_ids: tuple[int, ...] = key("ids that end an answer", **_ID)
    repetition_penalty: float | None = key(
        "that of generation_config.json, absent for none", None, minimum=REPETITION_PENALTIES[0], maximum=REPETITION_PENALTIES[1]
    )
    around_question: tuple[str, str] | None = key("the template before and after a question that it leaves as it is", None)


@dataclass(frozen=True)
class LLMInfo:
    """The decoder graphs."""

    layers: int = key("decoder layers", **_COUNT)
    kv_heads: int = key("key and value heads of a layer", **_COUNT)
    head_dim: int = key("width of a head", **_COUNT)
    vocab_size: int | None = key("V", None, **_COUNT)
    attention: str = key("portable, standard for ONNX's Attention, or flash for ONNX Runtime on CUDA alone", "portable")
    precision: str | None = key("of the weights; absent: the manifest's", None, enum=["fp32", "fp16", "int8", "int4"])
    block: int | None = key("weights that share a scale, of int4 alone", None, **_COUNT)


@dataclass(frozen=True)
class Limits:
    """What the graphs were made for."""

    max_context: int = key("positions of the KV cache", **_COUNT)


@dataclass(frozen=True)
class StageTensor:
    """A tensor that parity compares."""

    name: str = key("the stage's name")
    graph: str = key("the graph that computes it")
    tensor: str = key("its name in the graph")
    every: int = key("the reference keeps one row of so many", 1, **_COUNT)
    rounding: float = key("relative difference that float32 alone makes in torch's features, 0 where unknown", 0.0, minimum=0)


@dataclass(frozen=True)
class PassReport:
    """What one graph pass did."""

    graph: str = key("the graph that it ran on")
    name: str = key("the pass's name", name="pass")
    rewrites: int = key("changes that it made")
    note: str = key("what is left or newly true")


@dataclass(frozen=True)
class FileEntry:
    """A file of the bundle."""

    size: int = key("bytes", minimum=0, maximum=2**53)
    sha256: str = key("hex digest")


UNHASHED = FileEntry(0, "")  # of a file that is still being written


@dataclass(frozen=True)
class Manifest:
    """A bundle's contents, in the order of the file."""

    family: str = key("registry name of the model family")
    checkpoint: Checkpoint = key("what was exported")
    compression: Compression = key("what the vision graphs compress with")
    frames: int = key("T, the frames that a clip is sampled to", **_COUNT)
    grid: tuple[int, int] = key("[H, W] patch tokens of a frame", **_COUNT)
    tokens_per_clip: int = key("N, rows of `visual_tokens`, the closing newline token included", **_COUNT)
    hidden_size: int = key("D of the LLM", **_COUNT)
    preprocessing: Preprocessing = key("from frames to pixel values")
    prompt: PromptInfo | None = key("{} without an LLM")
    llm: LLMInfo | None = key("{} without an LLM")
    precision: str = key("of the vision encoder's weights and activations", enum=["fp32", "fp16", "int8"])
    opset: int = key("ONNX opset, the higher one where the graphs have two", **_COUNT)
    limits: Limits | None = key("{} without an LLM")
    stages: tuple[StageTensor, ...] = key("tensors that parity compares, in order")
    report: tuple[PassReport, ...] = key("what the graph passes did")
    versions: dict[str, str] = key("{tool: version} of everything that wrote the bundle")
    files: dict[str, FileEntry] = field(default_factory=dict, metadata={"description": "by path below the bundle's directory"})

    @property
    def llm_precision(self) -> str:
        """Of the LLM's weights; int8 and int4 compute and keep their cache in float32."""
        return (self.llm and self.llm.precision) or self.precision

    @property
    def patch_tokens(self) -> int:
        """Patch tokens of a clip before compression, T * H * W."""
        return self.frames * self.grid[0] * self.grid[1]


def key_of(of: Field) -> str:
    """The key that a field stands for."""
    return of.metadata.get("name") or of.name


def without_none(kind: Any) -> list[Any]:
    """The alternatives of a type, None left out: `int | None` -> [int]."""
    return [one for one in get_args(kind) if one is not NoneType] if NoneType in get_args(kind) else [kind]


def read(kind: Any, value: Any) -> Any:
    """The record of type `kind` that a JSON value, which passed the schema, describes; keys without a field are ignored."""
    if len(choices := without_none(kind)) == 1 and choices != [kind]:
        return None if value == {} else read(choices[0], value)
    if isinstance(kind, type) and is_dataclass(kind):
        types = get_type_hints(kind)
        present = {one.name: key_of(one) for one in fields(kind) if key_of(one) in value}
        return kind(**{name: read(types[name], value[of]) for name, of in present.items()})
    if get_origin(kind) is dict:
        return {name: read(get_args(kind)[1], one) for name, one in value.items()}
    if get_origin(kind) is tuple:
        return tuple(read(get_args(kind)[0], one) for one in value)
    return tuple(value) if isinstance(value, list) else value


def written(value: Any) -> Any:
    """A record, or records in tuples and dicts, as JSON values; keys in the order of the fields."""
    if is_dataclass(value) and not isinstance(value, type):
        found = ((one, getattr(value, one.name)) for one in fields(value))
        return {key_of(one): {} if v is None else written(v) for one, v in found if v is not None or one.default is MISSING}
    if isinstance(value, dict):
        return {name: written(one) for name, one in value.items()}
    return [written(one) for one in value] if isinstance(value, tuple | list) else value
