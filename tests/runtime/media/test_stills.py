"""Pictures and picture animations: what Pillow reads, how long each frame is shown, and what is said of those it can't read."""

from __future__ import annotations

import contextlib
import struct
import tracemalloc
import warnings
from fractions import Fraction

import numpy as np
import pytest
from PIL import Image
from refusal import naming
from video_files import pattern, write_video

from runtime.core.errors import VideoError
from runtime.media import stills
from runtime.media.clip import sample_frames, sample_frames_limited
from runtime.media.limits import DecodeLimits

DURATIONS = [100, 100, 400, 100, 100, 1000]


@pytest.mark.parametrize("kind", ["webp", "png"])
def test_an_animation_is_a_clip_whose_last_frame_counts(tmp_path, kind):
    images = [Image.fromarray(image) for image in pattern(6)]
    path = tmp_path / f"animation.{kind}"
    images[0].save(path, save_all=True, append_images=images[1:], duration=DURATIONS, lossless=True)
    clip = sample_frames(path, 9, lambda image: image)
    assert clip.indices == (0, 2, 2, 3, 5, 5, 5, 5, 5)  # at 0, 200, 400 … 1600 ms
    assert clip.total == 6 and clip.duration == pytest.approx(1.8)
    np.testing.assert_array_equal(clip.frames, [pattern(6)[index] for index in clip.indices])


@pytest.mark.parametrize("kind", ["webp", "png"])
def test_an_animation_may_be_as_long_as_the_limit_says_and_no_longer(tmp_path, kind):
    images = [Image.fromarray(image) for image in pattern(6)]
    images[0].save(tmp_path / f"a.{kind}", save_all=True, append_images=images[1:], duration=DURATIONS, lossless=True)
    assert sample_frames_limited(tmp_path / f"a.{kind}", 1, lambda image: image, DecodeLimits(seconds=1.8)).total == 6
    with pytest.raises(VideoError, match=naming(f"a.{kind}", "2 s")):
        sample_frames_limited(tmp_path / f"a.{kind}", 1, lambda image: image, DecodeLimits(seconds=1.799))


@pytest.mark.parametrize("kind", ["png", "tiff", "bmp", "webp", "ppm"])
def test_a_picture_has_its_pixels(tmp_path, kind):
    image = pattern(1)[0]
    Image.fromarray(image).save(tmp_path / f"picture.{kind}", lossless=True)
    np.testing.assert_array_equal(sample_frames(tmp_path / f"picture.{kind}", 1, lambda image: image).frames[0], image)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK", "I;16"])
@pytest.mark.parametrize("kind", ["png", "tiff"])
def test_every_mode_becomes_rgb(tmp_path, mode, kind):
    levels = np.tile(np.array([0, 255], np.uint8), (16, 8))
    image = Image.fromarray(levels.astype(np.uint16) * 257) if mode == "I;16" else Image.fromarray(levels).convert(mode)
    try:
        image.save(tmp_path / f"picture.{kind}")
    except OSError:
        pytest.skip(f"{kind} has no {mode}")
    np.testing.assert_array_equal(
        sample_frames(tmp_path / f"picture.{kind}", 1, lambda image: image).frames[0], np.repeat(levels[:, :, None], 3, 2)
    )


@pytest.mark.parametrize(
    ("bits", "white_is_zero", "packed", "levels"),
    [
        (12, False, "000fff 800abc", [0x00, 0xFF, 0x80, 0xAB]),
        (16, False, "0000 ffff 0080 bcab", [0x00, 0xFF, 0x80, 0xAB]),
        (16, True, "0000 ffff 0080 bcab", [0xFF, 0x00, 0x7F, 0x54]),
        (8, True, "00 ff 80 ab", [0xFF, 0x00, 0x7F, 0x54]),
    ],
)
def test_grey_levels_of_a_tiff_are_those_that_it_says(tmp_path, bits, white_is_zero, packed, levels):
    write_grey_tiff(tmp_path / "a.tiff", bits, white_is_zero, bytes.fromhex(packed))
    frame = sample_frames(tmp_path / "a.tiff", 1, lambda image: image).frames[0]
    np.testing.assert_array_equal(frame, np.repeat(np.reshape(levels, (1, 4, 1)), 3, 2))


@pytest.mark.parametrize("mode", ["I", "F"])
def test_a_tiff_whose_white_nothing_tells_is_refused(tmp_path, mode):
    Image.fromarray(np.eye(4, dtype=np.int32 if mode == "I" else np.float32)).save(tmp_path / "a.tiff")
    with pytest.raises(VideoError, match=naming("a.tiff", "32-bit", "8 or 16 bits")):
        sample_frames(tmp_path / "a.tiff", 1, lambda image: image)


def write_grey_tiff(path, bits, white_is_zero, rows):
    """4 x 1 pixels, by TIFF 6.0's baseline: a header, the pixels, and 8 entries of (tag, type, count, value)."""
    values = {256: 4, 257: 1, 258: bits, 259: 1, 262: 0 if white_is_zero else 1, 273: 8, 278: 1, 279: len(rows)}
    entries = b"".join(struct.pack("<HHIHH", tag, 3, 1, value, 0) for tag, value in values.items())
    path.write_bytes(b"II*\0" + struct.pack("<I", 8 + len(rows)) + rows + struct.pack("<H", len(values)) + entries + bytes(4))


@pytest.mark.parametrize("mode", ["L", "P", "RGB", "RGBA", "CMYK", "I;16"])
def test_a_tiff_without_compression_is_turned_in_every_mode(tmp_path, mode):
    """Pillow would map most of them into memory."""
    levels = pattern(1)[0]
    image = Image.fromarray(levels[..., 0].astype(np.uint16) * 257) if mode == "I;16" else Image.fromarray(levels).convert(mode)
    shown = {}
    for number in (1, 5, 6, 7, 8):
        exif = Image.Exif()
        exif[0x112] = number
        image.save(tmp_path / f"{number}.tiff", exif=exif)
        shown[number] = sample_frames(tmp_path / f"{number}.tiff", 1, lambda image: image).frames[0]
    np.testing.assert_array_equal(shown[5], shown[1].swapaxes(0, 1))
    np.testing.assert_array_equal(shown[6], np.rot90(shown[1], -1))
    np.testing.assert_array_equal(shown[7], np.rot90(shown[1], 2).swapaxes(0, 1))
    np.testing.assert_array_equal(shown[8], np.rot90(shown[1]))


@pytest.mark.parametrize("mark", [b"II+\0", b"MM\0+"])
def test_a_tiff_with_long_addresses_is_a_picture(tmp_path, mark):
    path = tmp_path / "big.tiff"
    Image.fromarray(pattern(1)[0]).save(path, big_tiff=True)
    np.testing.assert_array_equal(sample_frames(path, 1, lambda image: image).frames[0], pattern(1)[0])
    path.write_bytes(mark)
    assert stills.is_still(path)


def test_a_stream_of_jpegs_is_a_video_and_a_jpeg_with_a_preview_is_not(tmp_path):
    path = write_video(tmp_path / "clip.mjpeg", pattern(4), "mjpeg", "yuvj420p", format="mjpeg")
    assert not stills.is_still(path) and sample_frames(path, 4, lambda image: image).total == 4
    images = [Image.fromarray(image) for image in pattern(2)]
    images[0].save(tmp_path / "phone.jpg", "MPO", save_all=True, append_images=images[1:])
    assert sample_frames(tmp_path / "phone.jpg", 1, lambda image: image).total == 1


@pytest.mark.parametrize("kind", ["jpg", "png", "webp", "tiff", "avif", "bmp"])
def test_half_a_picture_is_refused_with_one_line(tmp_path, kind):
    path = tmp_path / f"picture.{kind}"
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 256, (96, 128, 3), np.uint8)).save(path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(VideoError) as caught:
        sample_frames(path, 1, lambda image: image)
    assert "\n" not in str(caught.value) and str(path) in str(caught.value)


def test_mutated_pictures_are_read_or_refused_and_nothing_else(tmp_path):
    rng = np.random.default_rng(0)
    picture = Image.fromarray(pattern(1, 32, 48)[0])
    for kind in ("jpg", "png", "webp", "tiff", "avif", "bmp", "ppm"):
        picture.save(tmp_path / f"picture.{kind}")
        content = (tmp_path / f"picture.{kind}").read_bytes()
        for _ in range(40):
            changed = bytearray(content)
            for _ in range(rng.integers(1, 6)):
                changed[rng.integers(4, len(changed))] = rng.integers(0, 256)
            (tmp_path / "mutated").write_bytes(changed)
            try:
                clip = sample_frames_limited(tmp_path / "mutated", 2, lambda image: image[:4, :4], DecodeLimits(pixels=100_000))
                assert clip.total >= 1
            except VideoError as error:
                assert "\n" not in str(error)


@pytest.mark.parametrize("bits", [16, 12])
def test_levels_past_white_and_black_are_white_and_black(bits):
    white = (1 << bits) - 1
    levels = np.array([[-white, -1, 0, white // 2, white, white + 1, 2 * white]], np.int32)
    tags = {} if bits == 16 else {258: (bits,)}
    expected = np.array([0, 0, 0, 127, 255, 255, 255])
    for more, shown in (({}, expected), ({262: 1}, expected), ({262: 0}, 255 - expected)):
        np.testing.assert_array_equal(stills._rgb(Image.fromarray(levels), tags | more)[0], np.repeat(shown[:, None], 3, 1))


def test_grey_levels_of_two_bytes_are_their_upper_ones_in_a_pgm_too(tmp_path):
    (tmp_path / "a.pgm").write_bytes(b"P5 4 1 65535\n" + bytes.fromhex("0000 00ff 80ff ffff"))
    frame = sample_frames(tmp_path / "a.pgm", 1, lambda image: image).frames[0]
    np.testing.assert_array_equal(frame, np.repeat([[[0], [0], [128], [255]]], 3, 2))


@pytest.mark.parametrize("content", [b"just some text", b"BM"])
def test_what_begins_like_a_picture_and_is_none_is_called_so(tmp_path, content):
    (tmp_path / "a").write_bytes(content)
    with pytest.raises(VideoError, match=naming(tmp_path / "a", "picture")), stills.opened(tmp_path / "a"):
        pytest.fail("it was opened")


def test_a_length_beyond_the_end_of_a_file_asks_for_no_memory(tmp_path):
    """The IDAT chunk of a PNG says that it has 2 GiB."""
    Image.fromarray(pattern(1, 8, 8)[0]).save(tmp_path / "a.png")
    content = (tmp_path / "a.png").read_bytes()
    at = content.index(b"IDAT") - 4
    (tmp_path / "a.png").write_bytes(content[:at] + b"\x7f\xff\xff\xff" + content[at + 4 :])
    tracemalloc.start()
    try:
        with contextlib.suppress(VideoError), stills.opened(tmp_path / "a.png") as picture:
            picture.rgb(0)
        assert tracemalloc.get_traced_memory()[1] < 1 << 24
    finally:
        tracemalloc.stop()


def test_a_file_is_read_to_its_end_and_no_further(tmp_path):
    (tmp_path / "a").write_bytes(b"0123456789")
    with stills._Bounded(open(tmp_path / "a", "rb", buffering=0)) as file:
        assert (file.read(3), file.read(0), file.read(99), file.read(1)) == (b"012", b"", b"3456789", b"")
        file.seek(8)
        assert (file.read(), file.read(None)) == (b"89", b"")
        file.seek(99)
        assert file.read(5) == b""
        file.seek(4)
        assert file.read(-1) == b"456789"


def test_oddities_of_a_picture_s_metadata_are_passed_over(tmp_path):
    """Pillow warns of an animation of no frame."""
    picture = pattern(1, 8, 8)
    Image.fromarray(picture[0]).save(tmp_path / "a.png", save_all=True, append_images=[], default_image=True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        np.testing.assert_array_equal(sample_frames(tmp_path / "a.png", 1, lambda image: image).frames, picture)


def test_a_picture_has_no_length_and_frames_at_least_a_millisecond(tmp_path):
    images = [Image.fromarray(image) for image in pattern(3, 8, 8)]
    images[0].save(tmp_path / "still.png")
    images[0].save(tmp_path / "two.png", save_all=True, append_images=images[1:2], duration=[0, 30])
    images[0].save(tmp_path / "three.png", save_all=True, append_images=images[1:], duration=[20, 0, 0])
    for name, times, span in (("still", [0], 0), ("two", [0, 1], 31), ("three", [0, 20, 21], 22)):
        with stills.opened(tmp_path / f"{name}.png") as picture:
            found = picture.timeline()
            assert (found.times, found.span, found.tick) == (times, span, Fraction(1, 1000))
            assert picture.size == (8, 8)


def test_a_png_s_picture_for_who_cant_show_animations_is_not_one_of_its_frames(tmp_path):
    shown = pattern(4, 8, 8)
    images = [Image.fromarray(image) for image in shown]
    for count in (2, 3, 4):
        images[0].save(tmp_path / "a.png", save_all=True, append_images=images[1:count], duration=100, default_image=True)
        clip = sample_frames(tmp_path / "a.png", count - 1, lambda image: image)
        assert clip.total == count - 1
        np.testing.assert_array_equal(clip.frames, shown[1:count])


@pytest.mark.parametrize("frames", [1, 2])
def test_what_an_animation_may_ask_is_asked_of_two_frames_and_not_of_a_picture(tmp_path, frames):
    images = [Image.fromarray(image) for image in pattern(frames, 8, 8)]
    images[0].save(tmp_path / "a.png", save_all=True, append_images=images[1:])
    limits = DecodeLimits(animation_pixels=64 * frames - 1, frames=frames)
    if frames == 1:
        assert sample_frames_limited(tmp_path / "a.png", 1, lambda image: image, limits).total == 1
    else:
        with pytest.raises(VideoError, match=naming("a.png", "2 frames", "8x8", "127 pixels")):
            sample_frames_limited(tmp_path / "a.png", 1, lambda image: image, limits)


@pytest.mark.parametrize(
    ("start", "still"),
    [
        (b"P1\n", True),
        (b"P6 ", True),
        (b"P5\n64 48\n255\n....", True),
        (b"P7\n", False),
        (b"P0\n", False),
        (b"P6", False),
        (b"P66", False),
        (b"Q6\n", False),
        (b"BM", True),
        (b"RIFF....WEBP", True),
        (b"RIFF....AVI ", False),
        (b"RIFX....WEBP", False),
        (b"....ftypheic", True),
        (b"....ftypheix....", True),
        (b"....ftypavif", True),
        (b"....ftypmif1", True),
        (b"....ftypavis", False),
        (b"....ftypmsf1", False),
        (b"....ftypisom", False),
        (b"\x89PNG\r\n\x1a\n", True),
        (b"\xff\xd8\xff\xe0", True),
        (b"\xff\xd8\xff\xe0..\xff\xd9\xff\xd8\xff", False),
        (b"\xff\xd8\xff\xe2..MPF\0..\xff\xd9\xff\xd8\xff", True),
        (b"\xff\xd8\xff\xe0..\xff\xd9\xff\xd8\xffMPF\0", False),  # of the second
        (b"\xff\xd8\xff\xe0..\xff\xd9..\xff\xd8\xff", True),
        (b"GIF89a", False),
        (b"", False),
    ],
)
def test_what_is_a_picture_by_its_first_bytes(tmp_path, start, still):
    (tmp_path / "a").write_bytes(start)
    assert stills.is_still(tmp_path / "a") is still


def test_a_picture_over_the_limits_is_refused_before_it_is_decoded(tmp_path):
    Image.new("L", (3000, 3000)).save(tmp_path / "large.png")
    with pytest.raises(VideoError, match=naming("large.png", "3000x3000", "1000000 pixels")):
        sample_frames_limited(tmp_path / "large.png", 1, lambda image: image, DecodeLimits(pixels=1_000_000))


def test_an_animation_over_the_limits_is_refused_before_it_is_decoded(tmp_path):
    images = [Image.fromarray(image) for image in pattern(6)]
    images[0].save(tmp_path / "a.png", save_all=True, append_images=images[1:], duration=5000)
    for limits, message in (
        (DecodeLimits(animation_pixels=5 * 96 * 128), "is an animation of 6 frames of 128x96"),
        (DecodeLimits(frames=5), "at most 5 frames"),
        (DecodeLimits(seconds=20), "is 25 s long; expected at most 20 s"),
    ):
        with pytest.raises(VideoError, match=message):
            sample_frames_limited(tmp_path / "a.png", 2, lambda image: pytest.fail("a frame was given"), limits)


def test_without_pillow_heif_the_message_says_how_to_get_it(tmp_path, monkeypatch):
    heif = pytest.importorskip("pillow_heif")
    heif.from_pillow(Image.fromarray(pattern(1)[0])).save(tmp_path / "picture.heic")
    import sys

    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    with pytest.raises(Exception, match="pillow-heif") as caught:
        sample_frames(tmp_path / "picture.heic", 1, lambda image: image)
    assert "pip install" in str(caught.value) and "copy it again" not in str(caught.value)
