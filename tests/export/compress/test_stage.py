"""What all stages share."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from export.compress.stage import kept, refuse_misfit, token_norm
from runtime.errors import SpecError


@pytest.mark.parametrize(
    ("fraction", "tokens", "count"), [(0.29, 100, 29), (0.3, 10, 3), (0.5, 7, 3), (0.999, 100, 99), (1.0, 7, 7), (0.1, 9, 0)]
)
def test_a_fraction_is_rounded_down_to_whole_tokens(fraction, tokens, count):
    assert kept(fraction, tokens) == count


def test_a_window_may_be_as_large_as_the_smaller_side():
    refuse_misfit("nsp", "window", 4, 4, 9)
    refuse_misfit("nsp", "window", 4, 9, 4)
    for height, width in ((4, 9), (9, 4)):
        with pytest.raises(SpecError) as raised:
            refuse_misfit("nsp", "window", 5, height, width)
        assert str(raised.value) == f"nsp: window 5 does not fit a grid of {height}x{width} tokens; choose window <= 4"


@pytest.mark.parametrize("order", [1.0, 2.0, 3.0, math.inf])
def test_a_norm_does_not_grow_with_the_number_of_channels(order):
    for channels in (1, 4, 400):
        norm = token_norm(torch.full((2, 3, channels), -2.0), order)
        np.testing.assert_allclose(norm.numpy(), np.full((2, 3), 2), rtol=1e-5)


def test_a_norm_of_half_precision_is_summed_in_float32():
    norm = token_norm(torch.full((1, 3584), 100.0, dtype=torch.float16))
    assert norm.dtype == torch.float32 and norm.item() == pytest.approx(100)
