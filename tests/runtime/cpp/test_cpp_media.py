"""C++ shows pictures and clips of every kind the way round that they are meant, with Python's choice of stream, frames and words."""

from __future__ import annotations

import shutil
import struct
import subprocess
import zlib
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from cpp_build import probe
from heif_files import write_grid
from PIL import Image
from rtsp_camera import camera
from video_files import pattern, write_video, write_without_its_last_slice

from runtime.core.errors import VideoError
from runtime.media.clip import sample_frames
from runtime.media.stream import Stream

# What EXIF's orientations make of a stored picture, and the a, b, c, d of the display matrix that does the same.
ORIENTATIONS: dict[int, tuple[Any, tuple[int, int, int, int]]] = {
    1: (lambda image: image, (1, 0, 0, 1)),
    2: (np.fliplr, (-1, 0, 0, 1)),
    3: (lambda image: np.rot90(image, 2), (-1, 0, 0, -1)),
    4: (np.flipud, (1, 0, 0, -1)),
    5: (lambda image: image.swapaxes(0, 1), (0, 1, 1, 0)),
    6: (lambda image: np.rot90(image, -1), (0, 1, -1, 0)),
    7: (lambda image: np.rot90(image, 2).swapaxes(0, 1), (0, -1, -1, 0)),
    8: (lambda image: np.rot90(image, 1), (0, -1, 1, 0)),
}


def read(cpp: Path, paths: list[Path], frames: int = 4) -> list[dict[str, Any]]:
    """What C++ makes of files: Python's Clip as JSON, `frames` as one array [T, h, w, 3]."""
    answers = probe(cpp, "frames", [[str(path), frames, True] for path in paths])
    for answer in answers:
        if "error" not in answer:
            pixels = np.frombuffer(bytes.fromhex("".join(answer["frames"])), np.uint8)
            answer["frames"] = pixels.reshape(frames, *answer["size"], 3)
    return answers


def assert_same(answer: dict[str, Any], path: Path, frames: int = 4, levels: int = 0) -> None:
    """The frames, times and notes of Python, or its error; levels: by which pixels may differ."""
    try:
        clip = sample_frames(path, frames, lambda image: image)
    except VideoError as error:
        assert answer == {"error": str(error)}
        return
    assert "error" not in answer, answer
    assert (answer["indices"], answer["timestamps"]) == (list(clip.indices), list(clip.timestamps)), path.name
    assert (answer["total"], answer["duration"], answer["notes"]) == (clip.total, clip.duration, clip.notes), path.name
    assert answer["frames"].shape == clip.frames.shape, path.name
    assert np.abs(answer["frames"].astype(int) - clip.frames).max() <= levels, path.name


@pytest.fixture(scope="module")
def quadrants() -> np.ndarray:
    """Four colours: RGB uint8 [96, 128, 3]."""
    image = np.zeros((96, 128, 3), np.uint8)
    image[:48, :64, 0] = image[:48, 64:, 1] = image[48:, :64, 2] = image[48:, 64:, 0] = image[48:, 64:, 1] = 220
    return image


def assert_shows(answer: dict[str, Any], expected: np.ndarray) -> None:
    """Every pixel but those beside an edge, where compression blurs colours."""
    assert answer.get("size") == list(expected.shape[:2]), answer.get("error")
    off = np.abs(answer["frames"][0].astype(int) - expected).max(axis=2) > 40
    assert off.mean() < 0.1, f"{off.mean():.0%} of the pixels have another colour"


def test_display_matrices_turn_and_mirror(cpp: Path, quadrants: np.ndarray, tmp_path: Path):
    paths = [
        write_video(tmp_path / f"{number}.mp4", [quadrants] * 3, matrix=matrix) for number, (_, matrix) in ORIENTATIONS.items()
    ]
    for answer, path, (show, _) in zip(read(cpp, paths), paths, ORIENTATIONS.values(), strict=True):
        assert_shows(answer, show(quadrants))
        assert_same(answer, path)


def test_orientation_in_exif_turns_and_mirrors(cpp: Path, quadrants: np.ndarray, tmp_path: Path):
    made = []
    for number, (show, _) in ORIENTATIONS.items():
        for kind in ("jpeg", "png", "webp", "tiff", "avif"):
            exif = Image.Exif()
            exif[0x112] = number
            path = tmp_path / f"{number}.{kind}"
            Image.fromarray(quadrants).save(path, kind, exif=exif)
            made.append((path, show(quadrants)))
    for answer, (path, expected) in zip(read(cpp, [path for path, _ in made]), made, strict=True):
        assert_shows(answer, expected)
        assert_same(answer, path, levels=0 if path.suffix in (".png", ".tiff") else 3)


def test_orientation_is_found_wherever_pillow_finds_it(cpp: Path, quadrants: np.ndarray, tmp_path: Path):
    packet = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'
    big_endian = b"Exif\0\0MM\0*" + struct.pack(">IH", 8, 2) + struct.pack(">HHIHH", 0x0100, 3, 1, 9, 0)
    big_endian += struct.pack(">HHIHHI", 0x0112, 3, 1, 6, 0, 0)
    image = Image.fromarray(quadrants)
    image.save(tmp_path / "xmp.jpg", xmp=packet)
    image.save(tmp_path / "xmp.webp", xmp=packet, lossless=True)
    image.save(tmp_path / "big.jpg", exif=big_endian)
    image.save(tmp_path / "late.png")
    content = (tmp_path / "late.png").read_bytes()  # EXIF after the pixels
    data = b"eXIf" + big_endian[6:]
    chunk = struct.pack(">I", len(data) - 4) + data + struct.pack(">I", zlib.crc32(data))
    (tmp_path / "late.png").write_bytes(content[:-12] + chunk + content[-12:])
    paths = sorted(tmp_path.iterdir())
    for answer, path in zip(read(cpp, paths), paths, strict=True):
        assert_shows(answer, np.rot90(quadrants, -1))
        assert_same(answer, path, levels=3)


def test_interlaced_pngs_have_pillows_pixels(cpp: Path, tmp_path: Path):
    for pixel_format in ("rgb24", "rgba", "gray", "pal8", "rgb48be", "gray16be"):
        with av.open(str(tmp_path / f"{pixel_format}.png"), "w", format="image2") as output:
            stream = output.add_stream("png", rate=1, options={"flags": "+ildct"})
            stream.height, stream.width, stream.pix_fmt = 61, 83, pixel_format
            if pixel_format == "pal8":
                frame = av.VideoFrame(83, 61, "pal8")
                frame.planes[0].update(np.arange(frame.planes[0].buffer_size).astype(np.uint8).tobytes())
                frame.planes[1].update((np.arange(256, dtype="<u4") * 0x010305 | 0xFF000000).astype("<u4").tobytes())
            else:
                frame = av.VideoFrame.from_ndarray(pattern(1, 61, 83)[0], format="rgb24").reformat(format=pixel_format)
            output.mux(stream.encode(frame))
            output.mux(stream.encode())
    paths = sorted(tmp_path.iterdir())
    for answer, path in zip(read(cpp, paths), paths, strict=True):
        assert Image.open(path).info["interlace"] == 1
        assert_same(answer, path, levels=1 if "16" in path.name or "48" in path.name else 0)


def test_pictures_have_pillows_pixels(cpp: Path, tmp_path: Path):
    picture = Image.fromarray(pattern(1, 97, 131)[0])
    for kind in ("png", "bmp", "ppm", "tiff", "gif"):
        picture.save(tmp_path / f"exact.{kind}")
    for mode in ("P", "L", "LA", "RGBA", "1"):
        picture.convert(mode).save(tmp_path / f"exact-{mode}.png")
    picture.convert("L").save(tmp_path / "exact.pgm")
    picture.convert("1").save(tmp_path / "exact.pbm")
    picture.save(tmp_path / "exact-lossless.webp", lossless=True)
    picture.save(tmp_path / "exact-lzw.tiff", compression="tiff_lzw")
    moves = [picture.rotate(180), picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)]
    picture.save(tmp_path / "exact-animated.png", save_all=True, append_images=moves, duration=[100, 330, 50])
    picture.save(tmp_path / "close-444.jpg", quality=95, subsampling=0)
    picture.convert("L").save(tmp_path / "close-grey.jpg")
    smooth = Image.fromarray(pattern(1, 96, 128)[0]).resize((512, 384), Image.Resampling.BICUBIC)
    for name in ("close-420.jpg", "close-420.webp", "close-420.avif"):
        smooth.save(tmp_path / name, quality=95)
    smooth.save(tmp_path / "close-two.jpg", "MPO", save_all=True, append_images=[smooth.rotate(180)], quality=95)
    paths = sorted(tmp_path.iterdir())
    for answer, path in zip(read(cpp, paths), paths, strict=True):
        assert_same(answer, path, levels=0 if path.name.startswith("exact") else 8)


def test_pictures_that_ffmpeg_reads_in_part_or_wrong_are_refused_in_one_line(cpp: Path, quadrants: np.ndarray, tmp_path: Path):
    write_grid(tmp_path / "grid.avif", [quadrants] * 4)
    heic = (tmp_path / "grid.avif").read_bytes().replace(b"grid", b"hvc1").replace(b"pitm\0\0\0\0\0\5", b"pitm\0\0\0\0\0\1")
    (tmp_path / "single.heic").write_bytes(heic.replace(b"av01", b"hvc1"))
    second = (tmp_path / "grid.avif").read_bytes().replace(b"pitm\0\0\0\0\0\5", b"pitm\0\0\0\0\0\2")
    (tmp_path / "second.avif").write_bytes(second)
    image = Image.fromarray(quadrants)
    image.save(tmp_path / "jpeg.tiff", compression="jpeg")
    image.save(tmp_path / "big.tiff", big_tiff=True)
    image.save(tmp_path / "animated.webp", save_all=True, append_images=[image.rotate(180)])
    said = {
        "grid.avif": "a picture put together from others (grid), which the C++ runtime does not do",
        "single.heic": "a HEIC picture, which this FFmpeg does not read",
        "second.avif": "a file whose main picture is not its first, which the C++ runtime does not read",
        "jpeg.tiff": "a TIFF with a JPEG inside, which FFmpeg reads in wrong colours",
        "big.tiff": "a BigTIFF, which FFmpeg does not read",
        "animated.webp": "an animated WebP, which this FFmpeg does not read",
    }
    for answer, (name, reason) in zip(read(cpp, [tmp_path / name for name in said]), said.items(), strict=True):
        if "error" not in answer and "this FFmpeg" in reason:
            continue  # a newer FFmpeg than that of Debian 12
        expected = f"{tmp_path / name} is {reason}; use `python -m runtime`, which does, or save it as a JPEG or PNG"
        assert answer == {"error": expected}


def test_gifs_that_end_inside_a_frame_and_transparency_of_sequences_are_as_in_python(cpp: Path, tmp_path: Path):
    images = [Image.fromarray(image) for image in pattern(6)]
    images[0].save(tmp_path / "whole.gif", save_all=True, append_images=images[1:], duration=100)
    content = (tmp_path / "whole.gif").read_bytes()
    for part in (1, 4, 7, 11):
        (tmp_path / f"{part}.gif").write_bytes(content[: len(content) * part // 12])
    (tmp_path / "open.gif").write_bytes(content[:-1])
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 255, (96, 128), np.uint8))
    flat = [Image.merge("RGBA", [*Image.new("RGB", (128, 96), (level,) * 3).split(), noise]) for level in (20, 120, 220)]
    flat[0].save(tmp_path / "sequence.avif", save_all=True, append_images=flat[1:], duration=100)
    paths = sorted(tmp_path.iterdir())
    for answer, path in zip(read(cpp, paths, 6), paths, strict=True):
        assert_same(answer, path, 6, levels=2 if path.suffix == ".avif" else 0)


def test_damaged_pictures_are_refused_in_one_line(cpp: Path, tmp_path: Path):
    image = Image.fromarray(pattern(1)[0])
    for kind in ("jpeg", "png", "webp", "tiff", "avif"):
        image.save(tmp_path / f"cut.{kind}")
        content = (tmp_path / f"cut.{kind}").read_bytes()
        (tmp_path / f"cut.{kind}").write_bytes(content[: len(content) // 2])
    for answer in read(cpp, sorted(tmp_path.iterdir())):
        assert "is damaged or not a picture (" in answer["error"] and answer["error"].endswith("; copy it again")


def test_the_first_bytes_of_a_picture_are_refused_in_one_line(cpp: Path, tmp_path: Path):
    image = Image.fromarray(pattern(1)[0])
    for kind in ("jpeg", "png", "webp", "tiff", "avif", "gif", "bmp", "ppm"):
        image.save(tmp_path / f"whole.{kind}")
        content = (tmp_path / f"whole.{kind}").read_bytes()
        (tmp_path / f"whole.{kind}").unlink()
        for length in range(17):
            (tmp_path / f"{length}.{kind}").write_bytes(content[:length])
    for answer in read(cpp, sorted(tmp_path.iterdir())):
        assert answer["error"] and "\n" not in answer["error"]


def test_damage_in_whatever_codec_does_not_end_the_process(cpp: Path, tmp_path: Path):
    """FFmpeg 5.1 aborts where a decoder that works in threads fails after it promised a frame: here, at what follows the picture."""
    Image.fromarray(pattern(1)[0]).save(tmp_path / "0.webp")
    with (tmp_path / "0.webp").open("ab") as file:
        file.write(b"\xff" * 12)
    content = write_video(tmp_path / "clip.avi", pattern(12, 64, 64), "mpeg4").read_bytes()
    start = content.index(b"movi")
    for part in range(1, 8):
        at = start + part * (len(content) - start) // 10
        (tmp_path / f"{part}.avi").write_bytes(
            content[:at] + bytes(byte ^ 0x55 for byte in content[at : at + 8]) + content[at + 8 :]
        )
    webp, *clips = read(cpp, [tmp_path / "0.webp", *(tmp_path / f"{part}.avi" for part in range(1, 8))])
    assert webp["total"] == 1 if "error" not in webp else "is damaged or not a picture" in webp["error"]
    assert all("is damaged" in clip["error"] if "error" in clip else clip["total"] for clip in clips)


def test_a_video_with_frames_larger_than_any_is_refused_before_one_is_made(cpp: Path, tmp_path: Path):
    """VP8's keyframes say their size in 14 bits behind a mark, AVI's stream headers in 32."""
    for path, codec, mark, size, said in (
        (tmp_path / "a.mkv", "libvpx", b"\x9d\x01\x2a", "<HH", "is damaged at its first frame (Invalid argument, or frames of more than 67108864 pixels); expected"),
        (tmp_path / "a.avi", "rawvideo", b"strf\x28\0\0\0\x28\0\0\0", "<II", "has frames of 16000x16000; expected at most 67108864 pixels a frame"),
    ):  # fmt: skip
        content = bytearray(write_video(path, pattern(2, 64, 64), codec).read_bytes())
        struct.pack_into(size, content, content.index(mark) + len(mark), 16_000, 16_000)
        path.write_bytes(content)
        (answer,) = probe(cpp, "frames", [[str(path), 1, False]])
        assert answer["error"].startswith(f"{path} {said}")


def test_what_a_demuxer_cant_read_is_called_damage_in_pythons_words(cpp: Path, tmp_path: Path):
    content = write_video(tmp_path / "clip.ts", pattern(6, 64, 64), "mpeg2video").read_bytes()
    paths = [tmp_path / name for name in ("first.ts", "later.ts")]
    for path, end in zip(paths, (3 * 188, 16 * 188 + 60), strict=True):
        path.write_bytes(content[:end] + bytes(188 if end % 188 == 0 else 500))
    for answer, path in zip(read(cpp, paths), paths, strict=True):
        assert "is damaged" in answer["error"]
        assert_same(answer, path)


RAW = [
    "yuv420p",
    "yuv422p",
    "yuv444p",
    "yuv411p",
    "yuv410p",
    "yuv440p",
    "nv12",
    "nv21",
    "yuyv422",
    "uyvy422",
    "yuv420p10le",
    "yuv422p10le",
    "yuv444p10le",
    "yuv420p12le",
    "gray",
    "gray10le",
    "rgb24",
    "bgr0",
    "gbrp",
    "rgba",
    "yuva420p",
    "rgb555le",
    "rgb48le",
]


def write_raw(folder: Path) -> list[Path]:
    paths = []
    for height, width in ((96, 128), (97, 131)):
        for layout in RAW:
            paths.append(write_video(folder / f"{layout}-{height}.nut", pattern(2, height, width), "rawvideo", layout))
    return paths


def write_interlaced(folder: Path) -> list[Path]:
    """Codecs that store two fields, of three heights."""
    fields, x264 = {"flags": "+ildct+ilme"}, {"x264-params": "tff=1"}
    return [
        write_video(folder / "h264.ts", pattern(8, 96), options=x264),
        write_video(folder / "h264-10.ts", pattern(8, 96), pixel_format="yuv420p10le", options=x264),
        write_video(folder / "mpeg2.mpg", pattern(8, 98), "mpeg2video", options=fields),
        write_video(folder / "mpeg2.ts", pattern(8, 100), "mpeg2video", options=fields),
        write_video(folder / "mpeg4.avi", pattern(8, 98), "mpeg4", options=fields),
    ]


def test_every_pixel_format_has_pythons_bits(cpp: Path, tmp_path: Path):
    paths = [*write_raw(tmp_path), *write_interlaced(tmp_path)]
    settings: list[dict[str, Any]] = [
        {"codec": "libvpx-vp9"},
        {"pixel_format": "yuv420p10le"},
        {"codec": "libx265", "pixel_format": "yuv420p10le", "options": {"x265-params": "log-level=none"}},
        {"options": {"x264-params": "chromaloc=2"}, "pixel_format": "yuv420p10le"},
        {"options": {"x264-params": "colormatrix=bt709"}, "pixel_format": "yuv422p10le"},
        {"codec": "prores_ks", "pixel_format": "yuv422p10le"},
    ]
    for index, options in enumerate(settings):
        height = 97 if options.get("codec") == "libvpx-vp9" else 98
        paths.append(write_video(tmp_path / f"{index}.mkv", pattern(2, height, 130), **options))
    for answer, path in zip(read(cpp, paths, 2), paths, strict=True):
        assert_same(answer, path, 2)


@pytest.mark.slow
def test_pixels_are_those_of_the_ffmpeg_command_line(cpp: Path, tmp_path: Path):
    if not shutil.which("ffmpeg"):
        pytest.skip("no ffmpeg command line")
    raw, interlaced = (
        write_raw(tmp_path),
        write_interlaced(tmp_path)[::3],
    )  # with fields of even height, where FFmpeg takes the nearest chroma
    for answer, path in zip(read(cpp, [*raw, *interlaced], 2), [*raw, *interlaced], strict=True):
        fields = ["-vf", "scale=interl=1"] if path in interlaced else []
        command = ["ffmpeg", "-v", "error", "-i", path, *fields, "-f", "rawvideo", "-pix_fmt", "rgb24", "-"]
        done = subprocess.run(command, capture_output=True, check=True, stdin=subprocess.DEVNULL)
        shown = np.frombuffer(done.stdout, np.uint8).reshape(-1, *answer["size"], 3)
        assert (shown[answer["indices"]] == answer["frames"]).all(), path.name


def write_two(path: Path, first: tuple[str, int], second: tuple[str, int]) -> Path:
    """(codec, disposition) of two video streams in one file: a picture of 24 rows, then 12 frames of 96."""
    with av.open(str(path), "w") as output:
        streams = []
        for (codec, disposition), images in ((first, pattern(1, 24, 32)), (second, pattern(12))):
            stream = output.add_stream(codec, rate=12)
            stream.height, stream.width = images[0].shape[:2]
            stream.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
            stream.disposition = av.stream.Disposition(disposition)
            streams.append((stream, images))
        for stream, images in streams:
            for image in images:
                output.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
            output.mux(stream.encode())
    return path


def test_the_stream_that_is_shown_is_pythons(cpp: Path, tmp_path: Path):
    kinds = av.stream.Disposition
    preview = write_two(tmp_path / "preview.mp4", ("mjpeg", 0), ("libx264", kinds.default))
    cover = write_two(tmp_path / "cover.mp4", ("mjpeg", kinds.attached_pic), ("libx264", 0))
    paths = [preview, cover]
    for answer, path in zip(read(cpp, paths), paths, strict=True):
        assert answer["size"] == [96, 128] and answer["total"] == 12
        assert_same(answer, path)


def test_files_without_a_video_to_decode_are_called_what_they_are(cpp: Path, tmp_path: Path):
    with av.open(str(tmp_path / "music.m4a"), "w", format="mp4") as output:
        sound, picture = output.add_stream("aac", rate=16000, layout="mono"), output.add_stream("mjpeg", rate=1)
        picture.height, picture.width, picture.pix_fmt, picture.disposition = 24, 32, "yuvj420p", av.stream.Disposition.attached_pic
        samples = av.AudioFrame.from_ndarray(np.zeros((1, 16000), np.int16), format="s16", layout="mono")
        samples.sample_rate = 16000
        output.mux(picture.encode(av.VideoFrame.from_ndarray(pattern(1, 24, 32)[0], format="rgb24")))
        for packets in (picture.encode(), sound.encode(samples), sound.encode()):
            output.mux(packets)
    keys = {"encryption_scheme": "cenc-aes-ctr", "encryption_key": "01" * 16, "encryption_kid": "02" * 16}
    write_video(tmp_path / "secret.mp4", pattern(8), container_options=keys)
    (tmp_path / "drawing.svg").write_text('<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"/>')
    paths = [tmp_path / "music.m4a", tmp_path / "secret.mp4", tmp_path / "drawing.svg"]
    refusals = ("has a cover picture but no video", "is encrypted", "is not a video")
    for answer, path, words in zip(read(cpp, paths), paths, refusals, strict=True):
        assert words in answer["error"]
        assert_same(answer, path)


def test_recordings_that_begin_or_end_anywhere_are_read(cpp: Path, tmp_path: Path):
    open_groups = {"g": "12", "bf": "2", "x264-params": "open-gop=1"}
    whole = write_video(tmp_path / "whole.ts", pattern(60), rate=25, options=open_groups)
    begun, ended = tmp_path / "begun.ts", tmp_path / "ended.mp4"
    packets = whole.stat().st_size // 188
    begun.write_bytes(whole.read_bytes()[packets // 3 * 188 :])
    joined = tmp_path / "joined.ts"
    joined.write_bytes(whole.read_bytes() * 2)
    slower = write_video(tmp_path / "slower.ts", pattern(20), rate=10)
    slower.write_bytes(whole.read_bytes() + slower.read_bytes())
    pieces = write_video(ended, pattern(40), options={"g": "10"}, container_options={"movflags": "frag_keyframe+empty_moov"})
    pieces.write_bytes(pieces.read_bytes()[: -pieces.stat().st_size // 6])
    listed = write_video(tmp_path / "listed.mp4", pattern(40), options={"g": "10"}, container_options={"movflags": "frag_keyframe"})
    listed.write_bytes(listed.read_bytes()[: -listed.stat().st_size // 6])  # the first ten of its frames stand in an index up front
    paths = [begun, joined, ended, slower, listed]
    answers = read(cpp, paths, 8)
    for answer, path in zip(answers, paths, strict=True):
        assert_same(answer, path, 8)
    assert 24 <= answers[0]["total"] < 60
    assert answers[1]["total"] == 120 and answers[1]["duration"] == pytest.approx(120 / 25)
    assert answers[1]["indices"] == [0, 15, 30, 45, 60, 75, 90, 105]
    assert "the file ends inside a frame" in answers[2]["notes"][0]
    assert answers[4]["total"] == answers[2]["total"] > 20 and answers[4]["notes"][0] == answers[2]["notes"][0]
    assert answers[3]["duration"] == pytest.approx(60 / 25 + 20 / 10)


def test_a_last_picture_without_one_of_its_slices_is_left_out_however_threads_run(cpp: Path, tmp_path: Path):
    path = write_without_its_last_slice(tmp_path / "clip.mkv")
    answers = probe(cpp, "frames", [[str(path), 6, False]] * 20)
    assert {(answer["total"], *answer["indices"]) for answer in answers} == {(5, 0, 0, 1, 2, 3, 4)}


def test_open_groups_are_entered_by_seeking(cpp: Path, tmp_path: Path):
    """Frames after the seek are those of a decoding from the start."""
    path = write_video(tmp_path / "open.mp4", pattern(120), options={"g": "12", "bf": "3", "x264-params": "open-gop=1"})
    (answer,) = read(cpp, [path], 4)
    assert_same(answer, path)
    with av.open(str(path)) as container:
        every = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    assert (answer["frames"] == [every[index] for index in (0, 30, 60, 90)]).all()


def test_times_decide_as_in_python(cpp: Path, tmp_path: Path):
    gap = write_video(tmp_path / "gap.mp4", pattern(20), times=[0, *range(1_000_100, 1_002_000, 100)])
    uneven = write_video(tmp_path / "uneven.mkv", pattern(12), times=[0, 10, 20, 30, 40, 50, 60, 70, 80, 90, 150, 200])
    slides = write_slides(tmp_path / "slides.mp4")
    short = write_video(tmp_path / "short.mp4", pattern(3))
    raw = write_video(tmp_path / "raw.h264", pattern(20), rate=10)  # its headers alone tell how fast it is
    paths = [gap, uneven, slides, short, raw]
    answers = read(cpp, paths, 8)
    for answer, path in zip(answers, paths, strict=True):
        assert_same(answer, path, 8)
    assert answers[0]["indices"] == [0, 2, 5, 7, 10, 12, 15, 17] and "sampled by number" in answers[0]["notes"][0]
    assert "not shown equally long" in answers[1]["notes"][0]
    assert answers[2]["indices"] == [0, 1, 1, 1, 1, 1, 1, 1]
    assert answers[3]["notes"] == ["the clip is shorter than 8 frames: 5 are repeated"]
    assert answers[4]["duration"] == 2


def write_slides(path: Path) -> Path:
    """Two frames: one for a second, one for a minute."""
    with av.open(str(path), "w") as output:
        stream = output.add_stream("libx264", rate=1, options={"bf": "0"})
        stream.height, stream.width, stream.pix_fmt = 96, 128, "yuv420p"
        packets = [packet for image in pattern(2) for packet in stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24"))]
        packets += stream.encode()
        for packet, seconds in zip(packets, (1, 60), strict=True):
            packet.duration = int(seconds / Fraction(packet.time_base))
            output.mux(packet)
    return path


def assert_watched(cpp: Path, path: Path) -> list[float]:
    """That C++ sees the frames and times that Python sees; the times."""
    (answer,) = probe(cpp, "watch", [str(path)])
    expected = [(seconds, rgb()) for seconds, rgb in Stream(str(path))]
    assert answer["times"] == [seconds for seconds, _ in expected] and answer["lost"] == 0
    assert answer["frames"] == [image.tobytes().hex() for _, image in expected]
    return answer["times"]


def test_watching_a_file_shows_what_a_clip_shows(cpp: Path, quadrants: np.ndarray, tmp_path: Path):
    whole = write_video(tmp_path / "whole.ts", pattern(20), rate=25, options={"g": "10", "bf": "2"})
    (tmp_path / "joined.ts").write_bytes(whole.read_bytes() * 2)  # a new clock in the middle
    assert assert_watched(cpp, tmp_path / "joined.ts") == pytest.approx([i / 25 for i in range(40)])
    Image.fromarray(quadrants).save(tmp_path / "one.png")
    assert assert_watched(cpp, tmp_path / "one.png") == [0.0]
    cover = ("mjpeg", av.stream.Disposition.attached_pic)
    assert len(assert_watched(cpp, write_two(tmp_path / "cover.mp4", cover, ("libx264", 0)))) == 12
    assert len(assert_watched(cpp, write_video(tmp_path / "mirrored.mp4", [quadrants] * 3, matrix=(-1, 0, 0, 1)))) == 3
    (answer,) = probe(cpp, "watch", [str(tmp_path / "none.ts")])
    assert answer == {"error": f"no video at {tmp_path / 'none.ts'}: no such file"}


def test_what_a_camera_loses_is_counted_and_does_not_end_it(cpp: Path):
    rng = np.random.default_rng(0)
    noisy = [(image // 2 + rng.integers(0, 60, image.shape)).astype(np.uint8) for image in pattern(120)]
    with camera(noisy, rate=50, lost=70) as url:  # keyframes every 50
        (lossy,) = probe(cpp, "watch", [url])
    with camera(noisy, rate=50) as url:
        (whole,) = probe(cpp, "watch", [url])
    assert whole["lost"] == 0
    assert lossy["lost"] >= 20 and len(lossy["times"]) >= 20
    assert set(lossy["frames"]) <= set(whole["frames"])  # nothing is shown that refers to what was lost
