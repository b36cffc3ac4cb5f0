"""The truth that a bundle carries: its input, how its margins and errors are measured, and what is kept of large stages."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from export import reference
from runtime.bundle.manifest import Preprocessing

PREPROCESSING = Preprocessing((6, 4), "bicubic", 1 / 255, 0.5, 0.5)
MODEL = SimpleNamespace(preprocessing=PREPROCESSING)


@pytest.mark.parametrize(
    ("logits", "token", "margin"),
    [([1.0, 4.0, 2.5], 1, 1.5), ([4.0, 1.0, 2.5], 0, 1.5), ([1.0, 2.5, 4.0], 2, 1.5), ([4.0, 4.0], 0, 0), ([1.0, 4.0, 2.5], 2, 0)],
)
def test_a_margin_is_how_far_a_token_is_above_the_best_other_one(logits, token, margin):
    assert reference._margin(torch.tensor(logits), token) == margin


def test_an_error_is_relative_to_the_largest_value():
    assert reference._error(torch.tensor([1.0, -7.5, 0.0]), torch.tensor([2.0, -8.0, 0.0])) == 1 / 8


def test_the_clip_is_the_same_every_time_and_no_two_frames_or_patches_of_it_are():
    inputs, clip = reference.make_clip(MODEL, 3, None)
    assert inputs is clip
    assert clip.shape == (3, 3, 6, 4) and clip.dtype == np.float32 and np.abs(clip).max() <= 1
    np.testing.assert_array_equal(clip, reference.make_clip(MODEL, 3, None)[1])
    assert len({frame.tobytes() for frame in clip}) == 3 and len({row.tobytes() for row in clip[0, 0]}) == 6
    assert clip.min() < -0.5 and clip.max() > 0.5
    assert reference.pixel_values(2, (8, 10)).shape == (2, 3, 8, 10)


@pytest.mark.parametrize("size", [(6, 4), (12, 9)])
def test_frames_are_the_same_clip_in_bytes_of_which_pillow_makes_the_pixels(size):
    frames, pixels = reference.make_clip(MODEL, 2, SimpleNamespace(source=size))
    assert frames.shape == (2, *size, 3) and frames.dtype == np.uint8 and frames.flags.c_contiguous
    np.testing.assert_allclose(frames / 127.5 - 1, reference.pixel_values(2, size).transpose(0, 2, 3, 1), atol=0.5 / 127.5)
    resized = [np.asarray(Image.fromarray(frame).resize((4, 6), Image.Resampling.BICUBIC)) for frame in frames]
    np.testing.assert_allclose(pixels, np.stack(resized).transpose(0, 3, 1, 2) / 127.5 - 1, atol=1e-6)


def test_of_a_large_stage_every_k_th_value_is_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(reference, "_STAGE_VALUES", 4)
    outputs = {
        name: np.arange(size, dtype=np.float32) for name, size in (("four", 4), ("five", 5), ("nine", 9), ("visual_tokens", 3))
    }
    expected = reference.VisionReference(np.zeros(1), outputs, 0.0)
    assert reference.save_vision(tmp_path, expected, "pixel_values") == {
        "four": 1,
        "five": 2,
        "nine": 3,
        "visual_tokens": 1,
    }
    assert sorted(file.name for file in tmp_path.iterdir()) == ["inputs.json", "stages.json", "torch.json"]
