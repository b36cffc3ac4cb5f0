"""What the 0.5B bundle must cost on the GPU, from its shapes alone: bytes, operations, and the times they allow.

Nothing is imported that needs a GPU. Rates: 750 TFLOP/s in bf16 and fp16, 3.0 TB/s. A stage takes at least the longer of its
operations at the one and its bytes at the other; what it takes longer is launches, copies and kernels below the rates.

T frames, H patch rows (as many columns), C encoder width, D hidden, S prompt positions, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass

from harness import TEXT_POSITIONS, table
from random_checkpoint import PATCH, Size, Tower

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


def visual_tokens(size: Size, frames: int) -> int:
    """Of the default compression: 2 x 2 patches become a token, an odd row or column is left out, and a newline ends them."""
    return frames * (size.image // PATCH // 2) ** 2 + 1


def matrix_values(tower: Tower, gated: bool) -> int:
    """Values of the matrices of all layers: what a token is multiplied with. gated: three MLP matrices, not two."""
    kv = tower.width // tower.heads * tower.kv_heads
    attention = 2 * tower.width * tower.width + 2 * tower.width * kv
    return tower.layers * (attention + (3 if gated else 2) * tower.width * tower.mlp)


def kv_bytes(size: Size, positions: int, value_bytes: int = 2) -> int:
    tower = size.llm
    return 2 * tower.layers * tower.kv_heads * (tower.width // tower.heads) * positions * value_bytes


def stages(size: Size, frames: int, value_bytes: int = 2) -> list[Stage]:
    """Encode with compression, prefill of the clip's tokens and the text, one decode step after it."""
    vision, llm, side = size.vision, size.llm, size.image // PATCH
    patches, positions = side * side, visual_tokens(size, frames) + TEXT_POSITIONS
    projector = vision.width * llm.width + llm.width * llm.width
    per_patch = matrix_values(vision, gated=False) + 3 * PATCH * PATCH * vision.width + projector
    scores = 4 * patches * vision.width * vision.layers  # a patch's queries times keys, and weights times values
    encode = frames * patches * (2 * per_patch + scores)
    clip = frames * 3 * size.image * size.image * value_bytes
    layers, head = matrix_values(llm, gated=True), size.vocabulary * llm.width
    prefill = positions * 2 * layers + 2 * positions**2 * llm.width * llm.layers + 2 * head  # causal: half of the scores
    step = 2 * (layers + head) + 4 * positions * llm.width * llm.layers
    weights = (layers + head) * value_bytes
    return [
        Stage("encode + compress", encode, per_patch * value_bytes + clip),
        Stage(f"prefill of {positions:,}", prefill, weights + kv_bytes(size, positions, value_bytes)),
        Stage("one decode step", step, weights + kv_bytes(size, positions, value_bytes)),
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
