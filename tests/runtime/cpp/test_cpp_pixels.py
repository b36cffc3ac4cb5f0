"""C++ converts every pixel format, interlaced or not, to the same RGB as Python."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cpp_clips import assert_same, read
from video_files import pattern, write_video

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
