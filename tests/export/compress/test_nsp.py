"""Norm-based Spatial Pooling against a NumPy loop over windows."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from export.compress import make
from export.compress.nsp import NSP
from plugins.spec import format_value


def reference(x: np.ndarray, window: int, temperature: float, order: float, padding: int) -> np.ndarray:
    x = np.pad(x.astype(np.float64), ((0, 0), (padding, padding), (padding, padding), (0, 0)))
    frames, height, width, d = x.shape
    out = np.zeros((frames, height // window, width // window, d))
    for t, i, j in np.ndindex(out.shape[:3]):
        tokens = x[t, i * window : (i + 1) * window, j * window : (j + 1) * window].reshape(-1, d)
        magnitude = np.abs(tokens)
        norm = magnitude.max(-1) if math.isinf(order) else (magnitude**order).mean(-1) ** (1 / order)
        weight = np.exp(temperature * (norm - norm.max()))
        out[t, i, j] = weight @ tokens / weight.sum()
    return out


def pool(x: np.ndarray, window: int, temperature: float, order: float, padding: int) -> np.ndarray:
    spec = f"nsp:window={window},temperature={temperature},order={format_value(order)},padding={padding}"
    module = make(spec, *x.shape[:3])
    return module(torch.from_numpy(x)).numpy()


@settings(deadline=None, max_examples=60)
@given(
    st.integers(1, 4),
    st.integers(1, 9),
    st.integers(1, 9),
    st.integers(1, 4),
    st.sampled_from([0.0, 0.5, 1.0, 4.0]),
    st.sampled_from([1.0, 2.0, 3.0, math.inf]),
    st.integers(0, 2),
    st.integers(0, 99),
)
def test_any_grid_equals_the_reference(frames, height, width, window, temperature, order, padding, seed):
    padding = min(padding, window - 1)
    window = min(window, min(height, width) + 2 * padding)
    padding = min(padding, window - 1)
    x = np.random.default_rng(seed).standard_normal((frames, height, width, 5)).astype(np.float32) * 3
    expected = reference(x, window, temperature, order, padding).reshape(-1, 5)
    np.testing.assert_allclose(pool(x, window, temperature, order, padding), expected, rtol=2e-5, atol=2e-5)


def test_temperature_zero_is_average_pooling():
    x = torch.randn(3, 7, 6, 4)
    torch.testing.assert_close(make("nsp:temperature=0", 3, 7, 6)(x), make("avgpool", 3, 7, 6)(x))


def test_the_largest_token_wins_when_it_is_hot():
    x = torch.rand(1, 2, 2, 4)
    x[0, 1, 0] = 9
    torch.testing.assert_close(make("nsp:temperature=1e3", 1, 2, 2)(x), x[0, 1, :1])


def test_half_precision_sums_in_float32():
    torch.manual_seed(0)
    x = (torch.randn(1, 2, 2, 64) * 100).half()
    exact = reference(x.numpy(), 2, 0.01, 2, 0).reshape(-1, 64)
    result = make("nsp:temperature=0.01", 1, 2, 2)(x).double().numpy()
    assert np.abs(result - exact).max() <= np.abs(exact).max() * 2**-11  # one rounding, at the end


@pytest.mark.parametrize(("compiling", "device", "pooled"), [(False, "cpu", [1, 1, 1]), (True, "cpu", [3]), (False, "meta", [3])])
def test_a_clip_is_pooled_frame_by_frame_where_a_cache_gains_by_it_and_as_a_whole_in_a_graph(
    monkeypatch, compiling, device, pooled
):
    calls, pool_ = [], NSP._pool
    monkeypatch.setattr(NSP, "_pool", lambda self, x: calls.append(len(x)) or pool_(self, x))
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: compiling)
    assert make("nsp", 3, 4, 6)(torch.ones(3, 4, 6, 2, device=device)).shape == (18, 2)
    assert calls == pooled
