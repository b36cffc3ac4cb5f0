"""Where a clip may come from: a data: URL, https from an allowed host, or a file below an allowed directory.

The bytes are written to a private temporary file as they arrive, because decoders seek and memory is scarce; their SHA-256 then
identifies the clip. A clip may also be a list of such URLs, one for each of its frames.

base64 may be padded or not, wrapped into lines, in either alphabet and %-escaped. As a clip's text is the largest part of a
request, it is decoded piece by piece and never copied as a whole, unless it contains escapes.
"""

from __future__ import annotations

import binascii
import re
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from hashlib import sha256
from pathlib import Path
from urllib.parse import unquote, urlsplit
from weakref import finalize

from runtime.server.errors import ApiError, media_too_large
from runtime.server.fetch import fetch
from runtime.server.options import ServerOptions
from runtime.server.schema import MAX_FRAMES, MediaUrl

_HEAD = 1024  # characters within which a data: URL must name its type
_DATA = re.compile(r"\s*data:(?P<type>[^,;]*)(?P<parameters>;.*?)?;\s*base64\s*,", re.IGNORECASE | re.DOTALL)
_KINDS = ("video", "image", "application", "binary", "")  # the decoder finds out what the bytes really are
_CHUNK = 1 << 18
_STANDARD = str.maketrans("-_", "+/")


class Media:
    """A clip in temporary files, which `close()` or garbage collection removes.

    paths    one file, or one for each frame
    fps      frames per second of a clip that is a list of frames, else None
    size     bytes
    digest   hex SHA-256 of the content
    """

    def __init__(self, contents: Iterable[Iterable[bytes]], most: int, fps: float | None = None):
        """ApiError 413 for more than `most` bytes, 422 for an empty file."""
        self.paths: list[Path] = []
        self.fps, self.size = fps, 0
        self.close = finalize(self, _remove, self.paths)
        try:
            self._store(contents, most)
        except BaseException:
            self.close()
            raise

    def _store(self, contents: Iterable[Iterable[bytes]], most: int) -> None:
        digest, sizes = sha256(), []
        for content in contents:
            before = self.size
            with tempfile.NamedTemporaryFile(prefix="clip-", delete=False) as file:
                self.paths.append(Path(file.name))
                for chunk in content:
                    self.size += len(chunk)
                    if self.size > most:
                        raise media_too_large(most)
                    digest.update(chunk)
                    file.write(chunk)
            sizes.append(self.size - before)
            if not sizes[-1]:
                raise ApiError(422, "the clip is empty (0 bytes); expected a video or an image", "invalid_video")
        if self.fps is not None:
            digest.update(repr((sizes, self.fps)).encode())
        self.digest = digest.hexdigest()


def load(media: MediaUrl, options: ServerOptions) -> Media:
    """Store the clip that a request names; blocking. ApiError if it is not allowed, does not exist or is too large."""
    if sum(one is not None for one in (media.url, media.data, media.frames)) != 1:
        raise ApiError(400, "a clip needs exactly one of url, data and frames", "invalid_media")
    rate, most = media.fps or 1.0, options.max_media
    if media.data is not None:
        return Media([decoded(media.data)], most)
    if media.frames is not None:
        if not media.frames:
            raise ApiError(400, "the clip has no frames; expected at least one", "invalid_media")
        return Media((frame for url in media.frames for frame in _contents(url, options)), most, rate)
    contents = list(_contents(media.url or "", options))
    return Media(contents, most, rate if len(contents) > 1 else None)


def decoded(text: str, start: int = 0, stop: int | None = None) -> Iterator[bytes]:
    """The bytes that text[start:stop] encodes. ApiError 400 if it is not base64."""
    stop = len(text) if stop is None else stop
    if text.find("%", start, stop) >= 0:
        text, start = unquote(text[start:stop]), 0
        stop = len(text)
    while stop > start and text[stop - 1] in "=\r\n\t ":
        stop -= 1
    if text.find("=", start, stop) >= 0:
        raise _not_base64()
    left = ""
    for at in range(start, stop, _CHUNK):
        left += "".join(text[at : min(at + _CHUNK, stop)].split()).translate(_STANDARD)
        ready = len(left) - len(left) % 4
        yield _decode(left[:ready])
        left = left[ready:]
    yield _decode(left + "=" * (-len(left) % 4))


def _decode(text: str) -> bytes:
    """The bytes of padded `text`; a2b_base64 skips what is not base64, which the number of bytes reveals."""
    try:
        found = binascii.a2b_base64(text.encode("ascii"))
    except ValueError:
        raise _not_base64() from None
    if len(found) != len(text) // 4 * 3 - text[-2:].count("="):
        raise _not_base64()
    return found


def _contents(url: str, options: ServerOptions) -> Iterator[Iterable[bytes]]:
    """The content behind a URL: one file, or the frames of vLLM's data:video/jpeg;base64,FRAME,FRAME,…"""
    scheme = url[:32].partition(":")[0].strip().lower()
    if scheme == "data":
        yield from _data_contents(url)
    elif scheme == "file":
        yield _file_content(url, options)
    elif scheme in ("http", "https") and options.media_hosts:
        yield [fetch(url, options.media_hosts, options.max_media, options.fetch_seconds)]
    else:
        raise ApiError(400, "this server takes clips as data: URLs only, e.g. data:video/mp4;base64,…", "media_not_allowed")


def _data_contents(url: str) -> Iterator[Iterable[bytes]]:
    match = _DATA.match(url, 0, _HEAD)
    if match is None:
        raise ApiError(400, "the data: URL is not of the form data:video/mp4;base64,…", "invalid_url")
    kind = match["type"].strip().lower()
    if kind.partition("/")[0] not in _KINDS:
        raise ApiError(400, f'the data: URL is of type "{match["type"]}", expected video/* or image/*', "invalid_media")
    starts = [match.end()]
    while kind == "video/jpeg" and (comma := url.find(",", starts[-1])) >= 0:
        starts.append(comma + 1)
        if len(starts) > MAX_FRAMES:
            raise ApiError(400, f"the clip has more than {MAX_FRAMES} frames, the most that this server takes", "invalid_media")
    for start, after in zip(starts, [*starts[1:], len(url) + 1], strict=True):
        yield decoded(url, start, after - 1)


def _file_content(url: str, options: ServerOptions) -> Iterator[bytes]:
    if not options.media_paths:
        raise ApiError(400, "this server reads no files; send a data: URL", "media_not_allowed")
    try:
        parts = urlsplit(url)
        path = Path(unquote(parts.path)).resolve()  # links and .. are resolved before the path is judged
        allowed = parts.netloc in ("", "localhost") and any(path.is_relative_to(root.resolve()) for root in options.media_paths)
        if not allowed or not path.is_file():
            raise OSError
        with path.open("rb") as file:
            while chunk := file.read(_CHUNK):
                yield chunk
    except (OSError, ValueError, RuntimeError):
        # the same answer whether it is outside or missing: it must not reveal which files exist
        raise ApiError(400, "no clip at that path below the directories that this server reads", "media_not_allowed") from None


def _not_base64() -> ApiError:
    return ApiError(400, "the clip is not valid base64", "invalid_media")


def _remove(paths: Sequence[Path]) -> None:
    for path in paths:
        path.unlink(missing_ok=True)
