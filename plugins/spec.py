"""The op `gridpool::StGridPool`: name, attributes, shape rule, and what the CUDA kernel covers. Standard library only.

    input   x       [T, H, W, D]    float32 | float16 | bfloat16, contiguous
    output  tokens  [T, H', W', D]  the same type;  H' = (H + 2*padding) // window,  W' likewise

    attribute     type    meaning
    sizes         ints    frames tiled into one summary, per level of Pyramid Temporal Gridding; left out where there is none
    strides       ints    every how many frames one is sampled, per level; left out with sizes
    window        int     side of the pooled square (Norm-based Spatial Pooling)
    temperature   float   factor on the norms before the softmax
    order         float   p of the norm, inf for the largest magnitude
    padding       int     rings of zero tokens around each frame; they take part in the softmax
    plan          ints    the schedule as tables (plugins/plan.py); only in graphs, made from the rest and T, H, W

An empty list has no type in ONNX and no length in a TensorRT plugin field: no pyramid is no attribute.

T frames, H, W patch rows and columns, D hidden, H', W' windows.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from plugins.errors import SpecError, nearest

NAME = "StGridPool"
DOMAIN = "gridpool"  # also the plugin's namespace
VERSION = "1"
DTYPES = ("float32", "float16", "bfloat16")

LANES = 8  # D must be a multiple: 16 bytes of the 16-bit types
MAX_WINDOW = 32
MAX_ORDER = 8  # |x|^p is summed in float32
MAX_FRAMES = 1024


@dataclass(frozen=True)
class StGridPool:
    """The op's attributes. Raises SpecError where they make no sense on any grid."""

    sizes: tuple[int, ...] = (4, 4, 4)
    strides: tuple[int, ...] = (2, 4, 8)
    window: int = 2
    temperature: float = 1.0
    order: float = 2.0
    padding: int = 0

    def __post_init__(self):
        if len(self.sizes) != len(self.strides):
            raise SpecError(f"{NAME}: {len(self.sizes)} sizes and {len(self.strides)} strides; give every level one of each")
        for name, values in (("sizes", self.sizes), ("strides", self.strides), ("window", [self.window])):
            if any(value < 1 for value in values):
                raise SpecError(f"{NAME}: {name} is {_text(values)}; expected whole numbers of at least 1")
        if not self.order >= 1:
            raise SpecError(f"{NAME}: order is {self.order:g}; expected at least 1")
        if not 0 <= self.temperature < math.inf:
            raise SpecError(f"{NAME}: temperature is {self.temperature:g}; expected a finite number of at least 0")
        if not 0 <= self.padding < self.window:
            raise SpecError(f"{NAME}: padding is {self.padding}; expected 0 to {self.window - 1}, less than the window")

    def __str__(self) -> str:
        nsp = f"nsp:window={self.window},temperature={self.temperature:g},order={self.order:g}"
        nsp += f",padding={self.padding}" if self.padding else ""
        return f"ptg:sizes={_text(self.sizes)},strides={_text(self.strides)}+{nsp}" if self.sizes else nsp


def spec_from_text(text: str) -> StGridPool:
    """The op for an expanded compression spec of the form `[ptg:…+]nsp:…`; SpecError says why another one is not covered."""
    stages = [part.strip().partition(":") for part in text.split("+")]
    names = [name for name, _, _ in stages]
    if names not in (["nsp"], ["ptg", "nsp"]):
        raise SpecError(f'{NAME} covers "nsp" and "ptg+nsp", not "{"+".join(names)}"; the plain graph computes every spec')
    values: dict[str, Any] = {} if "ptg" in names else {"sizes": (), "strides": ()}
    kinds: dict[str, dict[str, Any]] = {
        "ptg": {"sizes": _ints, "strides": _ints},
        "nsp": {"window": int, "temperature": float, "order": float, "padding": int},
    }
    for name, _, options in stages:
        for item in filter(None, options.split(",")):
            key, _, value = (piece.strip() for piece in item.partition("="))
            if key not in kinds[name]:
                raise SpecError(f'stage "{name}" has no option "{key}"{nearest(key, kinds[name])}')
            try:
                values[key] = kinds[name][key](value)
            except ValueError:
                raise SpecError(f'stage "{name}": {key}={value} is not a number (or a list with / between)') from None
    return StGridPool(**values)


def attributes_of(spec: StGridPool) -> dict[str, Any]:
    """ONNX attributes, without the plan."""
    pyramid = {"sizes": list(spec.sizes), "strides": list(spec.strides)} if spec.sizes else {}
    scalars = {"window": spec.window, "temperature": float(spec.temperature), "order": float(spec.order), "padding": spec.padding}
    return pyramid | scalars


def spec_from_attributes(attributes: Mapping[str, Any]) -> StGridPool:
    """The inverse; attributes of other names (plan, plugin_namespace, …) are left alone."""
    return StGridPool(
        sizes=tuple(int(v) for v in attributes.get("sizes", ())),
        strides=tuple(int(v) for v in attributes.get("strides", ())),
        window=int(attributes.get("window", 2)),
        temperature=float(attributes.get("temperature", 1.0)),
        order=float(attributes.get("order", 2.0)),
        padding=int(attributes.get("padding", 0)),
    )


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
        raise SpecError(f"{NAME}: the input is {_shape(shape)}; expected [T, H, W, D] with at least one of each")
    if min(rows, columns) < 1:
        raise SpecError(f"{NAME}: window {spec.window} does not fit a grid of {height}x{width} tokens; choose a smaller window")
    for size in spec.sizes:
        down, across = tile_layout(size)
        if down > height or across > width:
            raise SpecError(f"{NAME}: {size} frames are tiled {down}x{across}, too many for a grid of {height}x{width}")
    return frames, rows, columns, hidden


def not_covered(spec: StGridPool, shape: Sequence[int], dtype: str) -> str:
    """Why the CUDA kernel declines, as one line; "" where it takes the op. The plain graph computes what it declines."""
    if len(shape) != 4:
        return f"the input has shape {_shape(shape)}; expected [T, H, W, D]"
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


def _ints(text: str) -> tuple[int, ...]:
    return tuple(int(item) for item in text.split("/"))


def _text(values: Sequence[int]) -> str:
    return "/".join(map(str, values))


def _shape(shape: Sequence[int]) -> str:
    return f"[{', '.join(map(str, shape))}]"
