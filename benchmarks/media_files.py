"""Media files of every kind that PyAV and Pillow can write: `make(folder)`, for media_against_ffmpeg.py.

A file for every video encoder and up to three of its pixel formats, in the first container that takes it; the containers with
H.264 in them; variable rates, rotations and mirroring, edit lists, several streams, cuts and joints; stills with EXIF orientations.
Every frame has four coloured quadrants, so that orientation shows, and a bar that moves, so that its number does.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

FRAMES = 24
_CONTAINERS = ("mkv", "mov", "mp4", "avi", "nut", "webm", "flv", "asf", "gif", "ogg", "mxf", "dv", "rm")
_SIZES = ((96, 128), (144, 176), (576, 720), (720, 1280))  # (h, w): some encoders know few
_HARDWARE = ("_nvenc", "_qsv", "_amf", "_v4l2m2m", "_vaapi", "_vulkan", "_mf", "_d3d12va")
_WRAPPERS = ("vnull", "wrapped_avframe", "xface", "a64multi", "a64multi5", "alias_pix")
_OPEN = {"g": "12", "bf": "2", "x264-params": "open-gop=1:b-adapt=0:scenecut=0"}


def images(count: int, height: int, width: int) -> Iterator[np.ndarray]:
    """RGB uint8 [h, w, 3]: red, lime over blue, yellow, and a white bar at the frame's number."""
    base = np.zeros((height, width, 3), np.uint8)
    base[: height // 2, : width // 2, 0] = base[: height // 2, width // 2 :, 1] = base[height // 2 :, : width // 2, 2] = 220
    base[height // 2 :, width // 2 :, :2] = 220
    for number in range(count):
        image = base.copy()
        left = number * (width - 8) // max(1, count - 1)
        image[height * 3 // 8 : height * 5 // 8, left : left + 8] = 255
        yield image


def write(
    path: Path,
    codec: str = "libx264",
    pixel_format: str = "yuv420p",
    size: tuple[int, int] = _SIZES[0],
    rate: int = 25,
    options: dict[str, str] | None = None,
    times: list[int] | None = None,
    matrix: tuple[int, int, int, int] | None = None,
    count: int = FRAMES,
) -> Path:
    """times: presentation times in milliseconds; matrix: a, b, c, d of the display matrix, each -1, 0 or 1."""
    import av

    with av.open(str(path), "w") as output:
        stream: Any = output.add_stream(codec, rate=rate, options=options or {})
        stream.height, stream.width, stream.pix_fmt = *size, pixel_format
        stream.codec_context.thread_count = 1
        if times:
            stream.codec_context.time_base = Fraction(1, 1000)
        if matrix:
            a, b, c, d = (value << 16 for value in matrix)
            stream.set_display_matrix([a, b, 0, c, d, 0, 0, 0, 1 << 30])
        for number, image in enumerate(images(count, *size)):
            frame = av.VideoFrame.from_ndarray(image, format="rgb24")
            if times:
                frame.pts, frame.time_base = times[number], Fraction(1, 1000)
            output.mux(stream.encode(frame))
        output.mux(stream.encode())
    return path


def make(folder: Path) -> list[Path]:
    folder.mkdir(parents=True, exist_ok=True)
    return [
        *_of_encoders(folder),
        *_of_containers(folder),
        *_of_timelines(folder),
        *_oriented(folder),
        *_cut(folder),
        *_stills(folder),
    ]


def _of_encoders(folder: Path) -> Iterator[Path]:
    import av
    from av.codec import Codec

    for name in sorted(av.codecs_available):
        if name in _WRAPPERS or name.endswith(_HARDWARE):
            continue
        with suppress(Exception):
            codec = Codec(name, "w")
            if codec.type == "video" and codec.name == name:
                for pixel_format in [f.name for f in codec.video_formats or []][:3] or ["yuv420p"]:
                    yield from _first_that_works(folder, name, pixel_format)


def _first_that_works(folder: Path, codec: str, pixel_format: str) -> Iterator[Path]:
    strict = {"strict": "experimental"}
    for size in _SIZES:
        for container in _CONTAINERS:
            path = folder / f"{codec}-{pixel_format}.{container}"
            try:
                yield write(path, codec, pixel_format, size, options=strict)
                return
            except Exception:  # what a pair of encoder and container does not take is not of interest
                path.unlink(missing_ok=True)


def _of_containers(folder: Path) -> Iterator[Path]:
    for container in ("mp4", "mov", "mkv", "avi", "flv", "ts", "nut", "3gp", "asf", "mxf", "h264"):
        with suppress(Exception):
            yield write(folder / f"container.{container}", options={"g": "12", "bf": "0" if container == "mxf" else "2"})
    yield write(folder / "open-gop.ts", options=_OPEN)
    yield write(folder / "open-gop.mp4", options=_OPEN)
    yield write(folder / "intra-refresh.mp4", options={"x264-params": "intra-refresh=1:keyint=12"})
    for name, flags in (("interlaced.mkv", "tff=1"), ("full-range.mkv", "fullrange=on"), ("bt709.mkv", "colormatrix=bt709")):
        yield write(folder / name, options={"x264-params": flags})


def _of_timelines(folder: Path) -> Iterator[Path]:
    slides = [0, 1000, 1500, 9000, 9500, 12000]
    for container in ("mp4", "mkv", "mov"):
        yield write(folder / f"slides.{container}", times=slides, count=len(slides), options={"bf": "0"})
        yield write(folder / f"late-start.{container}", times=[2000 + 40 * i for i in range(FRAMES)])
    yield write(folder / "one-frame.mp4", count=1)
    yield write(folder / "two-frames.mp4", count=2)


def _oriented(folder: Path) -> Iterator[Path]:
    for name, matrix in MATRICES.items():
        for container in ("mp4", "mov", "mkv"):
            yield write(folder / f"{name}.{container}", matrix=matrix)


# a, b, c, d of the display matrix, by EXIF orientation from 1 to 8
MATRICES = {
    "upright": (1, 0, 0, 1),
    "hflip": (-1, 0, 0, 1),
    "rotate-180": (-1, 0, 0, -1),
    "vflip": (1, 0, 0, -1),
    "transpose": (0, 1, 1, 0),
    "rotate-90": (0, 1, -1, 0),
    "transverse": (0, -1, -1, 0),
    "rotate-270": (0, -1, 1, 0),
}


def _cut(folder: Path) -> Iterator[Path]:
    """Transport streams that begin and end anywhere, and one joined from two."""
    content = (folder / "open-gop.ts").read_bytes()
    packets = len(content) // 188
    pieces = {
        "cut-head.ts": content[packets // 3 * 188 :],
        "cut-tail.ts": content[: packets * 2 // 3 * 188],
        "joined.ts": content + content,
    }
    for name, piece in pieces.items():
        (folder / name).write_bytes(piece)
        yield folder / name


def _stills(folder: Path) -> Iterator[Path]:
    from PIL import Image

    image = Image.fromarray(next(images(1, 96, 128)))
    for orientation in range(1, 9):
        exif = Image.Exif()
        exif[0x112] = orientation
        for kind in ("jpg", "png", "webp", "tiff", "avif"):
            with suppress(Exception):
                path = folder / f"exif{orientation}.{kind}"
                image.save(path, exif=exif)
                yield path
    for mode in ("L", "LA", "P", "RGBA", "CMYK", "1", "I;16"):
        for kind in ("png", "tiff", "bmp", "jpg", "webp", "ppm"):
            path = folder / f"mode-{mode.replace(';', '')}.{kind}"
            try:
                image.convert("L" if mode == "I;16" else mode).convert(mode).save(path)
                yield path
            except (OSError, ValueError):
                path.unlink(missing_ok=True)
    animation = [Image.fromarray(frame) for frame in images(6, 96, 128)]
    for kind in ("gif", "webp", "png"):
        path = folder / f"animation.{kind}"
        animation[0].save(path, save_all=True, append_images=animation[1:], duration=[100, 100, 400, 100, 100, 1000], lossless=True)
        yield path
