"""Norm-based Spatial Pooling of ST-GridPool (arXiv 2605.22078): [T, H, W, D] -> [T, H', W', D].

Each window of window x window tokens becomes their weighted mean; the weights are a softmax over the window of
temperature * ||x||_p / D^(1/p). Windows do not overlap and a remainder is dropped (27 -> 13); `padding` adds zero tokens around the
frame that do take part in the softmax.

The windows are never unfolded: token (i, j) of all windows at once is a strided view of the grid, so the clip is read twice, once
for the norms and once for the sum, and nothing of its size is written.
"""

from __future__ import annotations

import torch
from torch import nn

from export.compress.stage import Stage, refuse_misfit, token_norm
from plugins.op import NSPOptions


class NSP(Stage):
    framewise = True
    Options = NSPOptions

    def __init__(self, options: NSPOptions, frames: int, height: int, width: int):
        super().__init__(options, frames, height, width)
        ring = 2 * options.padding
        refuse_misfit("nsp", "window", options.window, height + ring, width + ring)
        self.out = (frames, (height + ring) // options.window, (width + ring) // options.window)
        self.set_grid(*self.out)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if torch.compiler.is_compiling() or x.device.type != "cpu" or len(x) == 1:
            return self._pool(x)
        # Eager on a CPU: a frame that was read for its norms is still in the cache for the sum.
        pooled = x.new_empty(len(x), *self.out[1:], x.shape[-1])
        for frame, out in zip(x, pooled, strict=True):
            out.copy_(self._pool(frame[None])[0])
        return pooled

    def _pool(self, x: torch.Tensor) -> torch.Tensor:
        k, ring = self.options.window, self.options.padding
        _, rows, columns = self.out
        if ring:
            x = nn.functional.pad(x, (0, 0, ring, ring, ring, ring))
        logits = token_norm(x, self.options.order) * self.options.temperature
        logits = logits[:, : rows * k, : columns * k].reshape(len(x), rows, k, columns, k)
        logits = logits.permute(0, 1, 3, 2, 4).reshape(len(x), rows, columns, k * k)
        weights = torch.softmax(logits, dim=-1)

        pooled: torch.Tensor | None = None
        for i in range(k):
            row = x[:, i : rows * k : k]
            for j in range(k):
                token = row[:, :, j : columns * k : k].float()  # [T, H', W', D]
                n = i * k + j
                weight = weights[..., n : n + 1]
                # in place: a fresh sum for each of the k * k terms would cost more than the arithmetic
                pooled = token * weight if pooled is None else pooled.addcmul_(token, weight)
        assert pooled is not None
        return pooled.to(x.dtype)
