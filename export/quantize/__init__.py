"""Quantisation in standard ONNX Q/DQ, so that one file runs in ONNX Runtime and OpenVINO and builds in TensorRT.

    vision   int8 weights and activations: symmetric, weights per output channel, activations per tensor with the range that loses
             least on calibration frames, their channels equalized before (export/quantize/vision.py, equalize.py)
    LLM      int8 or int4 weights, activations in float: int8 per output channel, int4 in blocks along the input (export/quantize/llm.py)

Both follow one rule (`meet_budget`, export/quantize/layers.py): all layers are quantised, the error of the component is measured on
clips that it was not calibrated on, and while that is over the budget the layers with the largest error go up a step. The bundle's
quantization.json says which and why.

ONNX Runtime's quantiser rounds the weights and writes the nodes; the choice of ranges, the equalization, the budget, and the details
that let the engines' fusions find the nodes are ours.
"""

from __future__ import annotations

import re

from runtime.core.errors import ExportError

INT4_BLOCK = 32
BLOCKS = (16, 32, 64, 128, 256)


def llm_precision(text: str) -> tuple[str, int]:
    """(precision, block) of `--llm-precision`: "int4:64" -> ("int4", 64), the block 0 where there is none; ExportError otherwise."""
    match = re.fullmatch(r"(fp32|fp16|int8)|int4(?::(\d+))?", text)
    block = int(match[2] or INT4_BLOCK) if match and not match[1] else 0
    if not match or (not match[1] and block not in BLOCKS):
        raise ExportError(
            f'--llm-precision is "{text}", expected fp32, fp16, int8, int4 or int4:BLOCK with a block of {", ".join(map(str, BLOCKS))}'
        )
    return match[1] or "int4", block
