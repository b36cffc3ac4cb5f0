"""Where a plot's parts stand, in inches worked out by hand, and what is drawn of a clip whose stages are given."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from refusal import naming

from runtime.bundle.manifest import Checkpoint, Compression
from runtime.core.errors import BundleError
from runtime.media.clip import Clip
from runtime.tools import plot
from runtime.tools.picture import Picture, look
from runtime.tools.stages import Stages

matplotlib = pytest.importorskip("matplotlib.figure", reason="matplotlib is not installed")


def picture_of(frames: int, height: int, width: int, weights: bool = True) -> Picture:
    images = np.zeros((frames, height, width, 3), np.uint8)
    clip = Clip(Path("clip.mp4"), images, tuple(range(frames)), tuple(n / 4 for n in range(frames)), 2.0, frames, (height, width))
    norms = np.arange(frames * 8, dtype=np.float32).reshape(frames, 4, 2)
    shares = np.full((frames, 4, 2), 0.25, np.float32) if weights else None
    return Picture(clip, norms, shares, 2 if weights else 0, {}, "a title", "a subtitle", "nsp:window=2")


class TestBlocks:
    @pytest.fixture
    def drawn(self, monkeypatch):
        """drawn(picture): (size, cells as (frame, kind, x, y, width, height), texts as {text: [(x, y, size)]}), all in inches."""

        def draw(picture):
            cells, feet = [], []
            monkeypatch.setattr(matplotlib.Figure, "add_axes", lambda figure, place: place)
            monkeypatch.setattr(plot, "_cell", lambda place, _, frame, kind, scales: cells.append((frame, kind, *place)))
            monkeypatch.setattr(plot, "_foot", lambda figure, of, scales, size: feet.append((of, size)))
            figure = plot.draw(picture)
            width, height = size = tuple(figure.get_size_inches())
            assert len(feet) == 1 and feet[0][0] is picture and feet[0][1] == pytest.approx(size)
            texts = {}
            for text in figure.texts:
                x, y = text.get_position()
                texts.setdefault(text.get_text(), []).append((x * width, y * height, text.get_size()))
            scale = (width, height, width, height)
            return size, [(frame, kind, *np.multiply(place, scale)) for frame, kind, *place in cells], texts

        return draw

    def test_blocks_of_a_narrow_picture_stand_in_its_middle(self, drawn, monkeypatch):
        """Two frames of 1.22 x 2.44 side by side, 8.8 wide for the foot: 2.42 to spare on each side of 1.15 for the names."""
        monkeypatch.setattr(plot, "COLUMNS", 2)
        size, cells, texts = drawn(picture_of(3, 8, 4))
        assert size == pytest.approx((8.8, 1.12 + 2 * (3 * 2.5 + 0.34) + 0.95))
        first, second, bottom = [13.99, 11.49, 8.99], [13.99, 11.49, 8.99], [6.15, 3.65, 1.15]
        expected = []
        for frame, x, ys in ((0, 3.57, first), (1, 4.85, second), (2, 3.57, bottom)):
            expected += [(frame, kind, x, y, 1.22, 2.44) for kind, y in zip(("frame", "norms", "weights"), ys, strict=True)]
        assert [cell[:2] for cell in cells] == [cell[:2] for cell in expected]
        np.testing.assert_allclose([cell[2:] for cell in cells], [cell[2:] for cell in expected], atol=1e-9)
        for text, places in {
            "a title": [(0.3, 17.33, 17)],
            "a subtitle": [(0.3, 17.05, 9)],
            "nsp:window=2": [(0.3, 16.85, 8.5)],
            "0.00 s": [(4.18, 16.49, 8)],
            "0.25 s": [(5.46, 16.49, 8)],
            "0.50 s": [(4.18, 8.65, 8)],
            "frame": [(3.43, 15.21, 9), (3.43, 7.37, 9)],
            "token norms": [(3.43, 12.71, 9), (3.43, 4.87, 9)],
            "NSP weights": [(3.43, 10.21, 9), (3.43, 2.37, 9)],
        }.items():
            np.testing.assert_allclose(texts.pop(text), places, atol=1e-9)
        assert not texts

    def test_eight_frames_stand_side_by_side_right_of_the_names(self, drawn):
        size, cells, texts = drawn(picture_of(9, 4, 4, weights=False))
        assert size == pytest.approx((1.15 + 8 * 1.28 + 0.25, 1.12 + 2 * (2 * 1.28 + 0.34) + 0.95))
        places = {cell[:2]: cell[2:] for cell in cells}
        assert len(places) == 9 * 2 and "NSP weights" not in texts
        np.testing.assert_allclose(places[0, "frame"], (1.15, 5.33, 1.22, 1.22))
        np.testing.assert_allclose(places[7, "norms"], (10.11, 4.05, 1.22, 1.22))
        np.testing.assert_allclose(places[8, "norms"], (1.15, 1.15, 1.22, 1.22))
        np.testing.assert_allclose(texts["frame"], [(1.01, 5.94, 9), (1.01, 3.04, 9)])

    def test_fewer_frames_than_stand_side_by_side_are_one_block(self, drawn):
        size, cells, _ = drawn(picture_of(2, 4, 4))
        assert size == pytest.approx((8.8, 1.12 + 3 * 1.28 + 0.34 + 0.95))
        assert [cell[2] for cell in cells] == pytest.approx([3.57] * 3 + [4.85] * 3)


def test_scales_end_where_all_but_the_last_half_of_a_percent_do():
    picture = picture_of(3, 8, 4)
    norms = {"cmap": "inferno", "vmin": 0.0, "vmax": pytest.approx(0.995 * 23)}
    assert plot._scales(picture) == {"norms": norms, "weights": {"cmap": "cividis", "vmin": 0.0, "vmax": 1.0}}
    assert plot._scales(replace(picture, weights=None)) == {"norms": norms}


@pytest.mark.parametrize(
    ("shape", "window", "across", "down", "line_width"),
    [  # of a frame of 60 x 80
        ((5, 4), 2, [24, 48], [40], (0.5, 0.5)),
        ((12, 16), 6, [30], [30, 60], (4 / 12, 0.25)),
        ((2, 8), 4, [], [40], (0.5, 0.5)),
    ],
)
def test_every_window_is_ruled_off_from_the_next(shape, window, across, down, line_width):
    picture = replace(picture_of(1, 60, 80), weights=np.ones((1, *shape), np.float32), window=window)
    axes = matplotlib.Figure().add_axes((0, 0, 1, 1))
    plot._cell(axes, picture, 0, "weights", {"weights": {"cmap": "cividis", "vmin": 0.0, "vmax": 1.0}})
    lines = [(list(line.get_xdata()), list(line.get_ydata()), line.get_linewidth(), line.get_color()) for line in axes.lines]
    expected = [([0, 1], [y, y], line_width[0], "white") for y in across] + [([x, x], [0, 1], line_width[1], "white") for x in down]
    assert lines == [(x, y, pytest.approx(width), color) for x, y, width, color in expected]
    assert axes.images[0].get_interpolation() == "nearest" and not len(axes.get_xticks()) and not len(axes.get_yticks())
    assert axes.get_facecolor() == pytest.approx((0xE5 / 255, 0xE7 / 255, 0xEB / 255, 1))


def test_norms_are_drawn_as_the_squares_that_they_are():
    axes = matplotlib.Figure().add_axes((0, 0, 1, 1))
    plot._cell(axes, picture_of(1, 60, 80), 0, "norms", {"norms": {"cmap": "inferno", "vmin": 0.0, "vmax": 1.0}})
    assert axes.images[1].get_interpolation() == "nearest" and not axes.lines


class TestFoot:
    @staticmethod
    def foot(picture):
        figure = matplotlib.Figure(figsize=(10, 5))
        plot._foot(figure, picture, plot._scales(picture), (10, 5))
        bars = [axes.get_position().bounds for axes in figure.axes]
        texts = [(text.get_text(), *np.multiply(text.get_position(), (10, 5)), text.get_size()) for text in figure.texts]
        return figure, [list(np.multiply(bar, (10, 5, 10, 5))) for bar in bars], texts

    def test_scales_and_levels_stand_in_a_row(self):
        figure, bars, texts = self.foot(replace(picture_of(4, 8, 4), levels={0: [1], 1: [1, 2], 3: [2]}))
        np.testing.assert_allclose(bars, [[0.3, 0.42, 2.1, 0.13], [2.85, 0.42, 2.1, 0.13]])
        letter = 0.56 * 8.5 / 72
        expected = [
            ("norm of a token before compression", 0.3, 0.63, 8.5),
            ("weight in its 2×2 window", 2.85, 0.63, 8.5),
            ("replaced by a PTG summary, written last by", 5.4, 0.63, 8.5),
            ("level 1: 1 frame", 5.66, 0.43, 8.5),
            ("level 2: 2 frames", 5.66 + 16 * letter + 0.25 + 0.26, 0.43, 8.5),
        ]
        assert [text[0] for text in texts] == [text[0] for text in expected]
        np.testing.assert_allclose([text[1:] for text in texts], [text[1:] for text in expected])
        borders = [(*artist.get_xy(), artist.get_width(), artist.get_height()) for artist in figure.artists]
        expected_borders = [[5.4, 0.4, 0.16, 0.15], [5.66 + 16 * letter + 0.25, 0.4, 0.16, 0.15]]
        np.testing.assert_allclose(np.multiply(borders, (10, 5, 10, 5)), expected_borders)
        assert [(artist.get_linewidth(), artist.get_fill()) for artist in figure.artists] == [(2.5, False)] * 2
        assert [tuple(np.round(np.multiply(artist.get_edgecolor()[:3], 255))) for artist in figure.artists] == [
            (0xE6, 0x9F, 0x00),
            (0x00, 0x9E, 0x73),
        ]

    def test_a_bar_has_its_scales_limits_and_of_weights_what_average_pooling_gives(self):
        figure, *_ = self.foot(replace(picture_of(4, 8, 4), window=4))
        norms, weights = figure.axes
        assert norms.get_xlim() == pytest.approx((0, 0.995 * 31)) and weights.get_xlim() == (0, 1)
        assert list(weights.get_xticks()) == [0, 1 / 16, 1]
        assert [label.get_text() for label in weights.get_xticklabels()] == ["0", "0.062 = average", "1"]
        assert len(norms.get_xticks()) > 3 and not norms.get_yticks().size
        for axes in figure.axes:
            tick = axes.xaxis.get_major_ticks()[0]
            assert (tick.label1.get_size(), tick.tick1line.get_markersize(), tick.label1.get_color()) == (7.5, 2, "#6b7280")
            assert not [spine for name, spine in axes.spines.items() if name == "outline" and spine.get_visible()]

    def test_without_summaries_and_weights_there_is_one_bar(self):
        _, bars, texts = self.foot(picture_of(4, 8, 4, weights=False))
        assert len(bars) == 1 and [text[0] for text in texts] == ["norm of a token before compression"]


def test_a_text_ends_about_where_its_letters_do():
    figure = matplotlib.Figure(figsize=(10, 5))
    assert plot._text(figure, 1, 2, "twelve chars", size=10) == pytest.approx(1 + 12 * 10 * 0.56 / 72)
    plot._text(figure, 1, 2, "b", align="right", middle=True, size=9, color="#ff0000")
    plain, other = figure.texts
    assert plain.get_position() == (0.1, 0.4) and (plain.get_ha(), plain.get_va(), plain.get_color()) == (
        "left",
        "baseline",
        "#1b1f24",
    )
    assert (other.get_ha(), other.get_va(), other.get_color()) == ("right", "center", "#ff0000")


def test_the_picture_is_written_white_and_sharp_enough_for_print(monkeypatch, tmp_path):
    saved = []

    def save(path, **options):
        Path(path).write_bytes(b"png")
        saved.append(options)

    monkeypatch.setattr(plot, "look", lambda *given: given)
    monkeypatch.setattr(plot, "draw", lambda picture: SimpleNamespace(savefig=save))
    assert plot.plot("bundle", "v.mp4", tmp_path / "p", "options") == ("bundle", "v.mp4", "options")
    assert saved == [{"format": "png", "dpi": 160, "facecolor": "white"}] and (tmp_path / "p").read_bytes() == b"png"


class TestLook:
    """A clip of `frames` frames of 2 x 2 patches, whose stages give the tensors that a test sets."""

    CLIP = SimpleNamespace(path=Path("videos/v.mp4"), total=99)

    @pytest.fixture
    def look(self, monkeypatch):
        def of(spec, frames, **tensors):
            names = ["vision/encoder", "vision/projector", *(f"compress/{part.partition(':')[0]}" for part in spec.split("+"))]
            manifest = SimpleNamespace(
                stages=[SimpleNamespace(name=name) for name in [*names, "visual_tokens"]],
                compression=Compression("p", spec, "after-projector"),
                frames=frames, grid=(2, 2), patch_tokens=1200, tokens_per_clip=500, preprocessing="how", checkpoint=Checkpoint("tiny", ""),
            )  # fmt: skip
            given = {name.replace("_", "/"): np.asarray(value, np.float32) for name, value in tensors.items()}

            def run(bundle, pixels, options, wanted):
                assert (bundle.path, pixels, options) == ("b", "pixels", "options")
                return Stages({name: given[name] for name in wanted}, {})

            monkeypatch.setattr("runtime.tools.picture.Preprocessor", lambda how: (how, "made"))
            monkeypatch.setattr(
                "runtime.tools.picture.load_clip",
                lambda *asked: ("pixels", self.CLIP) if asked == ("v", frames, ("how", "made")) else None,
            )
            monkeypatch.setattr("runtime.tools.picture.run_stages", run)
            return look(SimpleNamespace(path="b", manifest=manifest), "v", "options")

        return of

    def test_norms_and_weights_are_those_of_nsp_in_its_order_and_windows_of_two(self, look):
        tokens = [[[1, -3], [0, 0], [2, 2], [0, 4]], [[0, 0]] * 4]  # means of magnitudes 2, 0, 2 and 2
        seen = look("nsp:order=1,temperature=0.5", 2, vision_projector=tokens)
        np.testing.assert_allclose(seen.norms, [[[2, 0], [2, 2]], [[0, 0], [0, 0]]])
        e = np.e
        np.testing.assert_allclose(seen.weights[0], np.array([[e, 1], [e, e]]) / (3 * e + 1), rtol=1e-6)
        np.testing.assert_allclose(seen.weights[1], np.full((2, 2), 0.25))
        assert (seen.window, seen.levels, seen.clip) == (2, {}, self.CLIP)
        assert seen.title == "1,200 patch tokens → 500 visual tokens  (2.4:1)"
        assert seen.subtitle == "v.mp4: 2 of 99 frames   ·   tiny   ·   after the projector"
        assert seen.spec == "nsp:order=1,temperature=0.5"

    def test_summaries_are_weighed_in_the_places_of_the_frames_that_they_replace(self, look):
        tokens = np.ones((8, 4, 2))
        summary = np.array([[[[0, 0], [0, 0]], [[0, 0], [3, 3]]]])  # of the last frame
        spec = "ptg:sizes=4,strides=2+nsp:window=2"
        seen = look(spec, 8, vision_projector=tokens, compress_ptg=summary)
        assert seen.levels == {7: [1]} and seen.norms.shape == (8, 2, 2) and (seen.norms == 1).all()
        np.testing.assert_allclose(seen.weights[:7], np.full((7, 2, 2), 0.25))
        np.testing.assert_allclose(seen.weights[7], np.array([[1, 1], [1, np.e**3]]) / (np.e**3 + 3), rtol=1e-6)

    def test_of_a_clip_too_short_for_a_pyramid_the_frames_themselves_are_weighed(self, look):
        seen = look(
            "ptg:sizes=4,strides=2+nsp:window=2", 2, vision_projector=np.ones((2, 4, 2)), compress_ptg=np.zeros((0, 2, 2, 2))
        )
        assert seen.levels == {} and (seen.weights == 0.25).all()

    def test_a_pyramid_behind_nsp_changes_nothing_of_what_nsp_weighs(self, look):
        seen = look(
            "nsp:window=2+ptg:sizes=4,strides=2", 8, vision_projector=np.ones((8, 4, 2)), compress_nsp=np.ones((8, 1, 1, 2))
        )
        assert (seen.weights == 0.25).all() and seen.levels == {7: [1]}

    def test_stages_that_are_given_other_than_the_frames_are_not_drawn(self, look):
        """Halves of the clip's frames reach both; the norms are of two's order."""
        halves = np.ones((2, 2, 2, 2))
        tokens = np.full((4, 4, 2), 3.0)
        tokens[..., 1] = 4
        seen = look("half:by=2+nsp:window=2,order=1", 4, vision_projector=tokens, compress_half=halves)
        assert (seen.weights, seen.window, seen.levels) == (None, 0, {})
        np.testing.assert_allclose(seen.norms, np.full((4, 2, 2), 12.5**0.5), rtol=1e-6)
        assert look("half:by=2+ptg:sizes=4,strides=2", 4, vision_projector=tokens, compress_half=halves).levels == {}

    def test_without_nsp_there_are_norms_and_levels_alone(self, look):
        seen = look("ptg:sizes=4,strides=2", 8, vision_projector=np.ones((8, 4, 2)))
        assert (seen.weights, seen.window, seen.levels) == (None, 0, {7: [1]})

    @pytest.mark.parametrize("names", [["compress/nsp", "visual_tokens"], ["vision/encoder", "visual_tokens"], []])
    def test_a_bundle_that_lists_no_stage_before_its_compression_is_refused(self, names):
        bundle = SimpleNamespace(path="b", manifest=SimpleNamespace(stages=[SimpleNamespace(name=name) for name in names]))
        with pytest.raises(BundleError, match=naming("b", "stage")):
            look(bundle, "v")
