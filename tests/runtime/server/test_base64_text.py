"""base64 a piece at a time: where pieces end, what stands around them, and how much is held at once."""

from __future__ import annotations

import base64

import pytest

from runtime.server import base64_text
from runtime.server.base64_text import decoded
from runtime.server.errors import ApiError

PIECE = 1 << 18  # characters


@pytest.mark.parametrize("before", [0, 1, 2, 3])
@pytest.mark.parametrize("size", [PIECE // 4 * 3, PIECE // 4 * 3 + 1, PIECE // 4 * 3 - 1, PIECE // 2 * 3])
def test_pieces_may_end_anywhere(before, size):
    content = bytes(range(256)) * (size // 256 + 1)
    text = base64.b64encode(content[:size]).decode()
    for written in (text, text.rstrip("=")):
        pieces = list(decoded("\n" * before + written))
        assert b"".join(pieces) == content[:size] and max(map(len, pieces)) <= PIECE


def test_a_piece_may_be_blanks_alone():
    assert b"".join(decoded("QU" + " " * 2 * PIECE + "JD")) == b"ABC"


@pytest.mark.parametrize(
    ("text", "start", "stop", "content"),
    [
        ("QUJD", 0, None, b"ABC"),
        ("", 0, None, b""),
        (" = \r\n\t=", 0, None, b""),
        ("====QUJD", 4, None, b"ABC"),
        ("====QUJD====", 4, 8, b"ABC"),
        ("xx==QQ=\t= \n", 4, None, b"A"),
        ("*QUJD*", 1, 5, b"ABC"),
        ("%QUJD%", 1, 5, b"ABC"),
        ("%51%55JD", 0, None, b"ABC"),
        ("=%51U%4a%44=x", 1, 11, b"ABC"),
        ("QUJ%44*", 0, 6, b"ABC"),
        ("Q\tU J\r\nD", 0, None, b"ABC"),
        ("-_8=", 0, None, b"\xfb\xff"),
    ],
)
def test_the_part_that_is_asked_for_is_read(text, start, stop, content):
    assert b"".join(decoded(text, start, stop)) == content


@pytest.mark.parametrize(
    "text",
    ["Q", "QUJDQ", "=QUJD", "Q=Q=", "QUJD=QUJD", "QU\x00D", "QÜJD", "Q~JD", "%3DQUJD", "%FF", "QUJD****", "****", "QQ==****"],
)
def test_what_is_none_is_refused(text):
    with pytest.raises(ApiError) as raised:
        list(decoded(text))
    error = raised.value
    assert (error.status, str(error), error.code) == (400, "the clip is not valid base64", "invalid_media")


def test_padding_ends_the_text_wherever_a_piece_ends():
    with pytest.raises(ApiError, match="not valid base64"):
        list(decoded("A" * (PIECE - 2) + "==" + "QUJD"))


def test_a_text_without_escapes_is_not_copied_as_a_whole(monkeypatch):
    monkeypatch.setattr(base64_text, "unquote", lambda text: pytest.fail("it was copied"))
    assert b"".join(decoded("%QUJD%", 1, 5)) == b"ABC"
