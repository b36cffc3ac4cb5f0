"""What benchmarks/gpu_speed.py will compute and move, worked out from shapes alone: no GPU, no torch.

    SHAPES                       the models, by name
    expectations(shape, T)       one `Expected` for each way: rows, FLOPs, tokens, bytes
    lines(...)                   the same as rows of a table, with times at a rate and a bandwidth

A multiply and an add are two FLOPs. Causal attention counts half of its square, as a kernel that skips the other half does. Only
products are counted: norms, activations and softmax are not, so a time from a rate is a floor.

T frames, P patches a frame (a pair of frames for Qwen3-VL), C encoder width, D hidden, N computed rows, S prompt positions.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from harness import TEXT_POSITIONS
from random_checkpoint import PATCH, SIZES, Tower

POSITION_SIDE = 48  # Qwen3-VL learns 48 x 48 positions and interpolates them
DEEPSTACK = {"qwen3-vl-2b": [5, 11, 17], "tiny-qwen3-vl": [0]}
WHOLE, KEEP = 8, 0.25  # encoder reuse: one frame in eight in full, a quarter of the patches of the others
BYTES = 2  # bf16
OWN, OWN_COMPILED, OURS, KERNEL, REUSE = (
    "transformers, own pooling",
    "own pooling, compiled",
    "st-gridpool, compiled",
    "st-gridpool, kernel",
    "st-gridpool, kernel, encoder reuse",
)


@dataclass(frozen=True)
class Shape:
    """family: llava-onevision or qwen3-vl; size: of random_checkpoint.SIZES (llava); pixels: a side; patch: pixels; merge: patches
    a side that the encoder's merger joins; frames_a_step: that share their patches; head_dim: of the LLM."""

    name: str
    family: str
    vision: Tower
    llm: Tower
    head_dim: int
    vocabulary: int
    tied: bool
    pixels: int
    patch: int
    merge: int = 1
    frames_a_step: int = 1
    size: str = ""

    @property
    def side(self) -> int:
        return self.pixels // self.patch

    def grid(self, frames: int) -> tuple[int, int, int]:
        """Steps, rows and columns of what is compressed."""
        return frames // self.frames_a_step, self.side // self.merge, self.side // self.merge

    def own_tokens(self, frames: int) -> int:
        steps, rows, columns = self.grid(frames)
        return steps * rows * columns if self.family == "qwen3-vl" else steps * -(-rows // 2) * -(-columns // 2) + 1

    def our_tokens(self, frames: int) -> int:
        """st-gridpool: windows of 2 x 2, a remainder is dropped."""
        steps, rows, columns = self.grid(frames)
        return steps * (rows // 2) * (columns // 2)


def _llava(name: str, size: str) -> Shape:
    of = SIZES[size]
    return Shape(
        name, "llava-onevision", of.vision, of.llm, of.llm.width // of.llm.heads, of.vocabulary, of.tied, of.image, PATCH, size=size
    )


def _qwen(name: str, vision: Tower, llm: Tower, head_dim: int, vocabulary: int, pixels: int) -> Shape:
    return Shape(name, "qwen3-vl", vision, llm, head_dim, vocabulary, True, pixels, patch=16, merge=2, frames_a_step=2)


SHAPES = {
    shape.name: shape
    for shape in (
        _llava("0.5b", "0.5b"),
        _llava("7b", "7b-vision"),
        _qwen("qwen3-vl-2b", Tower(1024, 24, 16, 16, 4096), Tower(2048, 28, 16, 8, 6144), 128, 151_936, 448),
        _llava("tiny", "tiny"),
        _qwen("tiny-qwen3-vl", Tower(64, 2, 4, 4, 128), Tower(64, 2, 4, 2, 128), 16, 512, 128),
    )
}


@dataclass(frozen=True)
class Expected:
    """One way: rows N through the encoder's layers, FLOPs, visual tokens, bytes of compression, a decode step and the weights."""

    way: str
    rows: int
    encode_flop: float
    tokens: int
    compress_bytes: int
    prefill_flop: float
    decode_bytes: int
    weight_bytes: int
    kv_bytes: int


def expectations(shape: Shape, frames: int) -> list[Expected]:
    patches = shape.side**2
    every = frames // shape.frames_a_step * patches
    ways = [(OWN, every, shape.own_tokens(frames)), (OWN_COMPILED, every, shape.own_tokens(frames))]
    ways += [(OURS, every, shape.our_tokens(frames)), (KERNEL, every, shape.our_tokens(frames))]
    if shape.family != "qwen3-vl":
        full = max(1, frames // WHOLE)
        ways.append((REUSE, full * patches + (frames - full) * int(KEEP * patches), shape.our_tokens(frames)))
    return [_expected(shape, frames, *way) for way in ways]


def _expected(shape: Shape, frames: int, way: str, rows: int, tokens: int) -> Expected:
    steps, height, width = shape.grid(frames)
    positions = tokens + TEXT_POSITIONS
    pooled = not (shape.family == "qwen3-vl" and way in (OWN, OWN_COMPILED))
    moved = BYTES * shape.llm.width * (steps * height * width + tokens) if pooled else 0
    weights, kv = BYTES * parameters(shape), kv_bytes(shape, positions)
    # a tied embedding is the head, and read; an untied one is a look-up
    read = BYTES * (_decoder_parameters(shape) + shape.vocabulary * shape.llm.width)
    return Expected(
        way, rows, encode_flop(shape, frames, rows), tokens, moved, prefill_flop(shape, positions), read + kv, weights, kv
    )


def encode_flop(shape: Shape, frames: int, rows: int) -> float:
    """From pixels to the LLM's width. A row attends to the P patches of its frame; reuse projects its rows alone."""
    c, mlp, d, patches = shape.vision.width, shape.vision.mlp, shape.llm.width, shape.side**2
    every = frames // shape.frames_a_step * patches
    stem = 2 * every * c * 3 * shape.frames_a_step * shape.patch**2
    layers = shape.vision.layers * (2 * rows * (4 * c * c + 2 * c * mlp) + 4 * rows * patches * c)
    if shape.family == "qwen3-vl":
        wide = shape.merge**2 * c
        project = 2 * rows // shape.merge**2 * (wide * wide + wide * d) * (1 + len(DEEPSTACK[shape.name]))
    else:
        project = 2 * rows * (c * d + d * d)
    return float(stem + layers + project)


def prefill_flop(shape: Shape, positions: int, causal: float = 0.5) -> float:
    """One prompt; the head runs at the last position alone. causal: the share of the square of attention that is computed."""
    llm, queries, keys = shape.llm, shape.llm.heads * shape.head_dim, shape.llm.kv_heads * shape.head_dim
    linear = 2 * positions * (llm.width * (2 * queries + 2 * keys) + 3 * llm.width * llm.mlp)
    return float(llm.layers * (linear + causal * 4 * positions**2 * queries) + 2 * llm.width * shape.vocabulary)


def kv_bytes(shape: Shape, positions: int) -> int:
    return 2 * BYTES * shape.llm.layers * shape.llm.kv_heads * shape.head_dim * positions


def parameters(shape: Shape) -> int:
    embeddings = shape.vocabulary * shape.llm.width * (1 if shape.tied else 2)
    return _vision_parameters(shape) + _decoder_parameters(shape) + embeddings


def _vision_parameters(shape: Shape) -> int:
    """The encoder and what takes its features to the LLM's width."""
    c, mlp, d = shape.vision.width, shape.vision.mlp, shape.llm.width
    layers = shape.vision.layers * (4 * c * c + 4 * c + 2 * c * mlp + mlp + c + 4 * c)
    stem = c * 3 * shape.frames_a_step * shape.patch**2 + c
    if shape.family == "qwen3-vl":
        wide, deep = shape.merge**2 * c, len(DEEPSTACK[shape.name])
        mergers = (1 + deep) * (wide * wide + wide + wide * d + d) + 2 * c + deep * 2 * wide
        return layers + stem + POSITION_SIDE**2 * c + mergers
    return layers + stem + shape.side**2 * c + 2 * c + (c * d + d + d * d + d) + d


def _decoder_parameters(shape: Shape) -> int:
    """The LLM's layers and last norm."""
    llm, queries, keys = shape.llm, shape.llm.heads * shape.head_dim, shape.llm.kv_heads * shape.head_dim
    extra = (
        2 * shape.head_dim if shape.family == "qwen3-vl" else queries + 2 * keys
    )  # Qwen3 norms queries and keys, Qwen2 has biases
    return llm.layers * (llm.width * (2 * queries + 2 * keys) + extra + 3 * llm.width * llm.mlp + 2 * llm.width) + llm.width


COLUMNS = (
    *("size", "frames", "", "encoder rows", "encode TFLOP", "visual tokens", "prefill TFLOP", "weights GB", "KV MB"),
    *("encode ms", "compress ms", "prefill ms", "first token ms", "decode ms a token"),
)


def lines(shape: Shape, frames: int, tflops: float, bandwidth: float) -> Iterator[Sequence[Any]]:
    """Rows of COLUMNS. tflops: TFLOP/s in bf16; bandwidth: TB/s."""
    for way in expectations(shape, frames):
        encode, prefill = way.encode_flop / tflops / 1e9, way.prefill_flop / tflops / 1e9
        compress, decode = way.compress_bytes / bandwidth / 1e9, way.decode_bytes / bandwidth / 1e9
        sizes = (way.encode_flop / 1e12, str(way.tokens), way.prefill_flop / 1e12, way.weight_bytes / 1e9, way.kv_bytes / 1e6)
        times = (encode, compress, prefill, encode + compress + prefill, decode)
        yield (shape.name, str(frames), way.way, str(way.rows), *sizes, *times)
