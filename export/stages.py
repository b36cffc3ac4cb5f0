"""The stages of the vision encoder in their one order: what is traced, what torch computes for reference, and what is compared.

    --place after-projector     vision/input -> vision/encoder -> vision/projector -> compress/... -> visual_tokens
    --place before-projector    vision/input -> vision/encoder -> compress/... -> vision/projector -> visual_tokens

vision/input is there only where the graph takes uint8 frames. The last stage adds the token that closes a clip.

T frames, h, w pixels, H, W patch rows and columns, C encoder width, D hidden, N visual tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import nn

from runtime.tools.stages import VISUAL_TOKENS

if TYPE_CHECKING:
    from export.compress import Compressor
    from export.families import VisionModel
    from export.frames import FrameInput

INPUT, ENCODER, PROJECTOR = "vision/input", "vision/encoder", "vision/projector"

Apply = Callable[[torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class Part:
    """Consecutive stages that are computed together: one, or all of the compression.

    run          tensor -> the output of each stage, in the order of `names`
    framewise    a frame of the output depends on that frame of the input alone
    flatten      the last output leaves as rows [N, C or D]
    """

    names: list[str]
    run: Callable[[torch.Tensor], Iterable[torch.Tensor]]
    framewise: bool = False
    flatten: bool = False


class Vision(nn.Module):
    """pixel_values [T, 3, h, w] -> (visual_tokens [N, D], then every stage's output, in order).

    frames: what makes pixel values of uint8 frames [T, h, w, 3], where the graph is to take those.
    """

    def __init__(self, source: VisionModel, compress: Compressor, place: str, frames: FrameInput | None = None):
        super().__init__()
        self.input = frames
        self.encoder, self.projector, self.compress = source.encoder, source.projector, compress
        self.newline = nn.Parameter(source.newline, requires_grad=False)
        self.grid, self.place = source.grid, place

    def forward(self, inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        *stages, (_, tokens) = run_parts(self.parts(), inputs)
        return (tokens, *(output for _, output in stages))

    @property
    def input_name(self) -> str:
        """Of the graph's input."""
        return "pixel_values" if self.input is None else "frames"

    def stage_names(self) -> list[str]:
        """Names of the outputs after the first."""
        return [name for part in self.parts() for name in part.names if name != VISUAL_TOKENS]

    @property
    def features(self) -> str:
        """The last frame-wise stage, whose output compression takes."""
        return [name for part in self.parts() if part.framewise for name in part.names][-1]

    @property
    def selected(self) -> set[str]:
        """Compression stages whose rows are a choice among patches: from the first select stage on."""
        stages = self.compress.stages
        first = next((at for at, (_, stage) in enumerate(stages) if stage.select), len(stages))
        return {f"compress/{name}" for name, _ in stages[first:]}

    def parts(self, prepare: Apply | None = None, encode: Apply | None = None, project: Apply | None = None) -> list[Part]:
        """The stages in order; prepare, encode, project: what computes vision/input, /encoder and /projector instead of the modules."""
        after = self.place == "after-projector"
        prepare, encode, project = prepare or self._prepare, encode or self.encoder, project or self.projector
        projector = Part([PROJECTOR], lambda x: [project(x)], framewise=after)
        compression = Part([f"compress/{name}" for name, _ in self.compress.stages], self._compress, flatten=True)
        return [
            *([Part([INPUT], lambda x: [prepare(x)], framewise=True)] if self.input is not None else []),
            Part([ENCODER], lambda x: [encode(x)], framewise=True),
            *([projector, compression] if after else [compression, projector]),
            Part([VISUAL_TOKENS], lambda x: [torch.cat([x, self.newline])]),
        ]

    def _prepare(self, frames: torch.Tensor) -> torch.Tensor:
        assert self.input is not None
        return self.input(frames).to(self.newline.dtype)  # [T, 3, h, w]

    def _compress(self, patches: torch.Tensor) -> Iterator[torch.Tensor]:
        """patches [T, H*W, C or D]."""
        return (output for _, output in self.compress.outputs(patches.unflatten(1, self.grid)))


def tensor_of(stage: str) -> str:
    """The output of the traced graph that holds what a stage computes."""
    return stage if stage == VISUAL_TOKENS else f"{stage}/output"


def run_parts(parts: Iterable[Part], x: torch.Tensor) -> Iterator[tuple[str, torch.Tensor]]:
    """(name, output) of every stage, each part computed from the one before it."""
    for part in parts:
        for name, output in zip(part.names, part.run(x), strict=True):
            yield name, output
        x = output.reshape(-1, output.shape[-1]) if part.flatten else output
