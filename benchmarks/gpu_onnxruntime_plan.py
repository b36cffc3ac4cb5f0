"""What the 0.5B bundle must cost on the GPU, from its shapes alone: bytes, operations, and the times they allow.

Nothing is imported that needs a GPU. Rates: 750 TFLOP/s in bf16 and fp16, 3.0 TB/s. A stage takes at least the longer of its
operations at the one and its bytes at the other; what it takes longer is launches, copies and kernels below the rates.

T frames, H patch rows (as many columns), C encoder width, D hidden, S prompt positions, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass

import gpu_plan
from gpu_plan import BYTES, SHAPES, Shape, encode_flop, prefill_flop
from harness import TEXT_POSITIONS, table
from random_checkpoint import PATCH, SIZES, Size, Tower

FLOPS, BANDWIDTH = 750e12, 3.0e12
NEW_TOKENS = 32


@dataclass(frozen=True)
class Stage:
    """name; operations: multiplications and additions; bytes: read and written at least once."""

    name: str
    operations: float
    bytes: float

    @property
    def seconds(self) -> float:
        return max(self.operations / FLOPS, self.bytes / BANDWIDTH)

    @property
    def bound(self) -> str:
        return "operations" if self.operations / FLOPS >= self.bytes / BANDWIDTH else "bytes"


def shape_of(size: Size) -> Shape:
    return next(shape for shape in SHAPES.values() if shape.size and SIZES[shape.size] == size)


def visual_tokens(size: Size, frames: int) -> int:
    """Of the default compression, and the newline that ends them."""
    return shape_of(size).our_tokens(frames) + 1


def matrix_values(tower: Tower, gated: bool) -> int:
    """Values of the matrices of all layers: what a token is multiplied with. gated: three MLP matrices, not two."""
    kv = tower.width // tower.heads * tower.kv_heads
    attention = 2 * tower.width * tower.width + 2 * tower.width * kv
    return tower.layers * (attention + (3 if gated else 2) * tower.width * tower.mlp)


def kv_bytes(size: Size, positions: int) -> int:
    return gpu_plan.kv_bytes(shape_of(size), positions)


def stages(size: Size, frames: int) -> list[Stage]:
    """Encode with compression, prefill of the clip's tokens and the text, one decode step after it."""
    vision, llm, shape = size.vision, size.llm, shape_of(size)
    positions = visual_tokens(size, frames) + TEXT_POSITIONS
    seeing = matrix_values(vision, gated=False) + 3 * PATCH**2 * vision.width + vision.width * llm.width + llm.width**2
    clip = frames * 3 * size.image**2
    speaking = matrix_values(llm, gated=True) + size.vocabulary * llm.width
    step = 2 * speaking + 4 * positions * llm.width * llm.layers
    read = speaking * BYTES + kv_bytes(size, positions)
    return [
        Stage("encode + compress", encode_flop(shape, frames, frames * shape.side**2), (seeing + clip) * BYTES),
        Stage(f"prefill of {positions:,}", prefill_flop(shape, positions), read),
        Stage("one decode step", step, read),
    ]


def text(size: Size, frames: int, name: str) -> str:
    """The plan as Markdown."""
    made = stages(size, frames)
    rows = [[stage.name, stage.operations / 1e12, stage.bytes / 1e9, stage.bound, 1000 * stage.seconds] for stage in made]
    first = sum(stage.seconds for stage in made[:2])
    copied = 1e6 * 2 * kv_bytes(size, visual_tokens(size, frames) + 1000) / BANDWIDTH
    clip_mb = frames * 3 * size.image**2 * 2 / 1e6
    return "\n".join(
        [
            f"### plan: {name}, {frames} frames, fp16, at {FLOPS / 1e12:.0f} TFLOP/s and {BANDWIDTH / 1e12:.1f} TB/s",
            "",
            table(("stage", "TFLOP", "GB", "bound by", "at least ms"), rows),
            "",
            f"First token {1000 * first:.3g} ms at least, {1 / made[-1].seconds:,.0f} tokens/s at most. "
            f"Uploading the clip, {clip_mb:.0f} MB, takes {clip_mb / 25:.2g} ms at 25 GB/s, "
            f"and several times that from pageable memory. A copied KV cache would add {copied:.0f} µs to a step.",
        ]
    )


def numbers(size: Size, frames: int) -> dict:
    return {
        stage.name: {"operations": stage.operations, "bytes": stage.bytes, "seconds": stage.seconds}
        for stage in stages(size, frames)
    }
