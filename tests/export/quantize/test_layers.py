"""Which rows a layer is measured on, and which precision it starts with."""

from __future__ import annotations

import numpy as np
import pytest

from export.quantize.layers import Layer, sampled
from export.quantize.llm import _lowest


def test_rows_are_sampled_from_all_over():
    assert sampled(np.arange(1000)).tolist() == list(range(0, 1000, 4))  # 250: every 4th is the densest within 256
    assert sampled(np.arange(256)).tolist() == list(range(256))
    assert sampled(np.arange(257)).tolist() == list(range(0, 257, 2))


@pytest.mark.parametrize(
    ("shape", "asked", "expected"),
    [
        ((128, 96), "int4", "int4"),
        ((96, 128), "int4", "int8"),  # 96 inputs are no whole number of blocks of 64, and TensorRT takes no remainder
        ((96, 128), "int8", "int8"),
    ],
)
def test_a_block_must_divide_a_layers_inputs(shape, asked, expected):
    assert _lowest(Layer("node", "x", "w", shape), asked, 64) == expected
