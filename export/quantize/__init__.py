"""Quantisation in standard ONNX Q/DQ, so that one file runs in ONNX Runtime and OpenVINO and builds in TensorRT.

    vision   int8 weights and activations: symmetric, weights per output channel, activations per tensor with the range that loses
             least on calibration frames, their channels made alike before (export/quantize/vision.py, equalize.py)
    LLM      int8 or int4 weights, activations in float: int8 per output channel, int4 in blocks along the input (export/quantize/llm.py)

Both follow one rule: every layer is quantised, the error of the whole half is measured on clips that it was not calibrated on, and as
long as that is over the budget the layers with the largest error of their own go up a step. What was kept and why stands in the
bundle's quantization.json.

ONNX Runtime's quantiser rounds the weights and writes the nodes; ours are the choice of ranges, the equalisation, the budget, and the
small things that make the engines' fusions find the nodes.
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
