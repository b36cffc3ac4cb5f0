"""Bilinear pooling against transformers' own, average pooling against NumPy."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from export.compress import make


@pytest.mark.parametrize("side", [2, 5, 8, 13, 24, 27])
def test_llava_ov_is_transformers_own_pooling_to_the_bit(side):
    from transformers.models.llava_onevision.modeling_llava_onevision import LlavaOnevisionModel

    torch.manual_seed(side)
    x = torch.randn(3, side, side, 8)
    model = SimpleNamespace(config=SimpleNamespace(vision_config=SimpleNamespace(image_size=side * 14, patch_size=14)))
    expected = LlavaOnevisionModel.apply_pooling(model, x.reshape(3, side * side, 8))
    assert torch.equal(make("llava-ov", 3, side, side)(x), expected.reshape(-1, 8))


@pytest.mark.parametrize(("height", "width", "stride"), [(7, 4, 2), (9, 13, 3), (4, 4, 1)])
def test_bilinear_equals_interpolation_at_half_pixel_centres(height, width, stride):
    x = np.random.default_rng(0).standard_normal((2, height, width, 3))
    h, w = -(-height // stride), -(-width // stride)

    def weights(size: int, target: int) -> np.ndarray:
        centre = np.maximum((np.arange(target) + 0.5) * size / target - 0.5, 0)
        return np.maximum(1 - np.abs(centre[:, None] - np.arange(size)), 0)

    expected = np.einsum("ih,jw,thwd->tijd", weights(height, h), weights(width, w), x)
    result = make(f"bilinear:stride={stride}", 2, height, width)(torch.from_numpy(x).float())
    np.testing.assert_allclose(result.numpy(), expected.reshape(-1, 3), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("height", "width", "window"), [(4, 6, 2), (7, 5, 2), (9, 8, 4), (3, 3, 1), (5, 7, 5)])
def test_average_pooling_drops_the_remainder(height, width, window):
    x = np.random.default_rng(0).standard_normal((2, height, width, 3)).astype(np.float32)
    h, w = height // window, width // window
    expected = [
        x[t, i * window : (i + 1) * window, j * window : (j + 1) * window].mean((0, 1))
        for t in range(2)
        for i in range(h)
        for j in range(w)
    ]
    result = make(f"avgpool:window={window}", 2, height, width)(torch.from_numpy(x))
    np.testing.assert_allclose(result.numpy(), np.array(expected), rtol=1e-5, atol=1e-6)
