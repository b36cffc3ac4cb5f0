"""Where a GIF ends, of files that are written out by hand."""

from __future__ import annotations

from pathlib import Path

import pytest

from runtime.media.gif import frames_before_cut

EXTENSION = b"!\xf9\x04abcd\x00"  # as any other: sub-blocks, each behind its length, and an empty one


def start(flags: int = 0, palette: bytes = b"") -> bytes:
    return b"GIF89a" + bytes(4) + bytes([flags]) + bytes(2) + palette


def frame(flags: int = 0, palette: bytes = b"", data: bytes = b"\x02ab\x03cde\x00") -> bytes:
    return b"," + bytes(8) + bytes([flags]) + palette + b"\x08" + data


def found(path: Path, content: bytes) -> int | None:
    path.write_bytes(content)
    return frames_before_cut(path)


@pytest.fixture
def path(tmp_path) -> Path:
    return tmp_path / "a.gif"


@pytest.mark.parametrize(("flags", "colours"), [(0x00, 0), (0x07, 0), (0x80, 2), (0x81, 4), (0xF7, 256)])
def test_palettes_are_stepped_over_wherever_they_stand(path, flags, colours):
    palette = b"," * 3 * colours  # which no frame begins in
    whole = start(flags, palette) + frame(flags, palette) + EXTENSION + frame(flags, palette)
    assert found(path, whole + b";") is None
    assert found(path, whole[:-1]) == 1


def test_a_file_that_ends_after_a_block_is_whole_with_or_without_a_trailer(path):
    for blocks in (b"", EXTENSION, frame(), EXTENSION + frame(), frame(data=b"\x00"), frame(data=b"\xff" + b"," * 255 + b"\x00")):
        assert found(path, start() + blocks) is None
        assert found(path, start() + blocks + b";") is None


def test_frames_before_the_block_that_is_cut_are_counted(path):
    for cut in range(1, len(frame())):
        assert found(path, start() + EXTENSION + frame() + frame()[:cut]) == 1, cut
    for cut in range(1, len(EXTENSION)):
        assert found(path, start() + frame() + frame() + EXTENSION[:cut]) == 2, cut


def test_what_stands_behind_the_trailer_is_not_looked_at(path):
    assert found(path, start() + frame() + b";" + frame()[:-1]) is None
