"""Average pooling: [T, H, W, D] -> [T, H // window, W // window, D]; a remainder of rows and columns is dropped.

Written as a mean over split axes: tokens stay rows of D, nothing is transposed.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from export.compress.stage import Stage, refuse_misfit
from plugins.spec import option


@dataclass(frozen=True)
class AvgPoolOptions:
    window: int = option(2, "side of the square of patches that becomes one token", at_least=1)


class AvgPool(Stage):
    framewise = True
    Options = AvgPoolOptions

    def __init__(self, options: AvgPoolOptions, frames: int, height: int, width: int):
        super().__init__(options, frames, height, width)
        refuse_misfit("avgpool", "window", options.window, height, width)
        self.out = (frames, height // options.window, width // options.window)
        self.set_grid(*self.out)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        k = self.options.window
        _, rows, columns = self.out
        windows = x[:, : rows * k, : columns * k].reshape(len(x), rows, k, columns, k, x.shape[-1])
        return windows.float().mean(dim=(2, 4)).to(x.dtype)
