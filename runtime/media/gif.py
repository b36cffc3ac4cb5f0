"""Where a GIF was cut off: FFmpeg's demuxer returns the rest of a truncated frame as if it were complete."""

from __future__ import annotations

import mmap
from pathlib import Path

_HEADER = 13  # bytes: signature and logical screen descriptor
_EXTENSION, _FRAME = 0x21, 0x2C


def frames_before_cut(path: Path) -> int | None:
    """The number of complete frames of a file that ends inside a block; None if it ends after one."""
    frames = 0
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        try:
            at = _HEADER + _palette(content[10])
            while at < len(content) and content[at] in (_EXTENSION, _FRAME):
                is_frame = content[at] == _FRAME
                at += 11 + _palette(content[at + 9]) if is_frame else 2  # includes the byte before the pixels
                while content[at]:
                    at += content[at] + 1
                at, frames = at + 1, frames + is_frame
        except IndexError:
            return frames
    return None


def _palette(flags: int) -> int:
    """Size in bytes of the palette that a descriptor's flags announce."""
    return 3 << ((flags & 7) + 1) if flags & 0x80 else 0
