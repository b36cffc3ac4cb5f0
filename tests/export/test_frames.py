"""`--input frames`: the graph's resize has Pillow's bits at every size, and such a bundle answers like any other."""

from __future__ import annotations

import json

import numpy as np
import onnx
import PIL
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from polygraphy.json import load_json
from refusal import naming, refused

import runtime.__main__
from export.__main__ import main
from export.frames import FrameInput, split_weights, weights
from export.options import ExportOptions
from export.pipeline import export_bundle
from runtime.bundle import Bundle
from runtime.bundle.manifest import Preprocessing
from runtime.core.errors import ExportError, VideoError
from runtime.media.preprocess import Preprocessor
from runtime.tools.inspect import inspect, text
from runtime.tools.parity import parity
from runtime.vision.encoder import VisionEncoder
from runtime.vision.live import LiveEncoder

FILTERS = ["nearest", "lanczos", "bilinear", "bicubic", "box", "hamming"]
PREPROCESSING = Preprocessing((30, 40), "bicubic", 1 / 255, (0.5, 0.4, 0.3), (0.5, 0.25, 0.2))


def plain(size: tuple[int, int], resample: str) -> Preprocessing:
    """A resize alone."""
    return Preprocessing(size, resample, 1, (0, 0, 0), (1, 1, 1))


def resized(image: np.ndarray, size: tuple[int, int], resample: str) -> np.ndarray:
    """What the module makes of an image, as grey levels again; fails for what is not one."""
    module = FrameInput(plain(size, resample), image.shape[:2])
    got = module(torch.from_numpy(image)[None])[0].permute(1, 2, 0).numpy()
    np.testing.assert_array_equal(got, got.astype(np.uint8))
    return got.astype(np.uint8)


def pillow(image: np.ndarray, size: tuple[int, int], resample: str) -> np.ndarray:
    return np.asarray(Image.fromarray(image).resize(size[::-1], resample=FILTERS.index(resample)))


def extreme(rng: np.random.Generator, shape: tuple[int, int]) -> np.ndarray:
    """Black and white noise beside smooth parts: overshoot of the filter is clipped in both passes."""
    image = rng.integers(0, 256, (*shape, 3), np.uint8)
    image[: shape[0] // 2] = np.where(image[: shape[0] // 2] > 127, 255, 0)
    return image


class TestPillow:
    side = st.integers(1, 300)

    @settings(max_examples=80, deadline=None, derandomize=True)
    @given(side, side, st.integers(1, 150), st.integers(1, 150), st.sampled_from(FILTERS), st.integers(0, 99))
    def test_every_size_and_filter_has_the_same_bits(self, height, width, new_height, new_width, resample, seed):
        image = extreme(np.random.default_rng(seed), (height, width))
        size = (new_height, new_width)
        np.testing.assert_array_equal(resized(image, size, resample), pillow(image, size, resample))

    @pytest.mark.parametrize(
        ("shape", "size", "resample"),
        [
            ((5, 4), (1, 3), "box"),
            ((8, 4), (5, 3), "box"),
            ((6, 6), (3, 5), "box"),
            ((7, 2), (6, 3), "bilinear"),
            ((6, 3), (2, 4), "bilinear"),
        ],
    )
    def test_few_pixels_do_not_hide_which_pass_comes_first(self, shape, size, resample):
        images = np.random.default_rng(0).integers(0, 256, (300, *shape, 3), np.uint8)
        got = FrameInput(plain(size, resample), shape)(torch.from_numpy(images)).permute(0, 2, 3, 1).numpy()
        np.testing.assert_array_equal(got, [pillow(image, size, resample) for image in images])

    @pytest.mark.skipif(int(PIL.__version__.partition(".")[0]) < 13, reason="earlier releases never run along columns first")
    @pytest.mark.parametrize(
        ("shape", "size"),
        [((20, 20), (16, 18)), ((20, 20), (15, 18)), ((20, 20), (19, 30)), ((20, 20), (21, 24)), ((20, 30), (17, 29))],
    )
    def test_where_probes_tell_nothing_the_order_is_that_of_pillow_at_such_a_size(self, monkeypatch, shape, size):
        as_probes_tell = FrameInput(plain(size, "bicubic"), shape).down_first
        monkeypatch.setattr("export.frames._PROBES", 0)
        assert FrameInput(plain(size, "bicubic"), shape).down_first == as_probes_tell

    @pytest.mark.parametrize("shape", [(720, 1280), (1080, 1920), (480, 640), (16, 3840), (8192, 5), (384, 384), (91, 77)])
    def test_the_frames_of_cameras_have_the_same_bits(self, shape):
        image = extreme(np.random.default_rng(0), shape)
        np.testing.assert_array_equal(resized(image, (384, 384), "bicubic"), pillow(image, (384, 384), "bicubic"))

    def test_ties_are_rounded_up_as_pillow_rounds_them(self):
        image = np.array([[[0] * 3, [1] * 3, [4] * 3, [7] * 3]], np.uint8)
        assert resized(image, (1, 2), "box")[0, :, 0].tolist() == pillow(image, (1, 2), "box")[0, :, 0].tolist() == [1, 6]

    def test_pixel_values_are_those_of_the_runtime(self):
        image = extreme(np.random.default_rng(1), (77, 91))
        processor = Preprocessor(PREPROCESSING)
        expected = processor.normalise(processor.resize(image)[None])
        got = FrameInput(PREPROCESSING, (77, 91))(torch.from_numpy(image)[None]).numpy()
        assert got.dtype == np.float32
        np.testing.assert_allclose(got, expected, rtol=0, atol=1e-6)

    @pytest.mark.parametrize(("length", "target"), [(1280, 384), (3840, 224), (8192, 384), (50, 400)])
    def test_both_parts_of_the_weights_sum_exactly_in_float32(self, length, target):
        table = weights(length, target, FILTERS.index("lanczos"))
        high, low, bits = split_weights(table)
        np.testing.assert_array_equal((high.astype(np.int64) << bits) + low, table)
        assert (255 * np.abs(high).sum(0)).max() < 2**24
        assert (255 * np.abs(low).sum(0)).max() + 2**22 + 2**21 < 2**24

    def test_camera_sizes_fit_tf32_too(self):
        for length in (720, 1080, 1280, 1920):
            high, low, _ = split_weights(weights(length, 384, FILTERS.index("bicubic")))
            assert max(np.abs(high).max(), np.abs(low).max()) <= 2**11


@pytest.fixture(scope="module")
def frames_bundle(tmp_path_factory):
    """The shipped clips are 378x378."""
    out = tmp_path_factory.mktemp("frames") / "b"
    return export_bundle(ExportOptions(out=str(out), only="vision", input="frames:378x378", split=True)).bundle


class TestBundle:
    def test_the_tokens_are_those_of_a_bundle_of_pixel_values(self, frames_bundle, bundle, clip):
        got, expected = (VisionEncoder.open(b).encode(clip) for b in (frames_bundle, bundle))
        np.testing.assert_allclose(got.tokens, expected.tokens, rtol=1e-4, atol=1e-4)
        assert got.clip.frames.shape == (16, 378, 378, 3)

    def test_the_graphs_take_uint8_and_the_manifest_says_so(self, frames_bundle):
        assert frames_bundle.manifest.preprocessing.frames == (378, 378)
        for graph, frames_ in (("vision", 16), ("vision.encoder", 1)):
            (given,) = onnx.load(str(frames_bundle.model(graph))).graph.input
            assert given.name == "frames" and given.type.tensor_type.elem_type == onnx.TensorProto.UINT8
            assert [d.dim_value for d in given.type.tensor_type.shape.dim] == [frames_, 378, 378, 3]
        assert "input        uint8 frames of 378×378" in text(inspect(frames_bundle))

    def test_the_recorded_input_has_the_graphs_name_for_polygraphy(self, frames_bundle):
        (feed,) = load_json(str(frames_bundle.path / "reference" / "inputs.json"))
        assert [(name, value.dtype, value.shape) for name, value in feed.items()] == [("frames", np.uint8, (16, 378, 378, 3))]

    def test_parity_holds_the_input_to_less_than_a_grey_level(self, frames_bundle):
        report = parity(frames_bundle, ["onnx"])
        assert report.ok, report.rows
        (row,) = (row for row in report.rows if row.stage == "vision/input")
        assert row.shape == (16, 3, 126, 126) and row.max_abs < 1e-6  # a grey level is 7.8e-3

    def test_live_frames_are_resized_in_the_graph(self, frames_bundle, bundle):
        images = np.random.default_rng(0).integers(0, 256, (3, 378, 378, 3), np.uint8)
        live, other = (LiveEncoder.open(b) for b in (frames_bundle, bundle))
        for image in images:
            live.push(image)
            other.push(image)
        np.testing.assert_allclose(live.tokens(), other.tokens(), rtol=1e-4, atol=1e-4)
        with pytest.raises(VideoError, match=naming("90x160", "378x378")):
            live.push(images[0, :90, :160])

    def test_it_parses_and_builds_in_tensorrt(self, frames_bundle, tmp_path):
        pytest.importorskip("tensorrt_rtx")
        import shutil

        from runtime.engine.trt_build import BuildOptions, build

        built = build(Bundle.open(shutil.copytree(frames_bundle.path, tmp_path / "b")), BuildOptions(graphs=("vision",)))
        assert built[0].size > 1e5


def test_frames_of_the_models_own_size_may_have_any_size(tmp_path, bundle, clip, capsys):
    assert main(["--input", "frames", "--only", "vision", "--precision", "fp16", "--out", str(tmp_path / "b"), "--json"]) == 0
    own = Bundle.open(tmp_path / "b")
    assert own.manifest.preprocessing.frames == (126, 126)
    (row,) = (row for row in json.loads(capsys.readouterr().out)["verified"] if row["stage"] == "vision/input")
    assert row["error"] < 1e-3  # fp16's rounding; a grey level is 8e-3
    expected = VisionEncoder.open(bundle).encode(clip).tokens
    np.testing.assert_allclose(VisionEncoder.open(own).encode(clip).tokens, expected, atol=3e-2 * np.abs(expected).max())


def test_a_video_of_another_size_is_refused_with_what_to_export(frames_bundle, tmp_path, capsys):
    from video_files import pattern, write_video

    video = tmp_path / "small.mp4"
    write_video(video, pattern(8))
    line = refused(capsys, runtime.__main__.main, "tokens", frames_bundle.path, video, "-o", tmp_path / "t.npz")
    assert naming("96x128", "378x378", "--input frames:96x128").match(line), line
    assert not (tmp_path / "t.npz").exists()


@pytest.mark.parametrize(
    ("args", "named"),
    [
        ("frame", ["--input", '"frame"', "pixels", "frames", "frames:HEIGHTxWIDTH"]),
        ("frames:720", ["--input", '"frames:720"', "frames:HEIGHTxWIDTH"]),
        ("frames:0x10", ["--input frames:0x10", "1 to 8192"]),
        ("frames:10x9000", ["--input frames:10x9000", "1 to 8192"]),
        ("frames --only llm", ["--input", "--only llm"]),
    ],
)
def test_what_is_no_input_is_refused(tmp_path, capsys, args, named):
    assert naming(*named).match(refused(capsys, main, "--out", tmp_path / "b", "--input", *args.split()))
    assert not list(tmp_path.iterdir())


def test_sums_that_float32_can_not_hold_are_refused():
    with pytest.raises(ExportError, match=naming("8192 pixels", 14)):
        split_weights(weights(8192, 14, FILTERS.index("lanczos")))


def test_a_pillow_that_resizes_otherwise_is_refused(monkeypatch):
    monkeypatch.setattr(Preprocessor, "resize", lambda self, frame: frame[:30, :40] ^ 1)
    with pytest.raises(ExportError, match=naming("Pillow")):
        FrameInput(PREPROCESSING, (77, 91))
