"""A chain of stages as one module: [T, H, W, D] -> [N, D], N a constant.

The children carry the stages' names (`ptg`, `nsp`, a second one `nsp_2`), so node scopes, profiles and parity tables do too.

T frames, H, W patch rows and columns, D hidden, N visual tokens.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from export.compress.ptg import PTG
from export.compress.stage import Stage
from plugins.spec import unique_names
from runtime.core.errors import SpecError


class Compressor(nn.Module):
    """stages, in order, each a (name, module); spec, expanded; num_tokens, N."""

    def __init__(self, stages: list[tuple[str, type[Stage], Any]], spec: str, frames: int, height: int, width: int):
        super().__init__()
        if min(frames, height, width) < 1:
            raise SpecError(
                f"a clip of {frames} frames of {height}x{width} tokens can't be compressed; expected at least one of each"
            )
        self.spec = spec
        self.grid_in = (frames, height, width)
        self._names = unique_names([kind for kind, _, _ in stages])
        grid: tuple[int, int, int] | None = self.grid_in
        for index, (kind, make_stage, options) in enumerate(stages):
            if grid is None:
                raise SpecError(
                    f'"{kind}" comes after the select stage "{self._names[index - 1]}", which leaves no grid; a select stage must be last'
                )
            stage = make_stage(options, *grid)
            self.add_module(self._names[index], stage)
            grid, self.num_tokens = stage.grid_out, stage.num_tokens

    @property
    def stages(self) -> list[tuple[str, Stage]]:
        return [(name, getattr(self, name)) for name in self._names]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if tuple(x.shape[:3]) != self.grid_in or x.dim() != 4:
            raise ValueError(
                f"got tokens of shape {list(x.shape)}, this compressor was made for [{', '.join(map(str, self.grid_in))}, D]"
            )
        *_, (_, tokens) = self.outputs(x)
        return tokens.reshape(self.num_tokens, x.shape[-1])

    def outputs(self, x: torch.Tensor) -> Iterator[tuple[str, torch.Tensor]]:
        """(name, output) of the stages in order; the last is what `forward` flattens.

        A PTG before frame-wise stages outputs only its summaries [S, H, W, D]: they and the clip pass those stages side by side and
        are joined after the last one, at pooled size.
        """
        stages = self.stages
        ptg: PTG | None = None  # whose summaries have not joined the clip yet
        for index, (name, stage) in enumerate(stages):
            apart_next = index + 1 < len(stages) and stages[index + 1][1].framewise
            if isinstance(stage, PTG) and stage.latest and apart_next:
                ptg, summaries = stage, stage(x, join=False)
                yield name, summaries
                continue
            x = stage(x)
            if ptg is not None:
                summaries = stage(summaries)
                if not apart_next:
                    x, ptg = ptg(x, summaries), None
            yield name, x
