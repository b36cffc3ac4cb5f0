"""torch.nn.Module -> ONNX, through torch.export and torch's ONNX exporter.

The weights go straight into `<graph>.onnx.data` where they are large, and the returned ModelProto refers to them there:
the passes that follow read and rewrite only the structure, so a graph of any size costs its structure's memory.

T frames, H, W patch rows and columns, C encoder width, D hidden, N visual tokens.
"""

from __future__ import annotations

import contextlib
import logging
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from export.decoder import OPSET, Decoder
from export.families import VisionHalf
from export.frames import FrameInput
from runtime.bundle.tensors import EMBEDDINGS, LOGITS, MASK, POSITIONS

if TYPE_CHECKING:
    import onnx

    from export.compress import Compressor

_INLINE_BYTES = 64 << 20  # weights up to this size stay inside the .onnx file


class Vision(nn.Module):
    """pixel_values [T, 3, h, w] -> (visual_tokens [N, D], then every stage's output, in order).

    input: what makes pixel values of uint8 frames [T, h, w, 3], where the graph is to take those.
    """

    def __init__(self, half: VisionHalf, compress: Compressor, place: str, frames: FrameInput | None = None):
        super().__init__()
        self.input = frames
        self.encoder, self.projector, self.compress = half.encoder, half.projector, compress
        self.newline = nn.Parameter(half.newline, requires_grad=False)
        self.grid, self.place = half.grid, place

    def stage_names(self) -> list[str]:
        """Names of the outputs after the first."""
        stages = [f"compress/{name}" for name, _ in self.compress.stages]
        before = ["vision/input", "vision/encoder"] if self.input is not None else ["vision/encoder"]
        if self.place == "before-projector":
            return [*before, *stages, "vision/projector"]
        return [*before, "vision/projector", *stages]

    def forward(self, given: torch.Tensor) -> tuple[torch.Tensor, ...]:
        outputs = []
        if self.input is not None:
            given = self.input(given).to(self.newline.dtype)  # [T, 3, h, w]
            outputs.append(given)
        patches = self.encoder(given)  # [T, H*W, C]
        outputs.append(patches)
        if self.place == "after-projector":
            patches = self.projector(patches)  # [T, H*W, D]
            outputs.append(patches)
        outputs += [output for _, output in self.compress.outputs(patches.unflatten(1, self.grid))]
        tokens = outputs[-1].reshape(-1, outputs[-1].shape[-1])  # [N - 1, C or D]
        if self.place == "before-projector":
            tokens = self.projector(tokens)
            outputs.append(tokens)
        return (torch.cat([tokens, self.newline]), *outputs)


@dataclass
class Traced:
    """model: structure, weights beside `path`; stages: {stage name: tensor name}, still graph outputs."""

    model: onnx.ModelProto
    stages: dict[str, str]


def trace_vision(vision: Vision, given: torch.Tensor, path: Path, opset: int) -> Traced:
    """Write the vision graph for pixel values or frames; its stages are extra outputs named as they are."""
    stages = {name: f"{name}/output" for name in vision.stage_names()}
    name = "pixel_values" if vision.input is None else "frames"
    model = _trace(vision, (given,), path, opset, [name], ["visual_tokens", *stages.values()])
    return Traced(model, stages)


def trace_decoder(decoder: Decoder, path: Path, attention: str) -> Traced:
    """Write the decoder graph, S and P dynamic."""
    dynamic = torch.export.Dim.DYNAMIC
    start, length = 5, 7  # any two numbers that no fixed size equals
    dtype = decoder.lm_head.weight.dtype
    past, (past_names, present_names) = decoder.empty_cache(), decoder.tensor_names()
    args = (
        torch.zeros(1, length, decoder.hidden_size, dtype=dtype),
        torch.arange(start, start + length)[None],
        past,
        torch.ones(1, start + length, dtype=torch.int64),
    )
    shapes = {
        EMBEDDINGS: {1: dynamic},
        POSITIONS: {1: dynamic},
        "past": [None] * len(past),
        MASK: {1: dynamic},
    }
    inputs = [EMBEDDINGS, POSITIONS, *past_names, MASK]
    model = _trace(decoder, args, path, OPSET[attention], inputs, [LOGITS, *present_names], shapes)
    return Traced(model, {})


def _trace(
    module: nn.Module,
    args: tuple[Any, ...],
    path: Path,
    opset: int,
    inputs: list[str],
    outputs: list[str],
    dynamic_shapes: dict[str, Any] | None = None,
) -> onnx.ModelProto:
    import onnx

    path.parent.mkdir(parents=True, exist_ok=True)
    with torch.no_grad(), _quiet():
        program = torch.onnx.export(
            module.eval(),
            args,
            dynamo=True,
            opset_version=opset,
            input_names=inputs,
            output_names=outputs,
            dynamic_shapes=dynamic_shapes,
            verbose=False,
        )
    weights = sum(parameter.numel() * parameter.element_size() for parameter in module.parameters())
    program.save(str(path), external_data=weights > _INLINE_BYTES)
    return onnx.load(str(path), load_external_data=False)


@contextlib.contextmanager
def _quiet():
    """Keep the exporter's chatter about its own conversions away from the user's terminal."""
    noisy = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in noisy]
    for logger in noisy:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(noisy, levels, strict=True):
            logger.setLevel(level)
