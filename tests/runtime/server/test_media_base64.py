"""base64 a piece at a time: where pieces end, what stands around them, and how much is held at once."""

from __future__ import annotations

import base64

import pytest
from refusal import naming

from runtime.server import media
from runtime.server.errors import ApiError
from runtime.server.media import decoded

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
    ["Q", "QUJDQ", "=QUJD", "Q=Q=", "QUJD=QUJD", "QU\x00D", "QÜJD", "Q~JD", "%3DQUJD", "%FF", "QUJD****", "****", "QQ==****",
     "AB*D", "AA==BBBB", "QUJD\0", "%%%%"],
)  # fmt: skip
def test_what_is_not_base64_is_refused(text):
    with pytest.raises(ApiError, match=naming("base64")) as raised:
        list(decoded(text))
    assert (raised.value.status, raised.value.code) == (400, "invalid_media")


def test_padding_ends_the_text_wherever_a_piece_ends():
    with pytest.raises(ApiError, match=naming("base64")):
        list(decoded("A" * (PIECE - 2) + "==" + "QUJD"))


def test_a_text_without_escapes_is_not_copied_as_a_whole(monkeypatch):
    monkeypatch.setattr(media, "unquote", lambda text: pytest.fail("it was copied"))
    assert b"".join(decoded("%QUJD%", 1, 5)) == b"ABC"


@pytest.mark.parametrize("size", [1, 2, 3, 300, 3 << 16, (3 << 16) + 1])
def test_base64_is_read_however_it_is_written(size):
    content = bytes(number * 131 % 251 for number in range(size))
    standard, safe = base64.b64encode(content).decode(), base64.urlsafe_b64encode(content).decode()
    escaped = standard.replace("+", "%2B").replace("/", "%2F").replace("=", "%3D")
    wrapped = base64.encodebytes(content).decode()
    for text in (standard, safe, standard.rstrip("="), safe.rstrip("="), wrapped, escaped, f"\r\n{standard} "):
        assert b"".join(decoded(text)) == content
        assert b"".join(decoded(f"start{text}end", 5, 5 + len(text))) == content


def test_an_escape_may_stand_anywhere():
    """Also first: 0xfb 0xff is +/8= in base64."""
    for text in ("%2B%2F8%3D", "+%2F8=", "+/8%3D", "%2b/8"):
        assert b"".join(decoded(text)) == b"".join(decoded(f"%{text}%", 1, 1 + len(text))) == b"\xfb\xff"
