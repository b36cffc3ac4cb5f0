"""C++ shows still pictures and GIFs with the pixels of Pillow and the way round that they are meant, or refuses them in one line."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path
from typing import Any

import av
import numpy as np
from cpp_clips import assert_same, assert_shows, read
from heif_files import write_grid
from PIL import Image
from video_files import pattern, write_video

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
    kinds = {
        "grid.avif": "grid",
        "single.heic": "HEIC",
        "second.avif": "not its first",
        "jpeg.tiff": "TIFF with a JPEG",
        "big.tiff": "BigTIFF",
        "animated.webp": "animated WebP",
    }
    for answer, (name, kind) in zip(read(cpp, [tmp_path / name for name in kinds]), kinds.items(), strict=True):
        if "error" not in answer and name in ("single.heic", "animated.webp"):
            continue  # a newer FFmpeg than that of Debian 12
        assert answer["kind"] == "VideoError"
        assert str(tmp_path / name) in answer["error"] and kind in answer["error"] and "python -m runtime" in answer["error"]


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
        assert answer["kind"] == "VideoError" and "damaged" in answer["error"] and "\n" not in answer["error"]


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
