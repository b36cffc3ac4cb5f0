"""torch.nn.Module -> ONNX, through torch.export and torch's ONNX exporter.

The weights go straight into `<graph>.onnx.data` where they are large, and the returned ModelProto refers to them there:
the passes that follow read and rewrite only the structure, so a graph of any size needs the memory of its structure only.

S prompt positions, P positions read.
"""

from __future__ import annotations

import contextlib
import logging
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from export.decoder import OPSET, Decoder
from export.stages import Vision, tensor_of
from runtime.bundle.graphs import EMBEDDINGS, LOGITS, MASK, PAST, POSITIONS, PRESENT, cache_names
from runtime.tools.stages import VISUAL_TOKENS

if TYPE_CHECKING:
    import onnx

INLINE_BYTES = 64 << 20  # weights up to this size stay inside the .onnx file


def trace_vision(vision: Vision, inputs: torch.Tensor, path: Path, opset: int) -> onnx.ModelProto:
    """Write the vision graph for pixel values or frames; its stages are extra outputs."""
    outputs = [VISUAL_TOKENS, *map(tensor_of, vision.stage_names())]
    return _trace(vision, (inputs,), path, opset, [vision.input_name], outputs)


def trace_decoder(decoder: Decoder, path: Path, attention: str) -> onnx.ModelProto:
    """Write the decoder graph, S and P dynamic."""
    dynamic = torch.export.Dim.DYNAMIC
    start, length = 5, 7  # any two numbers that no fixed size equals
    dtype = decoder.lm_head.weight.dtype
    past, layers = decoder.empty_cache(), len(decoder.layers)
    args = (
        torch.zeros(1, length, decoder.hidden_size, dtype=dtype),
        torch.arange(start, start + length)[None],
        past,
        torch.ones(1, start + length, dtype=torch.int64),
    )
    shapes = {EMBEDDINGS: {1: dynamic}, POSITIONS: {1: dynamic}, "past": [None] * len(past), MASK: {1: dynamic}}
    inputs = [EMBEDDINGS, POSITIONS, *cache_names(PAST, layers), MASK]
    return _trace(decoder, args, path, OPSET[attention], inputs, [LOGITS, *cache_names(PRESENT, layers)], shapes)


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
    program.save(str(path), external_data=weights > INLINE_BYTES)
    return onnx.load(str(path), load_external_data=False)


@contextlib.contextmanager
def _quiet():
    """Keep the exporter's messages about its conversions off the user's terminal."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
