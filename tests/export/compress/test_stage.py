"""What all stages share."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from export.compress import STAGES
from export.compress.stage import Stage, kept, refuse_misfit, token_norm
from runtime.core.errors import SpecError


@pytest.mark.parametrize(
    ("fraction", "tokens", "count"), [(0.29, 100, 29), (0.3, 10, 3), (0.5, 7, 3), (0.999, 100, 99), (1.0, 7, 7), (0.1, 9, 0)]
)
def test_a_fraction_is_rounded_down_to_whole_tokens(fraction, tokens, count):
    assert kept(fraction, tokens) == count


def test_a_window_may_be_as_large_as_the_smaller_side():
    refuse_misfit("nsp", "window", 4, 4, 9)
    refuse_misfit("nsp", "window", 4, 9, 4)
    for height, width in ((4, 9), (9, 4)):
        with pytest.raises(SpecError, match=f"window 5 .*{height}x{width}.* 4$"):
            refuse_misfit("nsp", "window", 5, height, width)


@pytest.mark.parametrize("order", [1.0, 2.0, 3.0, math.inf])
def test_a_norm_does_not_grow_with_the_number_of_channels(order):
    for channels in (1, 4, 400):
        norm = token_norm(torch.full((2, 3, channels), -2.0), order)
        np.testing.assert_allclose(norm.numpy(), np.full((2, 3), 2), rtol=1e-5)


def test_a_norm_of_half_precision_is_summed_in_float32():
    norm = token_norm(torch.full((1, 3584), 100.0, dtype=torch.float16))
    assert norm.dtype == torch.float32 and norm.item() == pytest.approx(100)


def test_which_stages_select_and_which_work_frame_by_frame():
    assert [name for name, stage in STAGES.items() if stage.select] == ["topk", "evs", "vidcom2"]
    assert [name for name, stage in STAGES.items() if stage.framewise] == ["bilinear", "avgpool", "nsp"]


def test_a_stage_keeps_the_grid_until_it_declares_another():
    stage = Stage(None, 2, 3, 4)
    assert (stage.grid_in, stage.grid_out, stage.num_tokens) == ((2, 3, 4), (2, 3, 4), 24) and type(stage.num_tokens) is int
    stage.set_grid(5, 3, 2)
    assert (stage.grid_in, stage.grid_out, stage.num_tokens) == ((2, 3, 4), (5, 3, 2), 30)
    stage.set_selected(7)
    assert (stage.grid_out, stage.num_tokens) == (None, 7)


@pytest.mark.parametrize(("order", "norm"), [(1, 7 / 2), (2, math.sqrt(25 / 2)), (3, (91 / 2) ** (1 / 3)), (math.inf, 4)])
def test_a_norm_is_the_mean_power_of_the_magnitudes(order, norm):
    assert token_norm(torch.tensor([[3.0, -4]]), order).item() == pytest.approx(norm)
    assert token_norm(torch.tensor([[3.0, -4]])).item() == pytest.approx(math.sqrt(25 / 2))
