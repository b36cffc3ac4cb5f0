from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from export import compress
from plugins.op import NSPOptions
from runtime.core.errors import UserError, VideoError
from runtime.media.clip import Clip
from runtime.media.preprocess import Preprocessor, load_clip
from runtime.tools import plot
from runtime.tools.picture import Picture, look, nsp_weights, token_norms
from runtime.tools.stages import run_stages

Image = pytest.importorskip("PIL.Image", reason="pillow is not installed")


def test_the_weights_drawn_are_the_ones_the_graph_pools_with(bundle, clip):
    pixels, _ = load_clip(clip, bundle.manifest.frames, Preprocessor(bundle.manifest.preprocessing))
    tensors = run_stages(bundle, pixels).tensors
    given, pooled = tensors["vision/projector"].reshape(16, 9, 9, -1).copy(), tensors["compress/nsp"]
    given[[7, 15]] = tensors["compress/ptg"]  # the frames that the pyramid replaces at T = 16
    weights = look(bundle, clip).weights
    frames, rows, columns, width = pooled.shape
    inside = (slice(None), slice(0, 2 * rows), slice(0, 2 * columns))  # 9 rows: the last is in no window
    weighted = (given * weights[..., None])[inside].reshape(frames, rows, 2, columns, 2, width).sum(axis=(2, 4))
    np.testing.assert_allclose(weighted, pooled, rtol=1e-4, atol=1e-4 * np.abs(pooled).max())


def test_the_norms_drawn_are_of_the_tokens_before_compression(bundle, clip):
    pixels, _ = load_clip(clip, bundle.manifest.frames, Preprocessor(bundle.manifest.preprocessing))
    tokens = run_stages(bundle, pixels, names=["vision/projector"]).tensors["vision/projector"]
    expected = np.linalg.norm(tokens.astype(np.float64), axis=-1) / np.sqrt(tokens.shape[-1])
    np.testing.assert_allclose(look(bundle, clip).norms, expected.reshape(16, 9, 9), rtol=1e-5)


@pytest.mark.parametrize(
    "spec", ["nsp:window=2", "nsp:window=3,temperature=4,order=1", "nsp:window=3,padding=1", "nsp:window=2,order=inf"]
)
def test_weights_of_any_nsp_are_those_of_the_stage(spec):
    x = np.random.default_rng(0).normal(size=(2, 7, 8, 5)).astype(np.float32)
    module = compress.make(spec, frames=2, height=7, width=8)
    options = module.nsp.options
    weights = nsp_weights(token_norms(x, options.order), options)
    ring, window = options.padding, options.window
    around = ((0, 0), (ring, ring), (ring, ring))
    shares, padded = np.pad(np.nan_to_num(weights), around), np.pad(x, (*around, (0, 0)))
    rows, columns = padded.shape[1] // window, padded.shape[2] // window
    summed = (shares[..., None] * padded)[:, : rows * window, : columns * window]
    summed = summed.reshape(2, rows, window, columns, window, 5).sum(axis=(2, 4))
    expected = module(torch.from_numpy(x)).numpy().reshape(summed.shape)
    np.testing.assert_allclose(summed, expected, rtol=1e-5, atol=1e-6)


def test_what_no_window_covers_has_no_weight():
    weights = nsp_weights(np.ones((1, 5, 4), np.float32), NSPOptions())
    assert np.isnan(weights[0, 4]).all() and (weights[0, :4] == 0.25).all()


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
    picture = Picture(clip, tokens, tokens / 24, 2, {}, "title", "subtitle", "nsp")
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

    picture = replace(look(bundle, clip), weights=None, window=0, levels={})
    assert len(plot.draw(picture).axes) == 2 * 16 + 1


class TestFigure:
    """Three frames, red, green and blue, two side by side; the second is a summary of level 1, the third of levels 1 and 2."""

    @pytest.fixture(scope="class")
    def picture(self) -> Picture:
        frames = np.zeros((3, 8, 4, 3), np.uint8)
        for channel in range(3):
            frames[channel, ..., channel] = 255
        clip = Clip(Path("clip.mp4"), frames, (0, 1, 2), (0.0, 0.5, 1.25), 2.0, 3, (8, 4))
        norms = np.arange(24, dtype=np.float32).reshape(3, 4, 2)
        weights = np.full((3, 4, 2), 0.25, np.float32)
        return Picture(clip, norms, weights, 2, {1: [1], 2: [1, 2]}, "a title", "a subtitle", "nsp:window=2")

    @pytest.fixture(scope="class")
    def figure(self, picture):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(plot, "COLUMNS", 2)
            return plot.draw(picture)

    @staticmethod
    def texts(figure, words: str) -> list:
        return [text for text in figure.texts if text.get_text() == words]

    def test_a_row_is_named_at_its_middle_left_of_its_cells(self, figure):
        for row, name in enumerate(("frame", "token norms", "NSP weights")):
            labels = self.texts(figure, name)
            for block, label in zip((0, 2), labels, strict=True):  # the first frame of each of two blocks
                cell = figure.axes[3 * block + row].get_position()
                assert label.get_position()[1] == pytest.approx((cell.y0 + cell.y1) / 2)
                assert label.get_position()[0] < cell.x0 and label.get_horizontalalignment() == "right"
                assert label.get_verticalalignment() == "center"

    def test_cells_stand_under_their_time_and_beside_each_other(self, figure, picture):
        width, height = figure.get_size_inches()
        cells = [axes.get_position() for axes in figure.axes[:9]]
        for frame, seconds in enumerate(("0.00 s", "0.50 s", "1.25 s")):
            (time,) = self.texts(figure, seconds)
            top, middle, bottom = cells[3 * frame : 3 * frame + 3]
            assert time.get_position()[0] == pytest.approx((top.x0 + top.x1) / 2)
            assert top.y1 < time.get_position()[1] and top.y0 > middle.y1 > middle.y0 > bottom.y1
            assert top.height * height == pytest.approx(2 * top.width * width)  # frames of 8x4
        assert cells[0].y0 == cells[3].y0 and cells[0].x1 < cells[3].x0
        assert cells[6].x0 == cells[0].x0 and cells[6].y1 < cells[2].y0  # the next block
        for axes in figure.axes:
            place = axes.get_position()
            assert min(place.x0, place.y0) > 0 and max(place.x1, place.y1) < 1

    def test_norms_lie_over_a_grey_frame_and_all_frames_share_a_scale(self, figure, picture):
        for frame, grey in enumerate((76.245, 149.685, 29.07)):  # 255 times the luma weights of ITU-R BT.601
            shown, below, above = (
                *figure.axes[3 * frame].images,
                *figure.axes[3 * frame + 1].images,
            )
            np.testing.assert_array_equal(shown.get_array(), picture.clip.frames[frame])
            np.testing.assert_allclose(below.get_array(), np.full((8, 4), grey), rtol=1e-5)
            assert (below.get_clim(), below.get_cmap().name) == ((0, 255), "gray")
            np.testing.assert_array_equal(above.get_array(), picture.norms[frame])
            assert above.get_clim() == pytest.approx((0, 22.885)) and above.get_alpha() == 0.85  # 0.995 of the way to 23
            (weights,) = figure.axes[3 * frame + 2].images
            assert weights.get_clim() == (0, 1)
            assert {tuple(image.get_extent()) for image in (shown, below, above, weights)} == {(0, 4, 8, 0)}

    def test_windows_are_ruled_off(self, figure):
        (line,) = figure.axes[2].lines  # 4 rows in windows of 2; the columns are one window
        assert list(line.get_ydata()) == [4, 4]

    def test_a_summary_has_the_colour_of_the_level_that_wrote_it_last(self, figure):
        for frame, color in enumerate((None, "#e69f00", "#009e73")):
            spines = [spine for axes in figure.axes[3 * frame : 3 * frame + 3] for spine in axes.spines.values()]
            assert {spine.get_visible() for spine in spines} == {color is not None}
            if color:
                expected = tuple(int(color[at : at + 2], 16) / 255 for at in (1, 3, 5))
                np.testing.assert_allclose([spine.get_edgecolor()[:3] for spine in spines], [expected] * 12, atol=1e-6)
                assert {spine.get_linewidth() for spine in spines} == {3}
                (time,) = self.texts(figure, ("0.50 s", "1.25 s")[frame - 1])
                assert (time.get_color(), time.get_weight()) == (color, "bold")

    def test_texts_stand_inside_the_picture_and_apart_from_each_other(self, figure):
        from matplotlib.backends.backend_agg import FigureCanvasAgg

        renderer = FigureCanvasAgg(figure).get_renderer()
        boxes = [text.get_window_extent(renderer) for text in figure.texts]
        for at, box in enumerate(boxes):
            assert 0 < box.x0 < box.x1 < figure.bbox.x1 and 0 < box.y0 < box.y1 < figure.bbox.y1
            assert not any(box.overlaps(other) for other in boxes[:at])
        title, subtitle, spec = figure.texts[:3]
        assert boxes[0].y0 > boxes[1].y1 > boxes[1].y0 > boxes[2].y1 and boxes[2].y0 > max(box.y1 for box in boxes[3:])
        assert title.get_weight() == "bold" and title.get_size() > subtitle.get_size()
        assert title.get_color() != subtitle.get_color() == spec.get_color()
        assert spec.get_family() == ["monospace"] != subtitle.get_family()

    def test_an_entry_of_the_legend_is_a_border_and_its_name_close_by(self, figure):
        from matplotlib.backends.backend_agg import FigureCanvasAgg

        renderer = FigureCanvasAgg(figure).get_renderer()
        names = [text.get_window_extent(renderer) for text in figure.texts[-2:]]
        borders = [artist.get_window_extent(renderer) for artist in figure.artists]
        second, inch = borders[1], figure.dpi
        for border, name in zip(borders, names, strict=True):
            assert 0 < name.x0 - border.x1 < 0.15 * inch and border.y0 < (name.y0 + name.y1) / 2 < border.y1
        assert 0.15 * inch < second.x0 - names[0].x1 < 0.45 * inch

    def test_the_head_and_the_foot_say_what_is_drawn(self, figure):
        texts = [text.get_text() for text in figure.texts]
        assert texts[:3] == ["a title", "a subtitle", "nsp:window=2"]
        assert texts[-5:] == [
            "norm of a token before compression",
            "weight in its 2×2 window",
            "replaced by a PTG summary, written last by",
            "level 1: 1 frame",
            "level 2: 1 frame",
        ]
        assert [tick.get_text() for tick in figure.axes[-1].get_xticklabels()] == ["0", "0.25 = average", "1"]


def test_levels_beyond_the_colours_begin_again():
    assert [plot._color(level) for level in (1, 5, 6)] == ["#e69f00", "#d55e00", "#e69f00"]


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
