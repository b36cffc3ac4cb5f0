"""Pixel values against transformers' own processor on the Pillow backend: the same bits, not nearly the same values."""

from __future__ import annotations

import sys
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image
from refusal import naming
from transformers.image_processing_backends import PilBackend
from transformers.models.llava_onevision.image_processing_pil_llava_onevision import LlavaOnevisionImageProcessorPil
from video_files import frames_of, pattern, write_video

from runtime.bundle.manifest import Preprocessing
from runtime.core.errors import UserError, VideoError
from runtime.media.preprocess import Preprocessor, load_clip

SIGLIP = Preprocessing((384, 384), "bicubic", 1 / 255, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
CLIP = replace(SIGLIP, image_mean=(0.48145466, 0.4578275, 0.40821073), image_std=(0.26862954, 0.26130258, 0.27577711))


class VideoFrameProcessor(PilBackend):
    """What transformers does to a video's frames (resize, rescale, normalise; no tiles, no padding), on its Pillow backend."""

    do_resize = do_rescale = do_normalize = do_convert_rgb = True


def reference(frames, preprocessing) -> np.ndarray:
    height, width = preprocessing.size
    processor = VideoFrameProcessor(
        size={"height": height, "width": width},
        resample=3,
        rescale_factor=preprocessing.rescale_factor,
        image_mean=preprocessing.image_mean,
        image_std=preprocessing.image_std,
    )
    return np.stack(processor.preprocess(list(frames), input_data_format="channels_last")["pixel_values"])


@pytest.mark.parametrize("preprocessing", [SIGLIP, CLIP, replace(SIGLIP, size=(112, 112)), replace(CLIP, size=(98, 140))])
@pytest.mark.parametrize("size", [(384, 384), (112, 112), (75, 113), (1, 1), (3, 700), (720, 1280), (1081, 1919), (37, 41)])
def test_pixel_values_have_the_bits_of_the_checkpoints_processor(preprocessing, size):
    frames = np.random.default_rng(0).integers(0, 256, (2, *size, 3), dtype=np.uint8)
    preprocessor = Preprocessor(preprocessing)
    ours = preprocessor.normalise(np.stack([preprocessor.resize(frame) for frame in frames]))
    theirs = reference(frames, preprocessing)
    assert ours.dtype == theirs.dtype == np.float32
    assert ours.flags.c_contiguous
    np.testing.assert_array_equal(ours.view(np.int32), np.ascontiguousarray(theirs).view(np.int32))


def test_a_square_image_has_the_bits_of_the_whole_image_processor():
    image = np.random.default_rng(1).integers(0, 256, (384, 384, 3), dtype=np.uint8)
    processor = LlavaOnevisionImageProcessorPil(image_mean=SIGLIP.image_mean, image_std=SIGLIP.image_std)
    theirs = processor.preprocess([image], return_tensors="np")["pixel_values"][0][0]  # the first tile is the image itself
    preprocessor = Preprocessor(SIGLIP)
    np.testing.assert_array_equal(preprocessor.normalise(preprocessor.resize(image)[None])[0], theirs)


def test_every_grey_level_is_right_in_every_channel():
    levels = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1).repeat(3, axis=3)
    ours = Preprocessor(replace(CLIP, size=(16, 16))).normalise(levels)
    exact = (levels[0].astype(np.float64) / 255 - CLIP.image_mean) / CLIP.image_std
    np.testing.assert_allclose(ours[0], exact.transpose(2, 0, 1), atol=1e-6)


def test_float16_is_float32_rounded():
    frames = np.random.default_rng(2).integers(0, 256, (2, 8, 8, 3), dtype=np.uint8)
    preprocessor = Preprocessor(replace(CLIP, size=(8, 8)))
    half = preprocessor.normalise(frames, np.float16)
    assert half.dtype == np.float16
    np.testing.assert_array_equal(half, preprocessor.normalise(frames).astype(np.float16))


def test_load_clip_gives_pixel_values_and_the_frames_they_come_from(tmp_path):
    path = write_video(tmp_path / "clip.mp4", pattern(20))
    preprocessing = replace(CLIP, size=(56, 70))
    pixel_values, clip = load_clip(path, 5, Preprocessor(preprocessing))
    assert clip.frames.shape == (5, 56, 70, 3) and clip.frames.dtype == np.uint8
    decoded = frames_of(path)
    np.testing.assert_array_equal(pixel_values, reference([decoded[i] for i in (0, 4, 8, 12, 16)], preprocessing))


def test_one_number_serves_all_channels_and_pillows_numbers_name_the_filter():
    frames = np.random.default_rng(3).integers(0, 256, (1, 9, 9, 3), dtype=np.uint8)
    short = Preprocessor(replace(SIGLIP, size=(9, 9), resample=3, image_mean=0.5, image_std=0.5))
    full = Preprocessor(replace(SIGLIP, size=(9, 9)))
    np.testing.assert_array_equal(short.normalise(frames), full.normalise(frames))
    np.testing.assert_array_equal(short.resize(frames[0, :5]), full.resize(frames[0, :5]))


@pytest.mark.parametrize("name", ["nearest", "lanczos", "bilinear", "bicubic", "box", "hamming"])
def test_every_filter_of_pillow_goes_by_its_name_or_its_number(name):
    number = int(Image.Resampling[name.upper()])
    frame = np.random.default_rng(6).integers(0, 256, (31, 23, 3), dtype=np.uint8)
    expected = np.asarray(Image.fromarray(frame).resize((9, 7), resample=number))
    for resample in (name, number):
        preprocessor = Preprocessor(replace(SIGLIP, size=(7, 9), resample=resample))
        assert preprocessor.resample == number
        np.testing.assert_array_equal(preprocessor.resize(frame), expected)


def test_frames_of_another_size_are_refused():
    with pytest.raises(ValueError, match=r"expected uint8 \[T, 384, 384, 3\]"):
        Preprocessor(SIGLIP).normalise(np.zeros((1, 384, 383, 3), np.uint8))


def test_a_graph_that_takes_frames_gets_those_of_its_size_as_they_are():
    preprocessor = Preprocessor(replace(SIGLIP, frames=(72, 128)))
    frames = np.random.default_rng(4).integers(0, 256, (2, 72, 128, 3), dtype=np.uint8)
    np.testing.assert_array_equal(preprocessor.normalise(np.stack([preprocessor.resize(frame) for frame in frames])), frames)
    with pytest.raises(VideoError, match=naming("128x72", "72x128", "--input frames:128x72")):
        preprocessor.resize(frames[0].transpose(1, 0, 2))
    with pytest.raises(ValueError, match=r"expected uint8 \[T, 72, 128, 3\]"):
        preprocessor.normalise(np.zeros((1, 384, 384, 3), np.uint8))


def test_a_graph_that_takes_frames_of_the_models_size_gets_any_resized():
    frame = np.random.default_rng(5).integers(0, 256, (72, 128, 3), dtype=np.uint8)
    expected = Preprocessor(SIGLIP).resize(frame)
    np.testing.assert_array_equal(Preprocessor(replace(SIGLIP, frames=(384, 384))).resize(frame), expected)


def test_levels_are_those_of_each_channel_whatever_the_numbers_are():
    frame = np.array([[[0, 1, 255], [2, 3, 4]]], np.uint8)
    facts = replace(SIGLIP, size=(1, 2), rescale_factor=10**36, image_mean=(0, 1e36, 2e36), image_std=(1, 2, 4))
    found = Preprocessor(facts).normalise(frame[None])
    np.testing.assert_allclose(found[0], [[[0, 2e36]], [[0, 1e36]], [[253e36 / 4, 0.5e36]]], rtol=1e-6)


@pytest.mark.parametrize(
    ("shape", "dtype"),
    [
        ((1, 8, 6, 3), np.float32),
        ((8, 6, 3), np.uint8),
        ((1, 6, 8, 3), np.uint8),
        ((1, 8, 6, 4), np.uint8),
        ((1, 1, 8, 6, 3), np.uint8),
    ],
)
def test_only_frames_of_the_right_kind_are_normalised(shape, dtype):
    one = Preprocessor(replace(SIGLIP, size=(8, 6)))
    assert one.normalise(np.zeros((0, 8, 6, 3), np.uint8)).shape == (0, 3, 8, 6)
    with pytest.raises(ValueError, match=r"expected uint8 \[T, 8, 6, 3\]$"):
        one.normalise(np.zeros(shape, dtype))


def test_what_a_graph_normalises_with_is_three_numbers_each():
    mean, std = Preprocessor(replace(SIGLIP, image_mean=0.25, image_std=(1, 2, 4))).mean_and_std
    assert mean.dtype == std.dtype == np.float32 and (mean.tolist(), std.tolist()) == ([0.25] * 3, [1, 2, 4])


def test_without_pillow_the_message_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "PIL.Image", None)
    with pytest.raises(UserError, match=naming('"pillow"', "pip install")):
        Preprocessor(SIGLIP).resize(np.zeros((2, 2, 3), np.uint8))
