"""The op `gridpool::StGridPool`: name, attributes, shape rule, and what the CUDA kernel covers. Standard library only.

    input   x       [T, H, W, D]    float32 | float16 | bfloat16, contiguous
    output  tokens  [T, H', W', D]  the same type;  H' = (H + 2*padding) // window,  W' likewise

    attribute     type    meaning
    sizes         ints    frames tiled into one summary, per level of Pyramid Temporal Gridding; omitted without a pyramid
    strides       ints    every how many frames one is sampled, per level; omitted with sizes
    window        int     side of the pooled square (Norm-based Spatial Pooling)
    temperature   float   factor on the norms before the softmax
    order         float   p of the norm, inf for the largest magnitude
    padding       int     rings of zero tokens around each frame, which take part in the softmax
    plan          ints    the schedule as tables (plugins/plan.py); only in graphs, made from the rest and T, H, W

(An empty list has no type in ONNX and no length in a TensorRT plugin field, so without a pyramid the attributes are omitted.)

T frames, H, W patch rows and columns, D hidden, H', W' windows.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from plugins.errors import SpecError
from plugins.spec import Parsed, check_ranges, format, format_value, option, parse

NAME = "StGridPool"
DOMAIN = "gridpool"  # also the plugin's namespace
VERSION = "1"
DTYPES = ("float32", "float16", "bfloat16")

LANES = 8  # D must be a multiple: 16 bytes of the 16-bit types
MAX_WINDOW = 32
MAX_ORDER = 8  # |x|^p is summed in float32
MAX_FRAMES = 1024


@dataclass(frozen=True)
class PTGOptions:
    """Pyramid Temporal Gridding."""

    sizes: tuple[int, ...] = option((4, 4, 4), "frames tiled into one summary, per level", at_least=1)
    strides: tuple[int, ...] = option((2, 4, 8), "every how many frames one is sampled, per level", at_least=1)

    def __post_init__(self):
        if len(self.sizes) != len(self.strides):
            sizes, strides = format_value(self.sizes), format_value(self.strides)
            raise SpecError(f"ptg: sizes={sizes} and strides={strides} differ in length; give each level a size and a stride")


@dataclass(frozen=True)
class NSPOptions:
    """Norm-based Spatial Pooling."""

    window: int = option(2, "side of the square of patches that becomes one token", at_least=1)
    temperature: float = option(1.0, "factor on the norms before the softmax; 0 is average pooling", at_least=0, at_most=1e6)
    order: float = option(2.0, "p of the norm; inf for the largest magnitude", at_least=1)
    padding: int = option(0, "rings of zero tokens around the frame that take part", at_least=0, only_if_set=True)

    def __post_init__(self):
        if self.padding and self.padding >= self.window:
            raise SpecError(f"nsp: padding={self.padding} makes windows of padding alone; expected less than window={self.window}")


OPTIONS: dict[str, type] = {"ptg": PTGOptions, "nsp": NSPOptions}


@dataclass(frozen=True)
class StGridPool:
    """The op's attributes. Raises SpecError where they make no sense on any grid."""

    sizes: tuple[int, ...] = PTGOptions.sizes
    strides: tuple[int, ...] = PTGOptions.strides
    window: int = NSPOptions.window
    temperature: float = NSPOptions.temperature
    order: float = NSPOptions.order
    padding: int = NSPOptions.padding

    def __post_init__(self):
        for stage in self.stages():
            check_ranges(stage.name, stage.options)

    def __str__(self) -> str:
        return format(self.stages())

    def stages(self) -> list[Parsed]:
        """The stages that the op computes: nsp, after ptg where there is a pyramid."""
        ptg = [Parsed("ptg", PTGOptions(self.sizes, self.strides))] if self.sizes or self.strides else []
        return [*ptg, Parsed("nsp", NSPOptions(self.window, self.temperature, self.order, self.padding))]


def spec_from_text(text: str) -> StGridPool:
    """The op for a compression spec of the form `[ptg:…+]nsp:…`; SpecError says why another one is not covered."""
    names = [stage.name for stage in parse(text, {}, others=True)]
    if names not in (["nsp"], ["ptg", "nsp"]):
        raise SpecError(f'{NAME} covers "nsp" and "ptg+nsp", not "{"+".join(names)}"; the plain graph computes every spec')
    values: dict[str, Any] = {"sizes": (), "strides": ()}
    for stage in parse(text, OPTIONS):
        values |= asdict(stage.options)
    return StGridPool(**values)


def attributes_of(spec: StGridPool) -> dict[str, Any]:
    """ONNX attributes, without the plan."""
    pyramid = {"sizes": list(spec.sizes), "strides": list(spec.strides)} if spec.sizes else {}
    scalars = {"window": spec.window, "temperature": float(spec.temperature), "order": float(spec.order), "padding": spec.padding}
    return pyramid | scalars


def tile_layout(size: int) -> tuple[int, int]:
    """(rows, columns) in which `size` frames are tiled: the most square factor pair, rows >= columns."""
    columns = max(n for n in range(1, math.isqrt(size) + 1) if size % n == 0)
    return size // columns, columns


def output_shape(spec: StGridPool, shape: Sequence[int]) -> tuple[int, int, int, int]:
    """[T, H, W, D] -> [T, H', W', D]; SpecError where a window or a tile does not fit."""
    frames, height, width, hidden = shape
    ring = 2 * spec.padding
    rows, columns = (height + ring) // spec.window, (width + ring) // spec.window
    if min(frames, height, width, hidden) < 1:
        raise SpecError(f"{NAME}: the input is {list(shape)}; expected [T, H, W, D] with at least one of each")
    if min(rows, columns) < 1:
        raise SpecError(f"{NAME}: window {spec.window} does not fit a grid of {height}x{width} tokens; choose a smaller window")
    for size in spec.sizes:
        down, across = tile_layout(size)
        if down > height or across > width:
            raise SpecError(f"{NAME}: {size} frames are tiled {down}x{across}, too many for a grid of {height}x{width}")
    return frames, rows, columns, hidden


def not_covered(spec: StGridPool, shape: Sequence[int], dtype: str) -> str:
    """Why the CUDA kernel does not cover a call, in one line; "" where it does. The plain graph computes what it does not cover."""
    if len(shape) != 4:
        return f"the input has shape {list(shape)}; expected [T, H, W, D]"
    frames, *_, hidden = shape
    if dtype not in DTYPES:
        return f"dtype {dtype}; expected one of {', '.join(DTYPES)}"
    if hidden % LANES:
        return f"D is {hidden}, which is not a multiple of {LANES} (16-byte loads)"
    if frames > MAX_FRAMES:
        return f"{frames} frames; expected at most {MAX_FRAMES}"
    if spec.window > MAX_WINDOW:
        return f"window {spec.window}; expected at most {MAX_WINDOW}"
    if MAX_ORDER < spec.order < math.inf:
        return f"order {spec.order:g}; expected at most {MAX_ORDER}, or inf (|x|^p is summed in float32)"
    return ""
