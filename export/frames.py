"""What `--input frames` puts before the encoder: uint8 frames -> pixel_values in the graph, bit for bit as Pillow makes them.

    frames uint8 [T, h, w, 3] -> resize along rows, along columns -> rescale, normalise -> pixel_values float32 [T, 3, h', w']

Pillow resizes 8-bit images in two passes, each a weighted sum with weights of 22 binary places, rounded half up and clipped to a
grey level. So a pass is a product with a constant matrix; what Pillow makes of the identity matrix is that matrix, for any of
its filters. A float32 product would have to round sums of 30 bits, so each weight is split into a high and a low part:
both products are then integers below 2^24, which float32 (and TF32) adds up exactly in any order. The result is
Pillow's on all engines, not close to it. Which pass comes first depends on the sizes and on Pillow's release: a probe tells.

The matrices stay float32 in an fp16 graph; pixel_values are rounded to fp16 at the end, as the runtime rounds them.

T frames, h, w rows and columns of a source frame, h', w' of the model's input.
"""

from __future__ import annotations

import re

import numpy as np
import torch
from torch import nn

from runtime.bundle.manifest import Preprocessing
from runtime.core.errors import ExportError
from runtime.media.preprocess import Preprocessor

PIXELS, FRAMES = "pixels", "frames"
LARGEST = 8192  # rows or columns of a source frame

_PLACES = 22  # binary places of Pillow's weights (Resample.c, PRECISION_BITS)
_PROBES = 32  # to tell the order of the passes; for a camera's frames the first one does
_EXACT = 1 << 24  # integers below it are exact in float32


def source_size(text: str, size: list[int]) -> tuple[int, int] | None:
    """(h, w) of --input: None for "pixels", the model's `size` for "frames", H and W for "frames:HxW"."""
    if text == PIXELS:
        return None
    match = re.fullmatch(rf"{FRAMES}(?::(\d+)x(\d+))?", text)
    if not match:
        raise ExportError(f'--input is "{text}"; expected pixels, frames, or frames:HEIGHTxWIDTH such as frames:720x1280')
    height, width = (size[0], size[1]) if match[1] is None else (int(match[1]), int(match[2]))
    if not (1 <= height <= LARGEST and 1 <= width <= LARGEST):
        raise ExportError(f"--input {text}: a frame has 1 to {LARGEST} rows and columns")
    return height, width


class FrameInput(nn.Module):
    """frames uint8 [T, h, w, 3] -> pixel_values float32 [T, 3, h', w'], as `runtime.media.preprocess` makes them."""

    def __init__(self, preprocessing: Preprocessing, source: tuple[int, int]):
        super().__init__()
        processor = Preprocessor(preprocessing)
        self.source, self.size = source, processor.size
        self.across = _Pass(source[1], self.size[1], processor.resample)
        self.down = _Pass(source[0], self.size[0], processor.resample, from_left=True)
        self.down_first = self._find_order(processor)
        # Plain attributes, not buffers: `.half()` must leave them alone.
        self.factor = float(preprocessing.rescale_factor)
        self.mean, self.std = (torch.tensor(value)[:, None, None] for value in processor.mean_and_std)

    def forward(self, frames: torch.Tensor) -> torch.Tensor:
        levels = frames.float().permute(0, 3, 1, 2)  # [T, 3, h, w]; TensorRT casts uint8 at the input and does nothing else with it
        return (self._resize(levels, self.down_first) * self.factor - self.mean) / self.std  # [T, 3, h', w']

    def _resize(self, levels: torch.Tensor, down_first: bool) -> torch.Tensor:
        return self.across(self.down(levels)) if down_first else self.down(self.across(levels))

    def _find_order(self, processor: Preprocessor) -> bool:
        """Whether the pass along columns comes first: the order that turns probes into what Pillow turns them into.

        The order shows where a pass rounds: in noise between black and white, which clips, or in noise of all levels, which has ties.
        Where the result has few pixels, both orders may agree on every probe. Then Pillow 13's order is used, which runs along
        columns first if that leaves it less to do (the condition was found by trial; earlier releases never do).
        """
        (height, width), (new_height, new_width) = self.source, self.size
        columns_first = new_height < height and height - new_height > 2 * (width - new_width)
        orders = [columns_first, not columns_first]
        rng = np.random.default_rng(0)
        for number in range(_PROBES if self.across.changes and self.down.changes else 1):
            levels = rng.integers(0, 256, (*self.source, 3), np.uint8)
            image = levels if number % 2 else np.where(levels > 127, np.uint8(255), np.uint8(0))
            probe, expected = (
                torch.from_numpy(shown).permute(2, 0, 1).float() for shown in (image, processor.resize(image).copy())
            )
            orders = [order for order in orders if torch.equal(self._resize(probe, order), expected)]
            if len(orders) < 2:
                break
        if not orders:
            raise ExportError("this release of Pillow resizes in a way that the graph does not support; use --input pixels")
        return orders[0]


class _Pass(nn.Module):
    """One pass of the resize over the last axis, or the last but one (`from_left`); nothing where the length stays."""

    def __init__(self, length: int, target: int, resample: int, from_left: bool = False):
        super().__init__()
        self.changes, self.from_left = length != target, from_left
        if self.changes:
            high, low, self.bits = split_weights(weights(length, target, resample))
            self.high, self.low = (
                torch.from_numpy((part.T if from_left else part).astype(np.float32).copy()) for part in (high, low)
            )

    def forward(self, levels: torch.Tensor) -> torch.Tensor:
        if not self.changes:
            return levels
        high = self.high @ levels if self.from_left else levels @ self.high
        low = self.low @ levels if self.from_left else levels @ self.low
        # high * 2^bits + low, in units of 2^-22, rounded half up; nothing on the way reaches 2^24
        unit = 1 << (_PLACES - self.bits)
        levels = torch.floor(high * (1 / unit))
        rest = (high - levels * unit) * (1 << self.bits) + low
        return (levels + torch.floor((rest + (1 << (_PLACES - 1))) * 2.0**-_PLACES)).clamp(0, 255)


def weights(length: int, target: int, resample: int) -> np.ndarray:
    """int32 [length, target]: Pillow's weights in units of 2^-22, read off from the identity matrix."""
    from PIL import Image

    strips = []
    for start in range(0, length, 512):
        strip = np.eye(min(512, length - start), length, start, np.int32) << _PLACES
        strips.append(np.asarray(Image.fromarray(strip).resize((target, len(strip)), resample=resample)))
    return np.concatenate(strips)


def split_weights(weights: np.ndarray) -> tuple[np.ndarray, np.ndarray, int]:
    """(high, low, bits) with weights == high * 2^bits + low, so that no sum over grey levels reaches 2^24 in either part."""
    for bits in range(11, 0, -1):  # 11: both parts then fit TF32's mantissa too
        high = (weights + (1 << (bits - 1))) >> bits
        low = weights - (high << bits)
        sums = [255 * int(np.abs(part).sum(axis=0, dtype=np.int64).max()) for part in (high, low)]
        if sums[0] < _EXACT and sums[1] + (3 << (_PLACES - 1)) < _EXACT:
            return high, low, bits
    raise ExportError(f"frames of {weights.shape[0]} pixels can't be resized exactly to {weights.shape[1]}; use --input pixels")
