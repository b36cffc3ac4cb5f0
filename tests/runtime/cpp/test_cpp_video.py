"""C++ decodes, samples and resizes as Python does, and meets damaged files with one clear line."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import PIL
import pytest
from cpp_build import probe
from PIL import Image
from video_files import pattern, write_audio, write_video

from runtime.errors import VideoError
from runtime.video import sample_frames

TIMES = [0, 10, 30, 40, 50, 100, 200, 1000, 1010, 1020, 1030, 1040, 1050, 1500, 1600, 1700, 2000, 2100, 2200, 3000]
HOLD = {"g": "10"}

FILES = {
    "constant.mp4": {},
    "keyframes.mp4": {"options": HOLD, "count": 60},
    "narrow.mp4": {"height": 98, "width": 130},
    "wide.mp4": {"height": 242, "width": 322},
    "large.mp4": {"height": 720, "width": 1280, "count": 6},
    "odd444.mp4": {"height": 97, "width": 131, "pixel_format": "yuv444p"},
    "yuv422.mp4": {"pixel_format": "yuv422p"},
    "full-range.mp4": {"pixel_format": "yuvj420p"},
    "grey.mp4": {"pixel_format": "gray"},
    "bt709.mp4": {"options": {"colorprim": "bt709", "colormatrix": "bt709", "transfer": "bt709"}},
    "turned90.mp4": {"rotation": 90, "width": 160},
    "turned180.mp4": {"rotation": 180, "width": 160},
    "turned270.mp4": {"rotation": 270, "width": 160},
    "variable.mp4": {"times": TIMES},
    "variable.mkv": {"times": TIMES},
    "edited.mp4": {"cut": 5, "count": 30},
    "transport.ts": {"options": HOLD, "count": 60},
    "vp9.webm": {"codec": "libvpx-vp9"},
    "hevc.mp4": {"codec": "libx265", "options": {"x265-params": "log-level=none"}},
    "mpeg4.avi": {"codec": "mpeg4"},
    "motion.avi": {"codec": "mjpeg", "pixel_format": "yuvj420p"},
    "flash.flv": {"codec": "flv"},
    "raw.nut": {"codec": "rawvideo", "pixel_format": "rgb24"},
    "one.mp4": {"count": 1},
}


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("videos")
    made = {}
    for name, options in FILES.items():
        settings = dict(options)
        images = pattern(settings.pop("count", 20), settings.pop("height", 96), settings.pop("width", 128))
        made[name] = write_video(folder / name, images, **settings)
    return made


@pytest.mark.parametrize("frames", [4, 16])
def test_frames_and_times_are_those_of_python(cpp: Path, videos: dict[str, Path], frames: int):
    answers = probe(cpp, "frames", [[str(path), frames, True] for path in videos.values()])
    for (name, path), answer in zip(videos.items(), answers, strict=True):
        clip = sample_frames(path, frames, lambda image: image)
        assert "error" not in answer, (name, answer)
        assert answer["indices"] == list(clip.indices), name
        assert answer["timestamps"] == list(clip.timestamps), name
        assert (answer["duration"], answer["total"], tuple(answer["size"])) == (clip.duration, clip.total, clip.size), name
        pixels = np.frombuffer(bytes.fromhex("".join(answer["frames"])), np.uint8).reshape(clip.frames.shape)
        assert (pixels == clip.frames).all(), (name, np.abs(pixels.astype(int) - clip.frames).max())


@pytest.mark.parametrize("options", [{"codec": "libvpx-vp9", "height": 97}, {"pixel_format": "yuv420p10le"}])
def test_formats_that_releases_of_ffmpeg_convert_differently_are_close(cpp: Path, tmp_path: Path, options: dict):
    settings = dict(options)
    path = write_video(tmp_path / "clip.mkv", pattern(6, settings.pop("height", 96)), **settings)
    (answer,) = probe(cpp, "frames", [[str(path), 4, True]])
    clip = sample_frames(path, 4, lambda image: image)
    pixels = np.frombuffer(bytes.fromhex("".join(answer["frames"])), np.uint8).reshape(clip.frames.shape)
    assert np.abs(pixels.astype(int) - clip.frames).max() <= 12


def test_faults_read_like_those_of_python(cpp: Path, videos: dict[str, Path], tmp_path: Path):
    cut = tmp_path / "cut.mp4"
    cut.write_bytes(videos["keyframes.mp4"].read_bytes()[:-2000])
    audio = write_audio(tmp_path / "audio.mp4")
    playlist = tmp_path / "list.m3u8"
    playlist.write_text(f"#EXTM3U\n#EXTINF:1,\n{videos['constant.mp4']}\n")
    asked = [(cut, 4), (audio, 4), (playlist, 4), (videos["constant.mp4"], 0), (videos["constant.mp4"], 4097), (tmp_path, 1)]
    answers = probe(cpp, "frames", [[str(path), frames, False] for path, frames in asked])
    for (path, frames), answer in zip(asked, answers, strict=True):
        with pytest.raises(VideoError) as expected:
            sample_frames(path, frames, lambda image: image)
        assert answer == {"error": str(expected.value)}


def mutated_files(folder: Path, sources: list[Path], count: int) -> list[Path]:
    """Seeded damage: bytes changed, stretches zeroed, doubled, moved or dropped, boxes renamed, ends cut off."""
    rng = random.Random(20)
    made = []
    for index in range(count):
        source = sources[index % len(sources)]
        data = bytearray(source.read_bytes())
        for _ in range(rng.choice((1, 1, 2, 4, 16))):
            at, length = rng.randrange(len(data)), rng.choice((1, 1, 4, 4, 32, 256))
            kind = rng.randrange(6)
            if kind == 0:
                data[at : at + length] = rng.randbytes(len(data[at : at + length]))
            elif kind == 1:
                data[at : at + length] = bytes(len(data[at : at + length]))
            elif kind == 2:
                data[at:at] = data[at : at + length]
            elif kind == 3 and len(data) > 200:
                del data[at : at + length]
            elif kind == 4:
                name = rng.choice(
                    (b"stts", b"stsz", b"stco", b"ctts", b"stss", b"avcC", b"moov", b"trak", b"mdat", b"stsc", b"elst")
                )
                found = data.find(name)
                if found >= 0:  # the numbers of a table, where a demuxer believes what it reads
                    place = found + 4 + rng.randrange(24)
                    data[place : place + 4] = rng.choice((b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff", bytes(4), rng.randbytes(4)))
            elif kind == 5 and rng.random() < 0.3:
                del data[max(100, at) :]
        path = folder / f"{index}{source.suffix}"
        path.write_bytes(data)
        made.append(path)
    return made


def check_mutated(cpp: Path, folder: Path, videos: dict[str, Path], count: int) -> None:
    sources = [videos[name] for name in ("constant.mp4", "keyframes.mp4", "variable.mp4", "edited.mp4", "hevc.mp4", "turned90.mp4")]
    files = mutated_files(folder, sources, count)
    answers = probe(cpp, "frames", [[str(path), 8, False] for path in files])
    refused = [answer["error"] for answer in answers if "error" in answer]
    assert all("\n" not in error and str(folder) in error for error in refused)
    assert count * 0.2 < len(refused) < count * 0.95  # damage was found, and not all of it was fatal
    assert all(len(answer["indices"]) == 8 for answer in answers if "error" not in answer)


def test_mutated_files_give_frames_or_one_clear_line(cpp: Path, videos: dict[str, Path], tmp_path: Path):
    check_mutated(cpp, tmp_path, videos, 600)


def _noise(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    levels = rng.integers(0, 256, (height, width, 3), np.uint8)
    return levels if rng.random() < 0.5 else (levels // 128 * 255).astype(np.uint8)


@pytest.mark.skipif(int(PIL.__version__.split(".")[0]) < 13, reason="Pillow 12 resizes some shapes in another order than Pillow 13")
@pytest.mark.parametrize("how", range(6))
def test_resizing_has_the_bits_of_pillow(cpp: Path, how: int):
    rng = np.random.default_rng(how)
    sizes = [(1, 1, 9, 9), (5, 7, 5, 7), (5, 7, 5, 9), (5, 7, 11, 7), (97, 131, 27, 31), *rng.integers(1, 90, (200, 4)).tolist()]
    if how == 3:  # frames of cameras, lying and standing
        cameras = [(378, 378), (480, 640), (720, 1280), (1280, 720), (640, 480), (1056, 720), (1057, 720)]
        sizes += [(*camera, side, side) for camera in cameras for side in (126, 384)]
    images = [_noise(rng, height, width) for height, width, _, _ in sizes]
    lines = [[*size, how, image.tobytes().hex()] for size, image in zip(sizes, images, strict=True)]
    for (*_, rows, columns), image, answer in zip(sizes, images, probe(cpp, "resize", lines), strict=True):
        expected = np.asarray(Image.fromarray(image).resize((columns, rows), resample=how))
        got = np.frombuffer(bytes.fromhex(answer), np.uint8).reshape(rows, columns, 3)
        assert (got == expected).all(), (image.shape, rows, columns)
