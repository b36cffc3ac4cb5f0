"""Pyramid Temporal Gridding against a plain NumPy version that writes into the clip as the authors' code does."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from export.compress import make
from export.compress.ptg import _Resize
from plugins.op import tile_layout


def area_resize(frame: np.ndarray, h: int, w: int) -> np.ndarray:
    height, width, d = frame.shape
    out = np.zeros((h, w, d))
    for i in range(h):
        for j in range(w):
            rows = slice(math.floor(i * height / h), math.ceil((i + 1) * height / h))
            columns = slice(math.floor(j * width / w), math.ceil((j + 1) * width / w))
            out[i, j] = frame[rows, columns].mean((0, 1))
    return out


def reference(x: np.ndarray, sizes, strides) -> np.ndarray:
    clip = x.astype(np.float64)
    frames, height, width, d = clip.shape
    for size, stride in zip(sizes, strides, strict=True):
        before = clip.copy()
        n = frames // stride
        sampled = torch.round(torch.linspace(0, frames, n + 1)[1:] - 1).int().tolist() if n else []
        rows, columns = tile_layout(size)
        h, w = math.ceil(height / rows), math.ceil(width / columns)
        for start in range(0, n - size + 1, size):
            group = sampled[start : start + size]
            canvas = np.zeros((rows * h, columns * w, d))
            for k, frame in enumerate(group):
                r, c = divmod(k, columns)
                canvas[r * h : (r + 1) * h, c * w : (c + 1) * w] = area_resize(before[frame], h, w)
            clip[group[-1]] = canvas[:height, :width]
    return clip


def compress(x: np.ndarray, sizes, strides) -> np.ndarray:
    spec = f"ptg:sizes={'/'.join(map(str, sizes))},strides={'/'.join(map(str, strides))}"
    return make(spec, *x.shape[:3])(torch.from_numpy(x)).reshape(x.shape).numpy()


@settings(deadline=None, max_examples=60)
@given(
    st.integers(1, 40),
    st.integers(3, 9),
    st.integers(3, 9),
    st.lists(st.tuples(st.integers(1, 8), st.integers(1, 9)), min_size=1, max_size=4),
    st.integers(0, 99),
)
def test_any_clip_equals_the_reference(frames, height, width, levels, seed):
    sizes, strides = zip(*[(size, stride) for size, stride in levels if tile_layout(size)[0] <= height] or [(1, 1)], strict=True)
    x = np.random.default_rng(seed).standard_normal((frames, height, width, 3)).astype(np.float32)
    np.testing.assert_allclose(compress(x, sizes, strides), reference(x, sizes, strides), rtol=1e-5, atol=1e-6)


def test_a_level_reads_the_summaries_of_the_levels_before():
    x = np.random.default_rng(0).standard_normal((32, 6, 6, 2)).astype(np.float32)
    chained = reference(reference(x, (4,), (2,)), (4,), (4,))
    np.testing.assert_allclose(compress(x, (4, 4), (2, 4)), chained, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("sizes", "strides"), [((1, 4), (1, 2)), ((1, 4, 4), (1, 2, 4)), ((2, 6, 2), (1, 1, 2)), ((4, 2), (1, 4))])
def test_levels_may_read_nothing_but_summaries_or_mix_tile_sizes(sizes, strides):
    x = np.random.default_rng(0).standard_normal((24, 6, 7, 2)).astype(np.float32)
    np.testing.assert_allclose(compress(x, sizes, strides), reference(x, sizes, strides), rtol=1e-5, atol=1e-6)


def test_written_frames_of_32():
    stage = make("st-gridpool", 32, 27, 27).stages[0][1]
    assert stage.written == [[7, 15, 23, 31], [15, 31], [31]]


@pytest.mark.parametrize(
    ("frames", "spec", "resized"),
    [
        (12, "ptg:sizes=4,strides=2", {"2x2": [1, 3, 5, 7]}),
        (12, "ptg:sizes=4/6,strides=2/2", {"2x2": [1, 3, 5, 7], "3x2": [1, 3, 5, 9, 11]}),  # 7 is the summary of level 1 by then
        (8, "ptg:sizes=1/4,strides=1/2", {"1x1": [0, 1, 2, 3, 4, 5, 6, 7], "2x2": []}),  # nothing but summaries is left for level 2
        (3, "ptg:sizes=4,strides=2", {}),
    ],
)
def test_of_the_clip_only_what_a_level_still_reads_of_it_is_resized_to_its_tiles(frames, spec, resized):
    stage = make(spec, frames, 6, 6).stages[0][1]
    assert {size: resize.frames.tolist() for size, resize in stage.resize.items()} == resized
    x = torch.randn(frames, 6, 6, 2)
    for size, picked in resized.items():
        if picked:
            assert torch.equal(stage.resize[size].pick(x), torch.stack([x[frame] for frame in picked]))


@pytest.mark.parametrize("frames", range(1, 8))
def test_a_short_clip_passes_unchanged(frames):
    x = torch.randn(frames, 4, 4, 2)
    module = make("ptg", frames, 4, 4)
    assert torch.equal(module(x), x.reshape(-1, 2))
    assert not any(module.stages[0][1].written)


def test_the_input_is_not_written_to():
    x = torch.randn(32, 4, 4, 2)
    before = x.clone()
    make("ptg", 32, 4, 4)(x)
    assert torch.equal(x, before)


def test_the_graph_is_gathers_matmuls_and_one_full_size_concat(to_onnx):
    model = to_onnx(make("ptg", 32, 27, 27), torch.randn(32, 27, 27, 4))
    ops = [node.op_type for node in model.graph.node]
    assert set(ops) <= {"Gather", "Concat", "Slice", "MatMul", "Reshape", "Transpose"}
    assert ops.count("MatMul") == 6
    sizes = {v.name: [d.dim_value for d in v.type.tensor_type.shape.dim] for v in model.graph.value_info}
    assert sum(sizes.get(node.output[0]) == [32, 27, 27, 4] for node in model.graph.node) == 1


@pytest.mark.parametrize(("frames", "joined"), [(9, [3, 1, 3, 1, 1]), (8, [3, 1, 3, 1]), (4, [3, 1])])
def test_what_is_joined_is_runs_of_frames_and_summaries_none_of_them_empty(monkeypatch, frames, joined):
    lengths, cat = [], torch.cat
    stage = make("ptg:sizes=4,strides=1", frames, 4, 4).ptg
    x, summaries = torch.randn(frames, 4, 4, 2), stage(torch.randn(frames, 4, 4, 2), join=False)
    monkeypatch.setattr(torch, "cat", lambda pieces: lengths.extend(map(len, pieces)) or cat(pieces))
    result = stage(x, summaries)
    assert lengths == joined
    for frame in range(frames):
        expected = summaries[frame // 4] if frame in (3, 7) else x[frame]
        assert torch.equal(result[frame], expected)


def test_where_every_frame_is_a_summary_nothing_of_the_clip_is_joined(monkeypatch):
    lengths, cat = [], torch.cat
    x, stage = torch.randn(4, 3, 3, 2), make("ptg:sizes=1,strides=1", 4, 3, 3).ptg
    monkeypatch.setattr(torch, "cat", lambda pieces: lengths.extend(map(len, pieces)) or cat(pieces))
    assert torch.equal(stage(torch.zeros(4, 3, 3, 2), x), x)
    assert lengths == [1, 1, 1, 1]


@pytest.mark.parametrize(
    ("frames", "is_view"), [([0, 4, 8], True), ([1, 2, 3], True), ([2], True), ([3, 7], True), ([0, 1, 3], False)]
)
def test_frames_at_even_distances_are_read_where_they_lie(frames, is_view):
    x = torch.arange(9 * 2 * 2 * 3.0).reshape(9, 2, 2, 3)
    picked = _Resize((1, 1), frames, 2, 2).pick(x)
    assert torch.equal(picked, x[torch.tensor(frames)])
    assert (picked.untyped_storage().data_ptr() == x.untyped_storage().data_ptr()) is is_view
