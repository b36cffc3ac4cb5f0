"""Bilinear pooling, what LLaVA-OneVision does itself: [T, H, W, D] -> [T, ceil(H/stride), ceil(W/stride), D].

The same call as transformers' `apply_pooling` (half-pixel centres, no antialiasing), so the tokens equal the model's to the bit.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import nn

from export.compress.stage import Stage, refuse_misfit
from plugins.spec import option


@dataclass(frozen=True)
class BilinearOptions:
    stride: int = option(2, "patches per output token along each side", at_least=1)


class Bilinear(Stage):
    framewise = True
    Options = BilinearOptions

    def __init__(self, options: BilinearOptions, frames: int, height: int, width: int):
        super().__init__(options, frames, height, width)
        refuse_misfit("bilinear", "stride", options.stride, height, width)
        self.size = (math.ceil(height / options.stride), math.ceil(width / options.stride))
        self.set_grid(frames, *self.size)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        planes = x.permute(0, 3, 1, 2)  # [T, D, H, W]
        return nn.functional.interpolate(planes, size=self.size, mode="bilinear").permute(0, 2, 3, 1)
