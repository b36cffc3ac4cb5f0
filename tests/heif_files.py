"""A grid of tiles in a HEIF container (ISO/IEC 23008-12, 6.6.2.3), as phones write their pictures."""

from __future__ import annotations

import io
import struct
from pathlib import Path

import numpy as np
from PIL import Image


def _box(kind: bytes, *parts: bytes) -> bytes:
    body = b"".join(parts)
    return struct.pack(">I4s", 8 + len(body), kind) + body


def _full(kind: bytes, version: int, flags: int, *parts: bytes) -> bytes:
    return _box(kind, struct.pack(">I", version << 24 | flags), *parts)


def _found(content: bytes, kind: bytes) -> bytes:
    """The first box of that kind, whole."""
    at = content.index(kind) - 4
    return content[at : at + struct.unpack(">I", content[at : at + 4])[0]]


def _tile(image: np.ndarray) -> tuple[bytes, bytes]:
    """(its av1C box, its AV1 data)."""
    file = io.BytesIO()
    Image.fromarray(image).save(file, "AVIF", quality=90, codec="auto")
    content = file.getvalue()
    return _found(content, b"av1C"), _found(content, b"mdat")[8:]


def write_grid(path: Path, tiles: list[np.ndarray], quarter_turns: int = 0) -> Path:
    """Four tiles of one size, in rows of two; quarter_turns: counter-clockwise, to show it at."""
    height, width = tiles[0].shape[:2]
    encoded = [_tile(tile) for tile in tiles]
    data = [payload for _, payload in encoded]
    data.append(struct.pack(">BBBBHH", 0, 0, 1, 1, 2 * width, 2 * height))  # two rows, two columns
    items = [
        _full(b"infe", 2, number < 5, struct.pack(">HH4s", number, 0, b"av01" if number < 5 else b"grid"), b"\0")
        for number in range(1, 6)
    ]
    colour = _box(b"colr", b"nclx", struct.pack(">HHHB", 1, 13, 6, 0x80))
    pixels = _full(b"pixi", 0, 0, bytes([3, 8, 8, 8]))
    sizes = [_full(b"ispe", 0, 0, struct.pack(">II", n * width, n * height)) for n in (1, 2)]
    properties = [*(box for box, _ in encoded), *sizes, colour, pixels, _box(b"irot", bytes([quarter_turns]))]
    uses = b"".join(struct.pack(">HB4B", number, 4, 0x80 | number, 5, 7, 8) for number in range(1, 5))
    uses += struct.pack(">HB4B", 5, 4, 6, 7, 8, 0x80 | 9)

    def meta(start: int) -> bytes:
        places, at = b"", start
        for number, payload in enumerate(data, 1):
            places += struct.pack(">HHHII", number, 0, 1, at, len(payload))
            at += len(payload)
        return _full(
            b"meta",
            0,
            0,
            _full(b"hdlr", 0, 0, b"\0\0\0\0pict" + bytes(13)),
            _full(b"pitm", 0, 0, struct.pack(">H", 5)),
            _full(b"iinf", 0, 0, struct.pack(">H", 5), *items),
            _full(b"iref", 0, 0, _box(b"dimg", struct.pack(">HH4H", 5, 4, 1, 2, 3, 4))),
            _box(b"iprp", _box(b"ipco", *properties), _full(b"ipma", 0, 0, struct.pack(">I", 5), uses)),
            _full(b"iloc", 0, 0, struct.pack(">HH", 0x4400, 5), places),
        )

    head = _box(b"ftyp", b"avif", bytes(4), b"avif", b"mif1", b"miaf")
    start = len(head) + len(meta(0)) + 8
    path.write_bytes(head + meta(start) + _box(b"mdat", *data))
    return path
