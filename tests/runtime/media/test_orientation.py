"""Which way round a picture is shown: display matrices as ffmpeg's autorotate, EXIF as Pillow's exif_transpose."""

from __future__ import annotations

import av
import numpy as np
import pytest
from heif_files import write_grid
from PIL import Image
from refusal import naming
from video_files import write_video

from runtime.core.errors import VideoError
from runtime.media.clip import sample_frames
from runtime.media.orientation import oriented, upright_rgb

NAMES = {(220, 0, 0): "R", (0, 220, 0): "G", (0, 0, 220): "B", (220, 220, 0): "y"}

# What is shown of quadrants RG over By, by EXIF orientation; the matrix is a, b, c, d.
SHOWN = {1: "RG/By", 2: "GR/yB", 3: "yB/GR", 4: "By/RG", 5: "RB/Gy", 6: "BR/yG", 7: "yG/BR", 8: "Gy/RB"}
MATRICES = {
    1: (1, 0, 0, 1),
    2: (-1, 0, 0, 1),
    3: (-1, 0, 0, -1),
    4: (1, 0, 0, -1),
    5: (0, 1, 1, 0),
    6: (0, 1, -1, 0),
    7: (0, -1, -1, 0),
    8: (0, -1, 1, 0),
}


@pytest.fixture(scope="module")
def quadrants() -> np.ndarray:
    """RGB uint8 [96, 128, 3]."""
    image = np.zeros((96, 128, 3), np.uint8)
    for color, rows, columns in zip(NAMES, (0, 0, 1, 1), (0, 1, 0, 1), strict=True):
        image[rows * 48 : rows * 48 + 48, columns * 64 : columns * 64 + 64] = color
    return image


def names(image: np.ndarray) -> str:
    height, width = image.shape[:2]
    found = []
    for row in (height // 4, height * 3 // 4):
        for column in (width // 4, width * 3 // 4):
            found.append(min(NAMES, key=lambda color: np.abs(image[row, column].astype(int) - color).sum()))
    return "".join(NAMES[color] for color in found[:2]) + "/" + "".join(NAMES[color] for color in found[2:])


@pytest.mark.parametrize("orientation", SHOWN)
@pytest.mark.parametrize("container", ["mp4", "mov"])
def test_a_display_matrix_turns_and_mirrors(tmp_path, quadrants, orientation, container):
    path = write_video(tmp_path / f"clip.{container}", [quadrants] * 3, matrix=MATRICES[orientation])
    clip = sample_frames(path, 2, lambda image: image)
    assert names(clip.frames[0]) == names(clip.frames[1]) == SHOWN[orientation]
    assert clip.size == clip.frames[0].shape[:2] == ((96, 128) if orientation < 5 else (128, 96))


@pytest.mark.parametrize("orientation", SHOWN)
@pytest.mark.parametrize("kind", ["jpg", "png", "webp", "tiff", "avif"])
def test_the_orientation_in_exif_turns_and_mirrors(tmp_path, quadrants, orientation, kind):
    exif = Image.Exif()
    exif[0x112] = orientation
    Image.fromarray(quadrants).save(tmp_path / "picture", {"jpg": "jpeg"}.get(kind, kind), exif=exif)
    clip = sample_frames(tmp_path / "picture", 2, lambda image: image)
    assert names(clip.frames[0]) == SHOWN[orientation]
    assert (clip.total, clip.size) == (1, (96, 128) if orientation < 5 else (128, 96))


@pytest.mark.parametrize(("turns", "shown"), [(0, "RG/By"), (1, "Gy/RB"), (3, "BR/yG")])
def test_a_grid_of_tiles_is_one_picture(tmp_path, turns, shown):
    tiles = [np.full((64, 96, 3), color, np.uint8) for color in NAMES]
    clip = sample_frames(write_grid(tmp_path / "grid.avif", tiles, turns), 1, lambda image: image)
    assert names(clip.frames[0]) == shown
    assert clip.size == ((192, 128) if turns % 2 else (128, 192))


def test_a_picture_of_heic_is_read_the_right_way_round(tmp_path, quadrants):
    heif = pytest.importorskip("pillow_heif")
    exif = Image.Exif()
    exif[0x112] = 6
    heif.from_pillow(Image.fromarray(quadrants)).save(tmp_path / "picture.heic", quality=90, exif=exif.tobytes())
    assert names(sample_frames(tmp_path / "picture.heic", 1, lambda image: image).frames[0]) == SHOWN[6]


@pytest.mark.parametrize(("degrees", "orientation"), [(3, 1), (40, 1), (50, 6), (93, 6), (176, 3), (271, 8)])
def test_a_turn_by_any_angle_becomes_the_nearest_quarter_turn(quadrants, degrees, orientation):
    cos, sin = (round(65536 * function(np.radians(degrees))) for function in (np.cos, np.sin))
    assert names(oriented(quadrants, [cos, sin, 0, -sin, cos])) == SHOWN[orientation]


@pytest.mark.parametrize("rotation", [0, 90, 180, -90])
def test_side_data_that_pyav_does_not_know_leaves_the_turn(quadrants, rotation):
    class Frame:
        """One whose side data can't be listed, as of a JPEG with EXIF, and must not be looked at, as of a PNG."""

        def __init__(self, codec):
            self.codec, self.rotation = codec, rotation

        def to_ndarray(self, **asked):
            assert asked == {"format": "rgb24", "interpolation": "BICUBIC"}
            return quadrants

        @property
        def side_data(self):
            assert self.codec == "mjpeg"
            raise ValueError("31 is not a valid Type")

    for codec in ("mjpeg", "png", "apng"):
        np.testing.assert_array_equal(upright_rgb(Frame(codec), codec), np.rot90(quadrants, rotation // 90))


@pytest.mark.parametrize(
    ("matrix", "rows", "columns"),
    [
        ([0] * 9, 1, 1),  # which says nothing
        ([1, 0, 0, 0, 0], 1, 1),
        ([-1, 0, 0, 0, 0], 1, -1),
        ([0, 0, 0, 0, -1], -1, 1),
        ([-5, 4, 7, 4, 5, 8, 9, 9, 1], 1, -1),  # what stands beside the four of a turn is not looked at
    ],
)
def test_a_matrix_without_some_of_its_numbers_turns_by_those_that_it_has(matrix, rows, columns):
    image = np.arange(24).reshape(2, 4, 3)
    shown = oriented(image, matrix)
    np.testing.assert_array_equal(shown, image[::rows, ::columns])
    assert shown.flags.c_contiguous


def test_a_frame_in_colours_that_can_t_be_converted_is_refused_and_the_reason_said():
    class Frame:
        def to_ndarray(self, **_):
            raise av.error.InvalidDataError(1, "Invalid argument")

    with pytest.raises(VideoError, match=naming("RGB", "Invalid argument")):
        upright_rgb(Frame(), "h264")
