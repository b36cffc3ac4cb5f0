"""A file, a V4L2 device or an RTSP URL as a stream of frames: `Stream(source)`.

A file is decoded like a clip, and damage is an error. A camera never resends what was lost: damaged frames are dropped together with
all frames up to the next keyframe, which may refer to them; after `_RECOVERY` seconds without a keyframe (intra refresh) frames are
shown again. `take_lost` counts the dropped ones. A stream joined in the middle of a GOP likewise starts at its first keyframe.

Times are presentation times. Where they jump back at a keyframe, files were concatenated or a camera restarted: the new clock then
continues where the old one ended.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from runtime.core.errors import VideoError, import_package
from runtime.media import stills
from runtime.media.container import best_stream, check_file, interval_of, tick_of
from runtime.media.decode import reading
from runtime.media.orientation import upright_rgb

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.video.frame import VideoFrame
    from av.video.stream import VideoStream

_TIMEOUT = 10.0  # seconds without a packet before a network stream counts as lost
_RECOVERY = 10.0  # seconds

Timed = tuple[float, Callable[[], np.ndarray]]


def is_live(source: str) -> bool:
    """Whether `source` delivers frames in real time rather than on demand."""
    return source.startswith("/dev/video") or "://" in source


class Stream:
    """Iterates over (seconds since the first frame, a function that returns the frame: RGB uint8 [h, w, 3], upright).

    VideoError for a source that can't be opened, has no frames, or breaks off.
    """

    def __init__(self, source: str):
        self.source = source
        self._lost = 0

    def __iter__(self) -> Iterator[Timed]:
        if is_live(self.source):
            return self._timed(self._of_camera())
        path = Path(self.source)
        check_file(path)
        return self._of_picture(path) if stills.is_still(path) else self._timed(self._of_file(path))

    def take_lost(self) -> int:
        """The number of camera frames lost since the last call."""
        lost, self._lost = self._lost, 0
        return lost

    def _timed(self, frames: Iterator[tuple[VideoFrame, VideoStream]]) -> Iterator[Timed]:
        clock = Clock()
        for frame, stream in frames:
            rgb = partial(upright_rgb, frame, stream.codec_context.name)
            time = None if frame.pts is None else float(frame.pts * tick_of(stream))
            yield clock.seconds(time, frame.key_frame, float(interval_of(stream))), rgb
        if clock.last is None:
            raise VideoError(f"{self.source} has a video stream without a frame that can be decoded; expected at least one frame")

    def _of_picture(self, path: Path) -> Iterator[Timed]:
        with stills.opened(path) as picture:
            timeline = picture.timeline()
            for index in range(len(timeline.times)):
                yield timeline.seconds(index), partial(picture.rgb, index)

    def _of_file(self, path: Path) -> Iterator[tuple[VideoFrame, VideoStream]]:
        with reading(path, strict=False) as reader:
            for frame in reader.checked(reader.frames()):
                yield frame, reader.stream

    def _of_camera(self) -> Iterator[tuple[VideoFrame, VideoStream]]:
        with _opened(self.source) as container:
            import av

            stream = best_stream(container, self.source)
            stream.thread_type = "AUTO"
            stream.codec_context.copy_opaque = True  # from each packet to its frame: whether part of it was lost
            interval = float(interval_of(stream))
            waited: float | None = 0.0  # seconds spent waiting for a keyframe; None: not waiting
            try:
                for packet in container.demux(stream):
                    packet.opaque = packet.is_corrupt
                    try:
                        frames = packet.decode()
                    except av.error.InvalidDataError:
                        self._lost, waited = self._lost + 1, waited or 0.0
                        continue
                    for frame in frames:
                        if frame.is_corrupt or frame.opaque:
                            waited = waited or 0.0
                        elif frame.key_frame or (waited or 0.0) > _RECOVERY:
                            waited = None
                        if waited is None:
                            yield frame, stream
                        else:
                            self._lost, waited = self._lost + 1, waited + interval
            except av.FFmpegError as error:
                raise VideoError(f"{self.source} broke off ({error.strerror}); watch it again") from None


class Clock:
    """Converts frame times to seconds since the first frame, never decreasing. last: the newest result, None before the first frame."""

    def __init__(self) -> None:
        self.last: float | None = None
        self._start = 0.0  # the source's time of second zero

    def seconds(self, time: float | None, key_frame: bool, interval: float) -> float:
        """time: on the source's clock, None if unknown; interval: the expected seconds from one frame to the next."""
        if self.last is None:
            self.last, self._start = 0.0, time or 0.0
        elif time is None:
            self.last += interval
        elif time - self._start <= self.last and key_frame:
            self.last += interval
            self._start = time - self.last
        else:
            self.last = max(self.last, time - self._start)
        return self.last


def _opened(source: str) -> InputContainer:
    av = import_package("av", "watching a stream", "runtime")
    if "://" in source and not source.startswith(("rtsp://", "rtsps://")):
        raise VideoError(f"{source} can't be watched; expected a video file, /dev/videoN or rtsp://…")
    try:
        if source.startswith("/dev/video"):
            return av.open(source, format="v4l2", metadata_errors="replace")
        return av.open(source, options={"rtsp_transport": "tcp", "fflags": "nobuffer"}, timeout=_TIMEOUT, metadata_errors="replace")
    except (av.FFmpegError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise VideoError(f"{source} can't be watched ({reason}); expected a video file, /dev/videoN or rtsp://…") from None
