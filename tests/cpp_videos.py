"""Clips of many kinds for the C++ runtime, and damaged copies of them."""

from __future__ import annotations

import random
from collections.abc import Iterable
from pathlib import Path

from cpp_build import probe
from video_files import pattern, write_video

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


def write_files(folder: Path, names: Iterable[str] = FILES) -> dict[str, Path]:
    """{name: the clip}, of all kinds or of some."""
    made = {}
    for name in names:
        settings = dict(FILES[name])
        images = pattern(settings.pop("count", 20), settings.pop("height", 96), settings.pop("width", 128))
        made[name] = write_video(folder / name, images, **settings)
    return made


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
