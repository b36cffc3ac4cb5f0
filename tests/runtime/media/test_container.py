"""Which stream is the video, and what is said where there is none."""

from __future__ import annotations

import io
import struct
import subprocess
import sys
import zlib
from fractions import Fraction
from types import SimpleNamespace

import av
import numpy as np
import pytest
from PIL import Image
from refusal import naming
from video_files import pattern, write_video

from runtime.core.errors import VideoError
from runtime.media.clip import sample_frames, sample_frames_limited
from runtime.media.container import best_stream, interval_of, is_fragmented, opened, tick_of
from runtime.media.limits import DecodeLimits, limited
from runtime.media.stream import Stream


def write_streams(path, streams, **container):
    """streams: (codec, pixel format, images, disposition) of each, in the file's order."""
    with av.open(str(path), "w", **container) as output:
        made = []
        for codec, pixel_format, images, disposition in streams:
            stream = output.add_stream(codec, rate=16)
            stream.height, stream.width = images[0].shape[:2]
            stream.pix_fmt, stream.disposition = pixel_format, disposition
            made.append((stream, images))
        for stream, images in made:
            for image in images:
                output.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
            output.mux(stream.encode())
    return path


def sizes(path) -> set[tuple[int, int]]:
    """What a clip and what a stream sees of a file."""
    seen = {rgb().shape[:2] for _, rgb in Stream(str(path))}
    return seen | {sample_frames(path, 4, lambda image: image).size}


@pytest.mark.parametrize("container", ["mp4", "mkv", "mov"])
def test_a_small_preview_that_stands_first_is_not_the_video(tmp_path, container):
    preview = ("mjpeg", "yuvj420p", pattern(1, 24, 32), 0)
    main = ("libx264", "yuv420p", pattern(24), av.stream.Disposition.default)
    assert sizes(write_streams(tmp_path / f"clip.{container}", [preview, main])) == {(96, 128)}


def test_transparency_is_not_the_video(tmp_path):
    """In an AVIF sequence it is a video too, here the larger one; how likely FFmpeg is to choose it depends on that."""
    noise = np.random.default_rng(0).integers(0, 255, (5, 96, 128), np.uint8)
    images = [
        Image.merge("RGBA", [*Image.new("RGB", (128, 96), (level,) * 3).split(), Image.fromarray(alpha)])
        for level, alpha in zip((20, 60, 100, 140, 180), noise, strict=True)
    ]
    path = tmp_path / "sequence.avif"
    images[0].save(path, save_all=True, append_images=images[1:], duration=100)
    clip = sample_frames(path, 5, lambda image: image)
    assert np.abs(clip.frames - np.array([20, 60, 100, 140, 180]).reshape(5, 1, 1, 1)).max() <= 2


NONE, DEFAULT = av.stream.Disposition(0), av.stream.Disposition.default
COVER = av.stream.Disposition.attached_pic


def _stream(disposition=NONE, frames: int = 9, width: int = 8, height: int = 6, kind: str = "video", decoder: bool = True):
    codec = SimpleNamespace(width=width, height=height) if decoder else None
    return SimpleNamespace(disposition=disposition, frames=frames, codec_context=codec, type=kind)


class Streams(list):
    """best_of: the number of the stream that FFmpeg calls the best, None for none."""

    def __init__(self, streams, best_of: int | None):
        super().__init__(streams)
        self.video, self.best_of = [one for one in streams if one.type == "video"], best_of

    def best(self, kind: str):
        assert kind == "video"
        return None if self.best_of is None else self[self.best_of]


def _container(streams: list, best: int | None, brand: str = "isom") -> SimpleNamespace:
    return SimpleNamespace(streams=Streams(streams, best), metadata={"major_brand": brand})


@pytest.mark.parametrize(
    ("streams", "best", "brand", "chosen"),
    [
        ([_stream(), _stream()], 1, "isom", 1),  # what FFmpeg chooses
        ([_stream(), _stream()], 1, "avis", 0),  # colours stand before their transparency
        ([_stream(), _stream(), _stream()], 2, "msf1", 0),
        ([_stream(frames=1), _stream()], 1, "avis", 1),  # a picture before the sequence
        ([_stream(width=9), _stream()], 1, "hevc", 1),
        ([_stream(height=7), _stream()], 1, "hevx", 1),
        ([_stream(COVER, width=99), _stream()], 0, "isom", 1),
        ([_stream(av.stream.Disposition.dependent, width=99), _stream()], 0, "isom", 1),
        ([_stream(av.stream.Disposition.still_image, width=99), _stream()], 0, "isom", 1),
        ([_stream(av.stream.Disposition.timed_thumbnails, width=99), _stream()], 0, "avis", 1),
        ([_stream(width=3, height=9), _stream(width=5), _stream(width=4), _stream(COVER)], 3, "isom", 1),  # the largest
        ([_stream(DEFAULT, width=3), _stream(), _stream(COVER)], 2, "isom", 0),  # the default before the largest
        ([_stream(decoder=False, width=99), _stream()], None, "isom", 1),
    ],
)
def test_which_stream_is_the_video(streams, best, brand, chosen):
    assert best_stream(_container(streams, best, brand), "a.mp4") is streams[chosen]


@pytest.mark.parametrize(
    ("streams", "named"),
    [
        ([], "no stream"),
        ([_stream(kind="subtitle"), _stream(kind="audio"), _stream(kind="audio")], "audio, subtitle"),
        ([_stream(decoder=False)], "it has video"),
        ([_stream(kind="audio"), _stream(COVER)], "cover picture"),
    ],
)
def test_what_a_file_has_instead_of_a_video_is_said(streams, named):
    with pytest.raises(VideoError, match=naming("a.mp4", named)):
        best_stream(_container(streams, None), "a.mp4")


def test_a_stream_that_names_no_times_has_microseconds_and_25_frames_of_a_second():
    silent = SimpleNamespace(time_base=None, guessed_rate=None)
    assert (tick_of(silent), interval_of(silent)) == (Fraction(1, 1_000_000), Fraction(1, 25))
    told = SimpleNamespace(time_base=Fraction(1, 90_000), guessed_rate=Fraction(30_000, 1001))
    assert (tick_of(told), interval_of(told)) == (Fraction(1, 90_000), Fraction(1001, 30_000))


EXPLODE = {"err_detect": "explode"}


@pytest.mark.parametrize(
    ("codec", "strict", "threads", "options", "kind"),
    [
        ("libx264", True, True, EXPLODE, "AUTO"),
        ("libx264", True, False, EXPLODE, "NONE"),
        ("mpeg4", True, False, EXPLODE, "NONE"),
        ("libx264", False, True, {}, "NONE"),
        ("mpeg4", True, True, EXPLODE, "SLICE"),
        ("mpeg4", False, True, {}, "NONE"),
        ("mjpeg", False, True, EXPLODE, "SLICE"),  # its decoder flags nothing, so it is always strict
    ],
)
def test_a_decoder_is_told_whether_to_be_strict_and_how_many_work(tmp_path, codec, strict, threads, options, kind):
    pixel_format = "yuvj420p" if codec == "mjpeg" else "yuv420p"
    path = write_video(tmp_path / "clip.mkv", pattern(1, 32, 32), codec, pixel_format)
    with opened(path, strict, threads) as (_, stream):
        assert (stream.codec_context.options, stream.thread_type.name) == (options, kind)
    with limited(DecodeLimits(pixels=5000)), opened(path, strict, threads) as (_, stream):
        assert stream.codec_context.options == {"max_pixels": "5000"} | options


def box(kind: bytes, content: bytes = b"", size: int | None = None, wide: bool = False) -> bytes:
    """A box of ISO/IEC 14496-12; wide: its size has 64 bits; size: what it says of itself where that is not the truth."""
    length = len(content) + (16 if wide else 8) if size is None else size
    return (struct.pack(">I4sQ", 1, kind, length) if wide else struct.pack(">I4s", length, kind)) + content


@pytest.mark.parametrize(
    ("content", "fragmented"),
    [
        (box(b"moof"), True),
        (box(b"ftyp", b"isom") + box(b"moov", bytes(20)) + box(b"moof"), True),
        (box(b"mdat", bytes(20), wide=True) + box(b"moof"), True),
        (box(b"ftyp") + box(b"mdat", box(b"moof")), False),  # not a box, but in one
        (box(b"mdat", box(b"moof"), size=0) + box(b"moof"), False),  # a box up to the end of the file
        (box(b"free") + box(b"moof"), True),  # with nothing in it
        (struct.pack(">I4sQ", 1, b"free", (1 << 56) + 16) + box(b"moof"), False),
        (box(b"free", size=7) + box(b"moof"), False),  # smaller than its own head
        (box(b"mdat", size=1000) + box(b"moof"), False),  # which ends behind the file
        (b"", False),
    ],
    ids=[
        "first",
        "behind an index",
        "behind a wide box",
        "in a box",
        "in the last box",
        "behind an empty box",
        "in a box larger than any file",
        "behind a broken box",
        "behind the end",
        "empty",
    ],
)
def test_where_the_boxes_of_an_mp4_say_that_it_has_fragments(tmp_path, content, fragmented):
    (tmp_path / "clip.mp4").write_bytes(content)
    assert is_fragmented(tmp_path / "clip.mp4") is fragmented


def cover_first(path):
    """Put a cover picture's box before the tracks: FFmpeg numbers streams in the order of boxes."""
    content = path.read_bytes()
    start = content.index(b"moov") - 4
    end = start + struct.unpack(">I", content[start : start + 4])[0]
    boxes, at = [], start + 8
    while at < end:
        length = struct.unpack(">I", content[at : at + 4])[0]
        boxes.append(content[at : at + length])
        at += length
    boxes.sort(key=lambda box: box[4:8] != b"udta")
    path.write_bytes(content[: start + 8] + b"".join(boxes) + content[end:])
    return path


def test_a_cover_picture_is_not_the_video(tmp_path):
    cover = ("mjpeg", "yuvj420p", pattern(1, 24, 32), av.stream.Disposition.attached_pic)
    main = ("libx264", "yuv420p", pattern(24), av.stream.Disposition.default)
    path = cover_first(write_streams(tmp_path / "clip.mp4", [main, cover]))
    with av.open(str(path)) as container:
        assert container.streams[0].disposition & av.stream.Disposition.attached_pic
    assert sizes(path) == {(96, 128)}


def test_music_with_a_cover_has_no_video(tmp_path):
    with av.open(str(tmp_path / "music.m4a"), "w", format="mp4") as output:
        sound = output.add_stream("aac", rate=16000, layout="mono")
        cover = output.add_stream("mjpeg", rate=1)
        cover.height, cover.width, cover.pix_fmt, cover.disposition = 24, 32, "yuvj420p", av.stream.Disposition.attached_pic
        output.mux(cover.encode(av.VideoFrame.from_ndarray(pattern(1, 24, 32)[0], format="rgb24")))
        output.mux(cover.encode())
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 16000), np.int16), format="s16", layout="mono")
        frame.sample_rate = 16000
        output.mux(sound.encode(frame))
        output.mux(sound.encode())
    for read in (lambda path: sample_frames(path, 4, lambda image: image), lambda path: list(Stream(str(path)))):
        with pytest.raises(VideoError, match=naming("music.m4a", "cover picture", "video")):
            read(tmp_path / "music.m4a")


def test_an_encrypted_file_is_called_so(tmp_path):
    encryption = {"encryption_scheme": "cenc-aes-ctr", "encryption_key": "01" * 16, "encryption_kid": "02" * 16}
    path = write_video(tmp_path / "cenc.mp4", pattern(20), container_options=encryption)
    with pytest.raises(VideoError, match=naming(path, "encrypted")):
        sample_frames(path, 4, lambda image: image)


def write_packet(path, png: bytes):
    """A QuickTime file of one PNG."""
    with av.open(str(path), "w", format="mov") as output:
        stream = output.add_stream("png", rate=16)
        stream.height, stream.width, stream.pix_fmt = 24, 32, "rgb24"
        packet = av.Packet(png)
        packet.stream, packet.pts, packet.dts, packet.time_base = stream, 0, 0, Fraction(1, 16)
        packet.is_keyframe = True
        output.mux(packet)
    return path


def test_a_picture_with_a_colour_profile_in_a_video_is_read(tmp_path):
    """PyAV's list of side data ends the process there; so it runs in one of its own."""
    file = io.BytesIO()
    Image.new("RGB", (32, 24), (200, 0, 0)).save(file, "PNG", icc_profile=bytes(200))
    path = write_packet(tmp_path / "clip.mov", file.getvalue())
    code = f"from runtime.media.clip import sample_frames; print(sample_frames({str(path)!r}, 1, lambda image: image).frames[0, 0, 0, 0])"
    assert printed(code) == 200


def bomb() -> bytes:
    """A PNG of 64 KiB whose colour profile inflates to 64 MiB."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    profile = chunk(b"iCCP", b"p\0\0" + zlib.compress(bytes(64 << 20), 9))
    file = io.BytesIO()
    Image.new("RGB", (32, 24)).save(file, "PNG")
    png = file.getvalue()
    return png[:33] + profile + png[33:]  # after IHDR


def printed(code: str) -> int:
    """The number that `code` prints last, in a process of its own."""
    return int(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()[-1])


_MEASURE = """
import resource
from runtime.core.errors import VideoError
from runtime.media.clip import DecodeLimits, sample_frames_limited
sample_frames_limited({small!r}, 1, lambda image: image, DecodeLimits())
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
try:
    sample_frames_limited({path!r}, 1, lambda image: image, DecodeLimits())
except VideoError:
    pass
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) << 10)
"""


@pytest.mark.parametrize("kind", ["png", "apng", "mov"])
def test_metadata_that_would_inflate_is_not_inflated(tmp_path, kind):
    path, content = tmp_path / "bomb", bomb()
    if kind == "png":
        path.write_bytes(content)
    elif kind == "apng":
        animated = struct.pack(">I4sIII", 8, b"acTL", 2, 0, 0)
        path.write_bytes(content[:33] + animated + content[33:])
    else:
        write_packet(path, content)
    small = write_video(tmp_path / "small.png", pattern(1), "png", "rgb24", format="image2", options={"update": "1"})
    assert printed(_MEASURE.format(small=str(small), path=str(path))) < 32 << 20


def gif(width: int, height: int, frames: int) -> bytes:
    """Frames of one pixel on a canvas of any size."""
    head = b"GIF89a" + struct.pack("<HH", width, height) + b"\x80\0\0\0\0\0\xff\xff\xff"
    frame = b"\x21\xf9\x04\0\x0a\0\0\0\x2c" + struct.pack("<HHHH", 0, 0, 1, 1) + b"\0\x02\x02\x44\x01\0"
    return head + frame * frames + b"\x3b"


@pytest.mark.parametrize(
    ("size", "frames", "message"),
    [
        ((4096, 2304), 300, "is an animation of .* frames of 4096x2304; expected at most 2000000000 pixels"),
        ((5000, 5000), 2, "or frames of more than 9437184 pixels"),
    ],
)
def test_an_animation_is_refused_by_its_pixels_before_one_is_decoded(tmp_path, size, frames, message):
    (tmp_path / "a.gif").write_bytes(gif(*size, frames))
    with pytest.raises(VideoError, match=message):
        sample_frames_limited(tmp_path / "a.gif", 8, lambda image: pytest.fail("a frame was decoded"), DecodeLimits())


def test_the_length_of_a_clip_is_that_of_the_file_and_of_its_video(tmp_path, monkeypatch):
    """32 frames of 16 a second; a raw stream tells no length."""
    lengths = []
    monkeypatch.setattr("runtime.media.limits.check_seconds", lambda path, seconds: lengths.append(seconds))
    with opened(write_video(tmp_path / "clip.mp4", pattern(32, 32, 32))):
        assert lengths == [2.0, 2.0]
    with opened(write_video(tmp_path / "clip.h264", pattern(4, 32, 32))):
        assert lengths[2:] == [0, 0]


def test_a_video_is_refused_by_what_must_be_decoded(tmp_path):
    path = write_video(tmp_path / "long-gop.mp4", pattern(60), options={"g": "250"})
    allowed = DecodeLimits(decoded_pixels=50 * 96 * 128)
    with pytest.raises(VideoError, match=r"needs 53 frames of 128x96 decoded"):
        sample_frames_limited(path, 8, lambda image: pytest.fail("a frame was decoded"), allowed)
    path = write_video(tmp_path / "short-gop.mp4", pattern(60), options={"g": "6"})
    assert sample_frames_limited(path, 4, lambda image: image, allowed).indices == (0, 15, 30, 45)
