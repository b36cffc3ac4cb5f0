"""base64 as clients write it -> bytes, a piece at a time: padded or not, wrapped into lines, of either alphabet, %-escaped.

A clip's text is the largest part of a request; it is never copied in one piece here.
"""

from __future__ import annotations

import binascii
from collections.abc import Iterator
from urllib.parse import unquote

from runtime.server.errors import ApiError

_PIECE = 1 << 18  # characters
_STANDARD = str.maketrans("-_", "+/")


def decoded(text: str, start: int = 0, stop: int | None = None) -> Iterator[bytes]:
    """The bytes that text[start:stop] stands for. ApiError 400 if it is not base64."""
    stop = len(text) if stop is None else stop
    if text.find("%", start, stop) >= 0:
        text, start = unquote(text[start:stop]), 0
        stop = len(text)
    while stop > start and text[stop - 1] in "=\r\n\t ":
        stop -= 1
    if text.find("=", start, stop) >= 0:
        raise _invalid()
    left = ""
    for at in range(start, stop, _PIECE):
        left += "".join(text[at : min(at + _PIECE, stop)].split()).translate(_STANDARD)
        ready = len(left) - len(left) % 4
        yield _bytes(left[:ready])
        left = left[ready:]
    yield _bytes(left + "=" * (-len(left) % 4))


def _bytes(text: str) -> bytes:
    """The bytes of `text`, which is padded; nothing in it is skipped, so their number is known."""
    try:
        found = binascii.a2b_base64(text.encode("ascii"))
    except ValueError:
        raise _invalid() from None
    if len(found) != len(text) // 4 * 3 - text[-2:].count("="):
        raise _invalid()
    return found


def _invalid() -> ApiError:
    return ApiError(400, "the clip is not valid base64", "invalid_media")
