"""`--input frames`: the sizes that it takes, how far float32 is exact, and how many probes tell the order of the passes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from refusal import naming

from export.frames import FrameInput, source_size, split_weights, weights
from runtime.bundle.manifest import Preprocessing
from runtime.core.errors import ExportError
from runtime.media.preprocess import Preprocessor

BOX = 4


def plain(size: tuple[int, int], resample: str) -> Preprocessing:
    return Preprocessing(size, resample, 1, (0, 0, 0), (1, 1, 1))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("pixels", None),
        ("frames", (30, 40)),
        ("frames:2x3", (2, 3)),
        ("frames:1x1", (1, 1)),
        ("frames:8192x1", (8192, 1)),
        ("frames:1x8192", (1, 8192)),
    ],
)
def test_rows_come_before_columns_and_both_ends_of_the_range_belong_to_it(text, expected):
    assert source_size(text, [30, 40]) == expected


@pytest.mark.parametrize("text", ["frames:0x1", "frames:1x0", "frames:8193x1", "frames:1x8193"])
def test_a_frame_outside_the_range_is_refused(text):
    with pytest.raises(ExportError, match=naming(f"--input {text}", "1 to 8192")):
        source_size(text, [30, 40])


@pytest.mark.parametrize("text", ["frames:", "frames:1x", "frames:1x2x3", "frames:-1x2", "pixels:1x2", "Frames"])
def test_what_names_no_size_is_refused(text):
    with pytest.raises(ExportError, match=naming("--input", f'"{text}"', "frames:HEIGHTxWIDTH")):
        source_size(text, [30, 40])


class TestTakenApart:
    """255 grey levels times the high parts must stay below 2^24; times the low parts, with 1.5 * 2^22 for rest and half, too."""

    def test_high_parts_may_sum_to_65793_and_no_more(self):
        high, low, bits = split_weights(np.array([[65793 << 11, 0]], np.int64))
        assert (high.tolist(), low.tolist(), bits) == ([[65793, 0]], [[0, 0]], 11)
        with pytest.raises(ExportError, match=naming("1 pixels", 2)):
            split_weights(np.array([[65794 << 11, 0]], np.int64))

    @pytest.mark.parametrize(("last", "bits"), [(120, 11), (-120, 11), (121, 10), (-121, 10)])
    def test_low_parts_may_sum_to_41120_before_a_place_less_is_tried(self, last, bits):
        table = np.array([[1000]] * 41 + [[last]], np.int32)
        assert split_weights(table)[2] == bits

    @pytest.mark.parametrize(("rows", "bits"), [(20560, 11), (20561, 1)])
    def test_the_least_that_is_tried_is_one_place(self, rows, bits):
        table = np.full((rows, 1), 2, np.int32)
        high, low, found = split_weights(table)
        assert found == bits and ((high << bits) + low == table).all()

    def test_low_parts_are_at_most_half_of_a_high_one(self):
        table = np.random.default_rng(0).integers(-(2**22), 2**22, (3, 50), np.int32)
        high, low, bits = split_weights(table)
        assert bits == 11 and low.min() >= -(2**10) and low.max() < 2**10
        np.testing.assert_array_equal(high * 2**11 + low, table)


@pytest.mark.parametrize("length", [1, 511, 512, 513, 1025])
def test_every_pixel_has_its_row_of_weights(length):
    table = weights(length, 1, BOX)
    assert table.shape == (length, 1)
    assert np.abs(table / 2**22 - 1 / length).max() < 2**-21


@pytest.mark.parametrize(
    ("shape", "size", "probes"),
    [((180, 320), (96, 96), 1), ((30, 41), (30, 20), 1), ((41, 30), (20, 30), 1), ((30, 40), (30, 40), 1)],
)
def test_one_probe_tells_the_order_where_there_is_much_or_nothing_to_tell(monkeypatch, shape, size, probes):
    calls, resize = [], Preprocessor.resize
    monkeypatch.setattr(Preprocessor, "resize", lambda self, frame: calls.append(frame.shape) or resize(self, frame))
    FrameInput(plain(size, "bicubic"), shape)
    assert calls == [(*shape, 3)] * probes


@pytest.mark.parametrize("down_first", [True, False])
@pytest.mark.parametrize(
    ("shape", "size"), [((5, 4), (1, 3)), ((8, 4), (5, 3)), ((6, 6), (3, 5)), ((8, 8), (3, 5)), ((6, 6), (7, 3))]
)
def test_the_order_of_the_passes_is_found_whichever_it_is(monkeypatch, shape, size, down_first):
    def in_two_steps(image: np.ndarray) -> np.ndarray:
        between = (image.shape[1], size[0]) if down_first else (size[1], image.shape[0])
        return np.asarray(Image.fromarray(image).resize(between, resample=BOX).resize(size[::-1], resample=BOX))

    monkeypatch.setattr(Preprocessor, "resize", lambda self, frame: in_two_steps(frame))
    images = np.random.default_rng(1).integers(0, 256, (100, *shape, 3), np.uint8)
    got = FrameInput(plain(size, "box"), shape)(torch.from_numpy(images)).permute(0, 2, 3, 1).numpy()
    np.testing.assert_array_equal(got, [in_two_steps(image) for image in images])


@pytest.mark.parametrize(("shape", "size"), [((30, 91), (30, 40)), ((77, 40), (30, 40)), ((77, 91), (30, 40))])
def test_another_pillow_is_refused_also_where_one_pass_does_it_all(monkeypatch, shape, size):
    resize = Preprocessor.resize
    monkeypatch.setattr(Preprocessor, "resize", lambda self, frame: resize(self, frame) ^ 1)
    with pytest.raises(ExportError, match=naming("Pillow")):
        FrameInput(plain(size, "bicubic"), shape)


@pytest.mark.parametrize("size", [(3, 5), (3, 9), (8, 5), (8, 9)])
def test_frames_are_rescaled_and_normalised_channel_by_channel(size):
    preprocessing = Preprocessing((3, 5), "bicubic", 0.5, (1, 2, 3), (4, 5, 8))
    images = np.full((2, *size, 3), [10, 20, 30], np.uint8)
    got = FrameInput(preprocessing, size)(torch.from_numpy(images))
    assert got.shape == (2, 3, 3, 5)
    for channel, value in enumerate([(5 - 1) / 4, (10 - 2) / 5, (15 - 3) / 8]):
        assert got[:, channel].unique().tolist() == [pytest.approx(value)]
