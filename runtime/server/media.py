"""Where a clip may come from: a data: URL; https from hosts that were named; files below directories that were named.

The bytes are written to a private temporary file, because decoders seek, and are known by their SHA-256 from then on.
"""

from __future__ import annotations

import base64
import binascii
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from urllib.parse import unquote, urlsplit

from runtime.server.errors import ApiError
from runtime.server.fetch import fetch
from runtime.server.options import ServerOptions
from runtime.server.schema import MediaUrl

_DATA = re.compile(r"data:(?P<type>[\w.+-]+/[\w.+-]+)?(?P<parameters>(?:;[\w.+-]+=[\w.+-]+)*)(?P<base64>;base64)?,")


@dataclass(frozen=True)
class Media:
    """data: the clip's bytes; digest: hex SHA-256 of them."""

    data: bytes
    digest: str

    @contextmanager
    def file(self) -> Iterator[Path]:
        """A temporary file that holds the clip."""
        with tempfile.NamedTemporaryFile(prefix="clip-") as file:
            file.write(self.data)
            file.flush()
            yield Path(file.name)


def load(media: MediaUrl, options: ServerOptions) -> Media:
    """The clip that a request names; blocking. ApiError for what is not allowed, not there or too large."""
    if (media.url is None) == (media.data is None):
        raise ApiError(400, "a clip needs either url or data", "invalid_media")
    data = _of_url(media.url, options) if media.url is not None else _base64(media.data or "", options.max_media)
    if not data:
        raise ApiError(422, "the clip is empty (0 bytes); expected a video or an image", "invalid_video")
    return Media(data, sha256(data).hexdigest())


def _of_url(url: str, options: ServerOptions) -> bytes:
    scheme = url[:16].partition(":")[0].lower()
    if scheme == "data":
        return _of_data_url(url, options.max_media)
    if scheme == "file":
        return _of_file(url, options)
    if scheme in ("http", "https") and options.media_hosts:
        return fetch(url, options.media_hosts, options.max_media, options.fetch_seconds)
    raise ApiError(400, "this server takes clips as data: URLs only, e.g. data:video/mp4;base64,…", "media_not_allowed")


def _of_data_url(url: str, most: int) -> bytes:
    match = _DATA.match(url)
    if match is None or not match["base64"]:
        raise ApiError(400, "the data: URL is not of the form data:video/mp4;base64,…", "invalid_url")
    kind = (match["type"] or "").partition("/")[0].lower()
    if kind not in ("video", "image"):
        raise ApiError(400, f'the data: URL is of type "{match["type"]}", expected video/* or image/*', "invalid_media")
    return _base64(url[match.end() :], most)


def _base64(text: str, most: int) -> bytes:
    if len(text) * 3 // 4 - 2 > most:
        raise ApiError(413, f"the clip is larger than {most} bytes, the most that this server takes", "media_too_large")
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise ApiError(400, "the clip is not valid base64", "invalid_media") from None


def _of_file(url: str, options: ServerOptions) -> bytes:
    if not options.media_paths:
        raise ApiError(400, "this server reads no files; send a data: URL", "media_not_allowed")
    parts = urlsplit(url)
    try:
        path = Path(unquote(parts.path)).resolve()  # links and .. first, then the question where it lies
        allowed = parts.netloc in ("", "localhost") and any(path.is_relative_to(root.resolve()) for root in options.media_paths)
        # one answer for what is outside and what is not there: nobody learns from it which files exist
        if not allowed or not path.is_file():
            raise ApiError(400, "no clip at that path below the directories that this server reads", "media_not_allowed")
        if path.stat().st_size > options.max_media:
            raise ApiError(
                413, f"the clip is larger than {options.max_media} bytes, the most that this server takes", "media_too_large"
            )
        return path.read_bytes()
    except (OSError, ValueError, RuntimeError):
        raise ApiError(400, "no clip at that path below the directories that this server reads", "media_not_allowed") from None
