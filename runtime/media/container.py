"""Open a media file with FFmpeg and choose its video stream.

The stream is the one that FFmpeg ranks best; a cover picture, an image tile or a strip of thumbnails is never the video. Only the
file protocol is allowed: neither a path that looks like a URL nor a reference inside a file can open anything else.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING

from runtime.core.errors import VideoError, import_package
from runtime.media import limits

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.video.stream import VideoStream

# Containers that hold one clip. FFmpeg reads more, and some of that must be excluded: text rendered as video (tty),
# and playlists that open other files (hls, concat, dash, numbered image files: `pattern_type` none).
_FORMATS = (
    "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,flv,mpegts,mpeg,asf,ogg,mxf,nut,rm,wtv,dv,ivf,obu,h264,hevc,vvc,m4v,mpegvideo,mjpeg,"
    "yuv4mpegpipe,gif"
)
# Decoders for untrusted files. PNG, TIFF and the like are not among them: they inflate whatever size a file declares.
_DECODERS = (
    "h264,hevc,vvc,av1,libdav1d,vp8,vp9,libvpx,libvpx-vp9,vp6,vp6a,vp6f,mpeg1video,mpeg2video,mpegvideo,mpeg4,h261,h263,h263i,h263p,"
    "flv,msmpeg4v1,msmpeg4v2,msmpeg4,wmv1,wmv2,wmv3,vc1,rv10,rv20,rv30,rv40,svq1,svq3,cinepak,indeo3,indeo4,indeo5,theora,dirac,"
    "mjpeg,mjpegb,prores,dnxhd,cfhd,dvvideo,rawvideo,v210,v410,yuv4,wrapped_avframe,ffv1,huffyuv,ffvhuff,utvideo,magicyuv,gif"
)

# Brands of image sequences (ISO/IEC 23008-12). Transparency is a second video stream of the same size and length, which follows
# the colour stream.
_SEQUENCES = ("avis", "msf1", "hevc", "hevx")

# Codecs decoded with frame threads. With other codecs a damaged frame may be returned before it is flagged, depending on timing.
_FRAME_THREADS = ("h264", "hevc", "vp8", "vp9")


def check_file(path: Path) -> None:
    """VideoError unless `path` is a readable, non-empty regular file."""
    if not os.path.exists(path):  # Path.exists raises for a name that is too long
        raise VideoError(f"no video at {path}: no such file")
    if path.is_dir():
        raise VideoError(f"{path} is a directory; expected a video file")
    if not path.is_file():
        raise VideoError(f"{path} is not a regular file; expected a video file")
    if not os.access(path, os.R_OK):
        raise VideoError(f"{path} can't be read: permission denied")
    if not path.stat().st_size:
        raise VideoError(f"{path} is empty (0 bytes); expected a video file")


@contextmanager
def opened(path: Path, strict: bool = True, threads: bool = True) -> Iterator[tuple[InputContainer, VideoStream]]:
    """The file and its video stream, checked against the limits.

    strict, threads: see `decode.reading`. VideoError for a file that is not a video.
    """
    av = import_package("av", "decoding a video", "runtime")
    options = {"format_whitelist": _FORMATS, "protocol_whitelist": "file", "pattern_type": "none"}
    allowed = limits.current()
    if allowed:
        options |= {"max_streams": str(allowed.streams + 1), "max_pixels": str(allowed.pixels)}
    try:
        container = av.open(f"file:{path}", options=options, metadata_errors="replace")
    except av.FFmpegError as error:
        raise VideoError(
            f"{path} is not a video, or not all of one ({error.strerror}); expected a file such as mp4, mkv or webm"
        ) from None
    with container:
        limits.check_streams(path, len(container.streams))
        stream = best_stream(container, str(path))
        codec = stream.codec_context
        limits.check_size(path, codec.width, codec.height)
        if allowed and codec.name not in _DECODERS.split(","):
            raise VideoError(f"{path} is coded as {codec.name}, which is not decoded here; send H.264, HEVC, VP9 or AV1")
        for length, unit in ((container.duration, 1_000_000), (stream.duration, 1 / float(tick_of(stream)))):
            limits.check_seconds(path, (length or 0) / unit)
        strict = strict or codec.codec.name.startswith("mjpeg")  # its decoder flags nothing
        codec.options = {"max_pixels": str(allowed.pixels)} if allowed else {}
        codec.options |= {"err_detect": "explode"} if strict else {}
        stream.thread_type = ("AUTO" if codec.name in _FRAME_THREADS else "SLICE") if strict and threads else "NONE"
        yield container, stream


def best_stream(container: InputContainer, name: str) -> VideoStream:
    """The video stream to show; VideoError, which names `name`, if none can be decoded."""
    from av.stream import Disposition

    excluded = Disposition.attached_pic | Disposition.dependent | Disposition.still_image | Disposition.timed_thumbnails
    streams = [s for s in container.streams.video if s.codec_context and not s.disposition & excluded]
    best = container.streams.best("video")
    if best in streams and container.metadata.get("major_brand") in _SEQUENCES:
        return next(s for s in streams if _kind(s) == _kind(best))
    if best in streams:
        return best
    if streams:
        return max(
            streams, key=lambda s: (bool(s.disposition & Disposition.default), s.codec_context.width * s.codec_context.height)
        )
    kinds = ", ".join(sorted({s.type for s in container.streams})) or "no stream"
    if any(s.disposition & Disposition.attached_pic for s in container.streams.video):
        raise VideoError(f"{name} has a cover picture but no video; expected a video")
    raise VideoError(f"{name} has no video stream that can be decoded (it has {kinds}); expected a video")


def _kind(stream: VideoStream) -> tuple[int, int, int]:
    return stream.frames, stream.codec_context.width, stream.codec_context.height


def tick_of(stream: VideoStream) -> Fraction:
    """Seconds per tick; FFmpeg's default unit for a stream that declares none."""
    return stream.time_base or Fraction(1, 1_000_000)


def interval_of(stream: VideoStream) -> Fraction:
    """Seconds per frame, from FFmpeg's guess of the frame rate; 1/25 where it has none.

    The average rate is not used: for a raw stream it can be 25 whatever the headers say.
    """
    return 1 / (stream.guessed_rate or Fraction(25))


def is_fragmented(path: Path) -> bool:
    """Whether an mp4 is fragmented (has `moof` boxes), so that a recording may end in any fragment.

    The first frames may still be listed in the `moov` box.
    """
    at, end = 0, path.stat().st_size
    with open(path, "rb") as file:
        while at < end:
            file.seek(at)
            head = file.read(16)
            if head[4:8] == b"moof":
                return True
            size = int.from_bytes(head[8:16] if head[:4] == b"\0\0\0\1" else head[:4], "big")
            if size < 8:  # 0 means up to the end of the file
                return False
            at += size
    return False
