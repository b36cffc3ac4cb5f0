"""Pictures and picture animations, which Pillow reads: `opened(path)` gives one or more upright RGB frames and their times.

JPEG, PNG, WebP, TIFF, BMP, PNM, AVIF, and HEIC with pillow-heif: tile grids are assembled, and the orientation given by EXIF or the
container is applied (`ImageOps.exif_transpose`). Animated PNG and WebP are clips. If a TIFF or a phone's JPEG holds several pictures,
the first is read. FFmpeg reads GIF, image sequences in HEIF containers, and streams of JPEG pictures.

The size is checked before any pixel is decoded. Pillow rejects metadata that inflates to more than a mebibyte.

h, w rows and columns of a frame.
"""

from __future__ import annotations

import io
import mmap
import os
import re
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from fractions import Fraction
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from runtime.core.errors import UserError, VideoError, import_package
from runtime.media import limits
from runtime.media.timeline import Timeline

if TYPE_CHECKING:
    from PIL.Image import Image

_FORMATS = ("JPEG", "PNG", "WEBP", "TIFF", "BMP", "PPM", "AVIF")
_HEIF_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"mif1", b"avif")  # pictures; hevc, hevx, msf1 and avis are sequences
_ANIMATED = ("PNG", "WEBP")
_BITS_PER_SAMPLE, _PHOTOMETRIC, _WHITE_IS_ZERO = 258, 262, 0  # TIFF tags, and a value of the second
_BLOCK = 1 << 24  # bytes searched for a second JPEG picture


def is_still(path: Path) -> bool:
    """Whether the file starts like a picture that Pillow reads."""
    with open(path, "rb") as file:
        start = file.read(16)
    if start.startswith(b"\xff\xd8\xff"):
        return not _is_jpeg_stream(path)
    if start[4:8] == b"ftyp":
        return start[8:12] in _HEIF_BRANDS
    if start[:4] == b"RIFF":
        return start[8:12] == b"WEBP"
    return re.match(rb"\x89PNG\r\n\x1a\n|II[*+]\0|MM\0[*+]|BM|P[1-6]\s", start) is not None


def _is_jpeg_stream(path: Path) -> bool:
    """Whether JPEG pictures follow one another, as in a .mjpeg file; a phone's second picture is announced by an MPF segment."""
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        end = content.find(b"\xff\xd9\xff\xd8\xff", 0, _BLOCK)
        return end >= 0 and content.find(b"MPF\0", 0, end) < 0


class _Bounded(io.BufferedReader):
    """A file whose reads never allocate memory beyond its end, whatever length a damaged header declares."""

    def __init__(self, raw: io.FileIO):
        super().__init__(raw)
        self._size = os.fstat(raw.fileno()).st_size

    def read(self, size: int | None = -1) -> bytes:
        return super().read(size if size is None or size < 0 else min(size, max(self._size - self.tell(), 0)))


@contextmanager
def opened(path: Path) -> Iterator[Still]:
    """The picture, within the limits. VideoError for one that Pillow can't read."""
    pillow = import_package("PIL.Image", "reading a picture", "runtime", "pillow")
    # A file object without a name is read, not mapped: Pillow 13 mixes up rows and columns of a mapped TIFF that EXIF rotates.
    with _Bounded(open(path, "rb", buffering=0)) as file:
        with _errors(path):
            try:
                image = pillow.open(file, formats=_FORMATS)
            except pillow.UnidentifiedImageError:
                image = _heif(path)
        with image:
            yield Still(path, image)


def _heif(path: Path) -> Image:
    """Open with pillow-heif, which decodes lazily like Pillow; VideoError if it is not installed."""
    with open(path, "rb") as file:
        if file.read(12)[4:8] != b"ftyp":
            raise VideoError(f"{path} is not a picture, or not all of one; expected a file such as jpg, png or webp")
    return import_package("pillow_heif", "reading an HEIC picture", "runtime", "pillow-heif").HeifImageFile(path)


class Still:
    """A picture or an animation.

    size    (h, w) as displayed, of the last frame read
    """

    def __init__(self, path: Path, image: Any):
        self.path, self._image = path, image
        self.size = (image.height, image.width)
        limits.check_size(path, image.width, image.height)
        _check_grey(path, image)
        with _errors(path):
            frames = getattr(image, "n_frames", 1) if image.format in _ANIMATED else 1
        self._first = 1 if frames > 1 and image.info.get("default_image") else 0  # the fallback picture of an animated PNG
        self._count = frames - self._first
        limits.check_frames(path, self._count)
        if self._count > 1:
            limits.check_animation(path, self._count, image.width, image.height)

    def timeline(self) -> Timeline:
        """Presentation times in milliseconds; every frame of an animation must be composed to know them."""
        if self._count == 1:
            return Timeline.of([0], None, None, Fraction(1, 1000))
        shown = []
        for index in range(self._count):
            with _errors(self.path):
                self._seek(index)
                self._image.load()  # WebP gives a frame's duration only once it is composed
                shown.append(max(1, round(self._image.info.get("duration", 0))))
            limits.check_seconds(self.path, sum(shown) / 1000)
        return Timeline.of([0, *accumulate(shown[:-1])], shown[-1], None, Fraction(1, 1000))

    def rgb(self, index: int) -> np.ndarray:
        """Frame `index`: RGB uint8 [h, w, 3], upright. Alpha is dropped."""
        from PIL import ImageOps

        with _errors(self.path):
            self._seek(index)
            self._image.load()
            image = ImageOps.exif_transpose(self._image)
            pixels = _rgb(image, _tiff_tags(self._image))
        self.size = pixels.shape[:2]
        return pixels

    def _seek(self, index: int) -> None:
        if self._first or self._count > 1:
            self._image.seek(self._first + index)


def _tiff_tags(image: Any) -> Mapping[int, Any]:
    return image.tag_v2 if image.format == "TIFF" else {}


def _check_grey(path: Path, image: Any) -> None:
    """VideoError for 32-bit grey levels: which value is white is up to the program that wrote them."""
    if image.mode == "F" or (image.mode == "I" and _tiff_tags(image).get(_BITS_PER_SAMPLE) == (32,)):
        raise VideoError(f"{path} has 32-bit grey levels, and nothing says which of them is white; save it with 8 or 16 bits")


def _rgb(image: Image, tiff_tags: Mapping[int, Any]) -> np.ndarray:
    """RGB uint8 [h, w, 3]; grey levels of more than 8 bits are reduced to their upper 8."""
    if not image.mode.startswith("I"):
        return np.array(image.convert("RGB"))
    # Pillow returns the stored values in any byte order and width: 16 bits, or a TIFF's 12, possibly with 0 as white.
    (bits,) = tiff_tags.get(_BITS_PER_SAMPLE, (16,))
    levels = (np.asarray(image).astype(np.int64) >> bits - 8).clip(0, 255).astype(np.uint8)
    if tiff_tags.get(_PHOTOMETRIC) == _WHITE_IS_ZERO:
        levels = 255 - levels
    return np.repeat(levels[:, :, None], 3, axis=2)


@contextmanager
def _errors(path: Path) -> Iterator[None]:
    """Turn whatever Pillow raises for a damaged or hostile picture into a VideoError."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about odd metadata, and about sizes, which are checked above
            yield
    except (UserError, MemoryError):
        raise
    except Exception as error:
        reason = " ".join(str(error).split()).replace(str(path), "it")
        raise VideoError(f"{path} is damaged or not a picture ({reason or type(error).__name__}); copy it again") from None
