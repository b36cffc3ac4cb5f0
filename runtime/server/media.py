"""Where a clip may come from: a data: URL; https from hosts that were named; files below directories that were named.

The bytes are written to a private temporary file as they come, because decoders seek and memory is scarce, and are identified by
their SHA-256 from then on. A clip may also be a list of such URLs, its frames.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from hashlib import sha256
from pathlib import Path
from urllib.parse import unquote, urlsplit
from weakref import finalize

from runtime.server.base64_text import decoded
from runtime.server.errors import ApiError
from runtime.server.fetch import fetch
from runtime.server.options import ServerOptions
from runtime.server.schema import MAX_FRAMES, MediaUrl

_HEAD = 1024  # characters in which a data: URL names its type
_DATA = re.compile(r"\s*data:(?P<type>[^,;]*)(?P<parameters>;.*?)?;\s*base64\s*,", re.IGNORECASE | re.DOTALL)
_KINDS = ("video", "image", "application", "binary", "")  # decoding tells what they contain
_CHUNK = 1 << 18


class Media:
    """A clip in temporary files, which `close()` removes, at the latest when the object is garbage.

    paths    one file, or one for each frame
    fps      frames a second of a clip that is frames, else None
    size     bytes
    digest   hex SHA-256 of the content
    """

    def __init__(self, contents: Iterable[Iterable[bytes]], most: int, fps: float | None = None):
        """ApiError 413 for more than `most` bytes, 422 for a file without any."""
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
                        raise _too_large(most)
                    digest.update(chunk)
                    file.write(chunk)
            sizes.append(self.size - before)
            if not sizes[-1]:
                raise ApiError(422, "the clip is empty (0 bytes); expected a video or an image", "invalid_video")
        if self.fps is not None:
            digest.update(repr((sizes, self.fps)).encode())
        self.digest = digest.hexdigest()

    @property
    def data(self) -> bytes:
        """The bytes again."""
        return b"".join(path.read_bytes() for path in self.paths)


def load(media: MediaUrl, options: ServerOptions) -> Media:
    """The clip that a request names; blocking. ApiError for what is not allowed, not there or too large."""
    if sum(one is not None for one in (media.url, media.data, media.frames)) != 1:
        raise ApiError(400, "a clip needs one of url, data and frames", "invalid_media")
    rate, most = media.fps or 1.0, options.max_media
    if media.data is not None:
        return Media([_base64(media.data, 0, most)], most)
    if media.frames is not None:
        if not media.frames:
            raise ApiError(400, "a clip of no frames; expected at least one", "invalid_media")
        return Media((frame for url in media.frames for frame in _of_url(url, options)), most, rate)
    contents = list(_of_url(media.url or "", options))
    return Media(contents, most, rate if len(contents) > 1 else None)


def _of_url(url: str, options: ServerOptions) -> Iterator[Iterable[bytes]]:
    """The content behind a URL: one file, or the frames of vLLM's data:video/jpeg;base64,FRAME,FRAME,…"""
    scheme = url[:32].partition(":")[0].strip().lower()
    if scheme == "data":
        yield from _of_data_url(url, options.max_media)
    elif scheme == "file":
        yield _of_file(url, options)
    elif scheme in ("http", "https") and options.media_hosts:
        yield [fetch(url, options.media_hosts, options.max_media, options.fetch_seconds)]
    else:
        raise ApiError(400, "this server takes clips as data: URLs only, e.g. data:video/mp4;base64,…", "media_not_allowed")


def _of_data_url(url: str, most: int) -> Iterator[Iterable[bytes]]:
    match = _DATA.match(url, 0, _HEAD)
    if match is None:
        raise ApiError(400, "the data: URL is not of the form data:video/mp4;base64,…", "invalid_url")
    kind = match["type"].strip().lower()
    if kind.partition("/")[0] not in _KINDS:
        raise ApiError(400, f'the data: URL is of type "{match["type"]}", expected video/* or image/*', "invalid_media")
    start = match.end()
    cuts = _commas(url, start) if kind == "video/jpeg" else []
    for begin, end in zip([start, *(cut + 1 for cut in cuts)], [*cuts, len(url)], strict=True):
        yield _base64(url, begin, most, end)


def _commas(text: str, start: int) -> Sequence[int]:
    found: list[int] = []
    while (start := text.find(",", start) + 1) > 0:
        found.append(start - 1)
        if len(found) >= MAX_FRAMES:
            raise ApiError(400, f"a clip of more than {MAX_FRAMES} frames, the most that this server takes", "invalid_media")
    return found


def _base64(text: str, start: int, most: int, stop: int | None = None) -> Iterator[bytes]:
    if ((len(text) if stop is None else stop) - start) // 4 * 3 > 2 * most:  # twice: line ends and escapes are not content
        raise _too_large(most)
    return decoded(text, start, stop)


def _of_file(url: str, options: ServerOptions) -> Iterator[bytes]:
    if not options.media_paths:
        raise ApiError(400, "this server reads no files; send a data: URL", "media_not_allowed")
    try:
        parts = urlsplit(url)
        path = Path(unquote(parts.path)).resolve()  # links and .. first, then the question whether it is allowed
        allowed = parts.netloc in ("", "localhost") and any(path.is_relative_to(root.resolve()) for root in options.media_paths)
        # one answer for what is outside and what does not exist: it does not tell which files exist
        if not allowed or not path.is_file():
            raise _no_file()
        with path.open("rb") as file:
            while chunk := file.read(_CHUNK):
                yield chunk
    except (OSError, ValueError, RuntimeError):
        raise _no_file() from None


def _remove(paths: Sequence[Path]) -> None:
    for path in paths:
        path.unlink(missing_ok=True)


def _no_file() -> ApiError:
    return ApiError(400, "no clip at that path below the directories that this server reads", "media_not_allowed")


def _too_large(most: int) -> ApiError:
    return ApiError(413, f"the clip is larger than {most} bytes, the most that this server takes", "media_too_large")
