from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from export import compress
from runtime.errors import UserError, VideoError
from runtime.preprocess import Preprocessor, load_clip
from runtime.tools import plot
from runtime.tools.spec import read_spec
from runtime.tools.stages import run_stages
from runtime.video import Clip

Image = pytest.importorskip("PIL.Image", reason="pillow is not installed")


def test_the_weights_drawn_are_the_ones_the_graph_pools_with(bundle, clip):
    pixels, _ = load_clip(clip, bundle.manifest.frames, Preprocessor(bundle.manifest.preprocessing))
    tensors = run_stages(bundle, pixels).tensors
    given, pooled = tensors["vision/projector"].reshape(16, 9, 9, -1).copy(), tensors["compress/nsp"]
    given[[7, 15]] = tensors["compress/ptg"]  # the frames that the pyramid replaces at T = 16
    weights = plot.look(bundle, clip).weights
    frames, rows, columns, width = pooled.shape
    inside = (slice(None), slice(0, 2 * rows), slice(0, 2 * columns))  # 9 rows: the last is in no window
    weighted = (given * weights[..., None])[inside].reshape(frames, rows, 2, columns, 2, width).sum(axis=(2, 4))
    np.testing.assert_allclose(weighted, pooled, rtol=1e-4, atol=1e-4 * np.abs(pooled).max())


def test_the_norms_drawn_are_of_the_tokens_before_compression(bundle, clip):
    pixels, _ = load_clip(clip, bundle.manifest.frames, Preprocessor(bundle.manifest.preprocessing))
    tokens = run_stages(bundle, pixels, names=["vision/projector"]).tensors["vision/projector"]
    expected = np.linalg.norm(tokens.astype(np.float64), axis=-1) / np.sqrt(tokens.shape[-1])
    np.testing.assert_allclose(plot.look(bundle, clip).norms, expected.reshape(16, 9, 9), rtol=1e-5)


@pytest.mark.parametrize(
    "spec", ["nsp:window=2", "nsp:window=3,temperature=4,order=1", "nsp:window=3,padding=1", "nsp:window=2,order=inf"]
)
def test_weights_of_any_nsp_are_those_of_the_stage(spec):
    x = np.random.default_rng(0).normal(size=(2, 7, 8, 5)).astype(np.float32)
    module = compress.make(spec, frames=2, height=7, width=8)
    (stage,) = read_spec(module.spec)
    weights = plot.nsp_weights(plot.token_norms(x, stage.number("order", 2)), stage)
    ring, window = int(stage.number("padding", 0)), int(stage.number("window", 2))
    around = ((0, 0), (ring, ring), (ring, ring))
    shares, padded = np.pad(np.nan_to_num(weights), around), np.pad(x, (*around, (0, 0)))
    rows, columns = padded.shape[1] // window, padded.shape[2] // window
    summed = (shares[..., None] * padded)[:, : rows * window, : columns * window]
    summed = summed.reshape(2, rows, window, columns, window, 5).sum(axis=(2, 4))
    expected = module(torch.from_numpy(x)).numpy().reshape(summed.shape)
    np.testing.assert_allclose(summed, expected, rtol=1e-5, atol=1e-6)


def test_what_no_window_covers_has_no_weight():
    (nsp,) = read_spec("nsp:window=2")
    weights = plot.nsp_weights(np.ones((1, 5, 4), np.float32), nsp)
    assert np.isnan(weights[0, 4]).all() and (weights[0, :4] == 0.25).all()


def test_levels_are_those_that_the_stage_writes():
    (ptg,) = read_spec("ptg:sizes=4/4/4,strides=2/4/8")
    assert plot.ptg_levels(ptg, 32) == {7: [1], 15: [1, 2], 23: [1], 31: [1, 2, 3]}
    assert plot.ptg_levels(ptg, 7) == {}
    written = compress.make("ptg:sizes=2/3,strides=3/5", 40, 8, 8).ptg.written
    (other,) = read_spec("ptg:sizes=2/3,strides=3/5")
    assert sorted(plot.ptg_levels(other, 40)) == sorted({frame for level in written for frame in level})


def test_the_picture_of_a_clip_is_a_png_that_shows_all_of_it(bundle, clip, tmp_path):
    out = tmp_path / "deep" / "plot.png"
    picture = plot.plot(bundle, clip, out)
    assert "1,296 patch tokens → 257 visual tokens  (5.0:1)" in picture.title
    with Image.open(out) as image:
        assert image.format == "PNG" and image.width > 1200
        pixels = np.asarray(image.convert("RGB"))
    for color in plot._LEVEL_COLORS[:2]:  # the borders of both levels are there, of the third (T = 16) none
        assert (pixels == [int(color[at : at + 2], 16) for at in (1, 3, 5)]).all(axis=-1).sum() > 8000  # three cells each
    assert not (pixels == [int(plot._LEVEL_COLORS[2][at : at + 2], 16) for at in (1, 3, 5)]).all(axis=-1).any()
    assert [file.name for file in out.parent.iterdir()] == ["plot.png"]


def test_frame_heat_and_weights_cover_the_same_rectangle():
    clip = Clip(Path("v.mp4"), np.zeros((2, 60, 80, 3), np.uint8), (0, 5), (0.0, 0.5), 1.0, 10, (60, 80))
    tokens = np.arange(2 * 3 * 4, dtype=np.float32).reshape(2, 3, 4)
    picture = plot.Picture(clip, tokens, tokens / 24, 2, {}, "title", "subtitle", "nsp")
    cells = plot.draw(picture).axes[: 2 * 3]  # of two frames three rows each
    assert [[tuple(image.get_extent()) for image in axes.images] for axes in cells] == [
        [(0, 80, 60, 0)] * layers for layers in (1, 2, 1) * 2
    ]


def test_before_the_projector_the_encoders_norms_are_drawn(selecting_bundle, clip, tmp_path):
    picture = plot.plot(selecting_bundle, clip, tmp_path / "plot.png")
    assert picture.norms.shape == (12, 9, 9) and "before the projector" in picture.subtitle
    assert len(plot.draw(picture).axes) == 3 * 12 + 2


def test_without_nsp_there_is_no_row_of_weights(bundle, clip):
    from dataclasses import replace

    picture = replace(plot.look(bundle, clip), weights=None, window=0, levels={})
    assert len(plot.draw(picture).axes) == 2 * 16 + 1


def test_a_bad_video_leaves_the_old_picture(bundle, tmp_path):
    out = tmp_path / "plot.png"
    out.write_bytes(b"old")
    with pytest.raises(VideoError):
        plot.plot(bundle, tmp_path / "none.mp4", out)
    assert out.read_bytes() == b"old"


def test_without_matplotlib_the_extra_is_named_before_any_work(bundle, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(UserError, match=r"st-gridpool\[plot\]"):
        plot.plot(bundle, tmp_path / "none.mp4", tmp_path / "plot.png")
