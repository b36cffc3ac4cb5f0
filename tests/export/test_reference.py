"""The truth that a bundle carries: its input, how its margins and errors are measured, and what is kept of large stages."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from export import reference
from export.trace import Vision

HALF = SimpleNamespace(preprocessing={"size": [6, 4]})


@pytest.mark.parametrize(
    ("logits", "token", "margin"),
    [([1.0, 4.0, 2.5], 1, 1.5), ([4.0, 1.0, 2.5], 0, 1.5), ([1.0, 2.5, 4.0], 2, 1.5), ([4.0, 4.0], 0, 0), ([1.0, 4.0, 2.5], 2, 0)],
)
def test_a_margin_is_how_far_a_token_is_above_the_best_other_one(logits, token, margin):
    assert reference._margin(torch.tensor(logits), token) == margin


def test_an_error_is_relative_to_the_largest_value():
    assert reference._error(torch.tensor([1.0, -7.5, 0.0]), torch.tensor([2.0, -8.0, 0.0])) == 1 / 8


def test_the_clip_is_the_same_every_time_and_no_two_frames_or_patches_of_it_are():
    clip = reference.pixel_values(HALF, 3)
    assert clip.shape == (3, 3, 6, 4) and clip.dtype == np.float32 and np.abs(clip).max() <= 1
    np.testing.assert_array_equal(clip, reference.pixel_values(HALF, 3))
    assert len({frame.tobytes() for frame in clip}) == 3 and len({row.tobytes() for row in clip[0, 0]}) == 6
    assert clip.min() < -0.5 and clip.max() > 0.5
    assert reference.pixel_values(HALF, 2, (8, 10)).shape == (2, 3, 8, 10)


def test_frames_are_the_same_clip_in_bytes():
    frames = reference.frames(HALF, 2, (6, 4))
    assert frames.shape == (2, 6, 4, 3) and frames.dtype == np.uint8 and frames.flags.c_contiguous
    np.testing.assert_allclose(frames / 127.5 - 1, reference.pixel_values(HALF, 2).transpose(0, 2, 3, 1), atol=0.5 / 127.5)


def test_of_a_large_stage_every_k_th_value_is_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(reference, "_STAGE_VALUES", 4)
    outputs = {
        name: np.arange(size, dtype=np.float32) for name, size in (("four", 4), ("five", 5), ("nine", 9), ("visual_tokens", 3))
    }
    assert reference.save_vision(tmp_path, {"pixel_values": np.zeros(1)}, outputs) == {
        "four": 1,
        "five": 2,
        "nine": 3,
        "visual_tokens": 1,
    }
    assert sorted(file.name for file in tmp_path.iterdir()) == ["inputs.json", "stages.json", "torch.json"]


@pytest.mark.parametrize(
    ("place", "takes", "names"),
    [
        ("after-projector", None, ["vision/encoder", "vision/projector", "compress/ptg", "compress/nsp"]),
        ("before-projector", None, ["vision/encoder", "compress/ptg", "compress/nsp", "vision/projector"]),
        ("after-projector", "frames", ["vision/input", "vision/encoder", "vision/projector", "compress/ptg", "compress/nsp"]),
        ("before-projector", "frames", ["vision/input", "vision/encoder", "compress/ptg", "compress/nsp", "vision/projector"]),
    ],
)
def test_stages_are_named_in_their_order(place, takes, names):
    compress = SimpleNamespace(stages=[("ptg", None), ("nsp", None)])
    assert Vision.stage_names(SimpleNamespace(compress=compress, input=takes, place=place)) == names
