"""What a compression stage is: a module of static shapes, made from its options and the grid it will see.

Grid stages map [T, H, W, D] -> [T', H', W', D]; a select stage (`select = True`, last in a chain) maps [T, H, W, D] -> [N, D] with
a constant N. All shapes and indices are Python ints when the stage is made, so a traced graph has no data-dependent shape. Scores,
norms and softmax are float32 whatever the dtype of the tokens, the output has the input's dtype.

T frames, H, W patch rows and columns, D hidden, N visual tokens.
"""

from __future__ import annotations

import math
from typing import Any, ClassVar

import torch
from torch import nn

from runtime.core.errors import SpecError


class Stage(nn.Module):
    """Base of the stages. A subclass sets `Options` and `grid_out` (or `num_tokens` where it selects).

    grid_in, grid_out    (T, H, W) before and after; grid_out is None after a select stage
    num_tokens           tokens of a clip after this stage
    """

    Options: ClassVar[type]
    select: ClassVar[bool] = False
    framewise: ClassVar[bool] = False  # each frame of the output depends on that frame of the input alone, and T may be any

    def __init__(self, options: Any, frames: int, height: int, width: int):
        super().__init__()
        self.options = options
        self.grid_in = (frames, height, width)
        self.set_grid(frames, height, width)

    def set_grid(self, frames: int, height: int, width: int) -> None:
        """Declare the grid that comes out."""
        self.grid_out: tuple[int, int, int] | None = (frames, height, width)
        self.num_tokens = frames * height * width

    def set_selected(self, count: int) -> None:
        """Declare that `count` tokens come out, without a grid."""
        self.grid_out = None
        self.num_tokens = count


def refuse_misfit(stage: str, name: str, size: int, height: int, width: int) -> None:
    """SpecError where a window, cell or stride of `size` patches is larger than the grid."""
    if size > min(height, width):
        raise SpecError(
            f"{stage}: {name} {size} does not fit a grid of {height}x{width} tokens; choose {name} <= {min(height, width)}"
        )


def kept(fraction: float, tokens: int) -> int:
    """Whole tokens in a fraction of `tokens`, rounded down (0.29 of 100 is 29, though 0.29 * 100 is less than 29 in floating point)."""
    return math.floor(fraction * tokens + 1e-9)


def token_norm(x: torch.Tensor, order: float = 2) -> torch.Tensor:
    """Norm of each token over D, scaled by D^(1/order) so that it does not grow with D: [..., D] -> [...], float32.

    The sum runs in float32: 3,584 squared fp16 activations overflow fp16.
    """
    norm = torch.linalg.vector_norm(x.float(), ord=order, dim=-1)
    return norm if math.isinf(order) else norm / x.shape[-1] ** (1 / order)
