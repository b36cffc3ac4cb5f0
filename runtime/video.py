"""A video file in, T upright RGB frames out: `sample_frames(path, T, each)`.

Which frames. The T frames are on the screen at the start of T equal parts of the clip. At a constant rate that is frame
`i * total // T`, the choice of transformers' video processors, so that answers can be compared; at a variable rate the
presentation times decide, so that a slide shown for a minute weighs a minute. A clip with fewer than T frames repeats some.

How. Times come from the packets, which is reading without decoding and needs no frame count or duration in the file.
Then each run of wanted frames is decoded from the keyframe before it, or straight on where the decoder already stands
behind that keyframe. A file whose packets do not tell its frames (no timestamps, hidden frames, fields in packets of their
own, a stream that can't be entered at its keyframes) is decoded from the start instead, once to list its frames
and once to take them; both ways give the same frames.

Damage is never concealed: the decoder stops at the first bad slice it meets, and the error says where in the clip that was.
Each frame is handed to `each` as soon as it is decoded, so only one frame of full size is in memory.

T frames asked for, h, w rows and columns of a frame.
"""

from __future__ import annotations

import os
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from statistics import median_low
from typing import TYPE_CHECKING

import numpy as np

from runtime.errors import VideoError, missing_package

if TYPE_CHECKING:
    import av
    from av.container import InputContainer
    from av.video.frame import VideoFrame
    from av.video.stream import VideoStream

MAX_FRAMES = 4096

# Containers and image files that hold one clip. FFmpeg reads more, and some of it must stay out: text drawn as video (tty),
# and playlists that open other files (hls, concat, dash, numbered image files: `pattern_type` none).
_FORMATS = (
    "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,flv,mpegts,mpeg,asf,ogg,mxf,nut,rm,wtv,dv,ivf,obu,h264,hevc,vvc,m4v,mpegvideo,mjpeg,"
    "yuv4mpegpipe,gif,apng,image2,png_pipe,jpeg_pipe,webp_pipe,webp_anim,bmp_pipe,tiff_pipe,ppm_pipe"
)
_SEEK_GAIN = 4  # frames that a seek must save; a flushed decoder takes about as many to give its first (benchmarks/seek.py)


@dataclass(frozen=True)
class Clip:
    """T frames of a video file and where they came from.

    frames        [T, ...], what `each` made of each frame, in order
    indices       T frame numbers in the file, from 0
    timestamps    T presentation times in seconds after the file's first frame
    duration      seconds from the first frame to the end of the last
    total         frames in the file
    size          (h, w) of a frame as shown, rotation applied
    """

    path: Path
    frames: np.ndarray
    indices: tuple[int, ...]
    timestamps: tuple[float, ...]
    duration: float
    total: int
    size: tuple[int, int]

    @property
    def repeated(self) -> int:
        """How many of the T frames are a frame that is already there, because the clip shows no other at that time."""
        return len(self.indices) - len(set(self.indices))


@dataclass(frozen=True)
class DecodeLimits:
    """What a file from a stranger may ask of the decoder: pixels of a frame, seconds, frames, streams in the container."""

    pixels: int = 4096 * 2304
    seconds: float = 3600.0
    frames: int = 300_000
    streams: int = 16


_limits: ContextVar[DecodeLimits | None] = ContextVar("limits", default=None)


def sample_frames_limited(path: str | Path, frames: int, each: Callable[[np.ndarray], np.ndarray], limits: DecodeLimits) -> Clip:
    """`sample_frames` of a file that is not trusted; VideoError names the limit that it exceeds."""
    token = _limits.set(limits)
    try:
        return sample_frames(path, frames, each)
    finally:
        _limits.reset(token)


def sample_frames(path: str | Path, frames: int, each: Callable[[np.ndarray], np.ndarray]) -> Clip:
    """Decode `frames` frames, evenly spread over the clip, and stack what `each(rgb uint8 [h, w, 3])` returns for them.

    Raises VideoError for a count that is out of range, for a file that can't be opened or holds no video, and, with the
    position in seconds, for one that is damaged where it must be decoded.
    """
    path = Path(path)
    if not 1 <= frames <= MAX_FRAMES:
        raise VideoError(f"{frames} frames asked of {path}; expected 1 to {MAX_FRAMES}")
    check_file(path)
    timeline, images, size = _take(path, frames, each)
    indices = timeline.sample(frames)
    return Clip(
        path=path,
        frames=np.stack([images[index] for index in indices]),
        indices=indices,
        timestamps=tuple(timeline.seconds(index) for index in indices),
        duration=float(timeline.span * timeline.tick),
        total=len(timeline.times),
        size=size,
    )


def check_file(path: Path) -> None:
    """Raise VideoError for what is no readable file with something in it."""
    if not path.exists():
        raise VideoError(f"no video at {path}: no such file")
    if path.is_dir():
        raise VideoError(f"{path} is a directory; expected a video file")
    if not path.is_file():
        raise VideoError(f"{path} is not a regular file; expected a video file")
    if not os.access(path, os.R_OK):
        raise VideoError(f"{path} can't be read: permission denied")
    if not path.stat().st_size:
        raise VideoError(f"{path} is empty (0 bytes); expected a video file")


def _take(
    path: Path, frames: int, each: Callable[[np.ndarray], np.ndarray]
) -> tuple[_Timeline, Mapping[int, np.ndarray], tuple[int, int]]:
    """The fastest way that gives every frame: seeking, then without seeks, then without trust in the packets."""
    timeline = _packet_timeline(path)
    if timeline:
        for seek in (True, False):
            taken = _take_by_time(path, timeline, frames, each, seek)
            if taken:
                return timeline, *taken
    timeline = _decoded_timeline(path)
    return timeline, *_take_by_number(path, timeline, frames, each)


@dataclass(frozen=True)
class _Timeline:
    """When each frame is shown, in ticks, in order; `span` includes the time of the last one; `keys` are decoder entries."""

    times: Sequence[int]
    span: Fraction
    tick: Fraction  # seconds
    keys: Sequence[int] = ()

    def sample(self, frames: int) -> tuple[int, ...]:
        total, first = len(self.times), self.times[0]
        if self._constant_rate():
            return tuple(i * total // frames for i in range(frames))
        starts = (first + i * self.span / frames for i in range(frames))
        return tuple(bisect_right(self.times, start) - 1 for start in starts)

    def entry(self, index: int) -> int:
        """The keyframe from which frame `index` can be decoded."""
        return bisect_left(self.times, self.keys[bisect_right(self.keys, self.times[index]) - 1])

    def seconds(self, index: int) -> float:
        return float((self.times[index] - self.times[0]) * self.tick)

    def _constant_rate(self) -> bool:
        # Containers round times to their tick (Matroska's is a millisecond), so every time may be off by one.
        last, first = len(self.times) - 1, self.times[0]
        travel = self.times[-1] - first
        return all(abs((time - first) * last - i * travel) <= last for i, time in enumerate(self.times))


def _timeline(times: Sequence[int], last: int | None, stream: VideoStream, tick: Fraction, keys: Sequence[int] = ()) -> _Timeline:
    """`last` is how long the file says its last frame is shown; where it doesn't, as long as most frames before it."""
    if last:
        shown = Fraction(last)
    elif len(times) > 1:
        shown = Fraction(median_low(later - earlier for earlier, later in pairwise(times)))
    else:
        shown = 1 / (stream.average_rate * tick) if stream.average_rate else Fraction(0)
    return _Timeline(times, times[-1] - times[0] + shown, tick, keys)


def _tick(stream: VideoStream) -> Fraction:
    return stream.time_base or Fraction(1, 1_000_000)  # FFmpeg's own unit, for a stream that names none


def _packet_timeline(path: Path) -> _Timeline | None:
    """The timeline as the packets tell it; None where they don't tell every frame's time."""
    durations: dict[int, int | None] = {}
    keys: list[int] = []
    damaged_at: int | None = None
    with _opened(path) as (container, stream):
        _check_length(path, stream)
        for packet in _packets(container, stream):
            if packet.pts is None or packet.pts in durations:
                return None
            if damaged_at is not None:  # and the file goes on: it is not just that a recording was stopped there
                raise _damage(path, float((damaged_at - keys[0]) * _tick(stream)), "packets are missing or incomplete")
            if packet.is_corrupt and keys:
                damaged_at = packet.pts
            if packet.is_keyframe:
                keys.append(packet.pts)
            # What is shown before the first keyframe can't be decoded; what an edit list cuts is decoded but not shown.
            if keys and packet.pts >= keys[0] and not packet.is_discard:
                durations[packet.pts] = packet.duration
        times = sorted(durations)
        return _timeline(times, durations[times[-1]], stream, _tick(stream), sorted(keys)) if times else None


def _take_by_time(
    path: Path, timeline: _Timeline, frames: int, each: Callable[[np.ndarray], np.ndarray], seek: bool
) -> tuple[Mapping[int, np.ndarray], tuple[int, int]] | None:
    """Take the sampled frames by their times; None where a frame does not come out as the packets promised."""
    import av

    taken: dict[int, np.ndarray] = {}
    size = (0, 0)
    with _opened(path) as (container, stream):
        decoded = _frames(container, stream)
        position = -1  # the last frame that the decoder gave
        for index in sorted(set(timeline.sample(frames))):
            time = timeline.times[index]
            try:
                if seek and timeline.entry(index) > position + _SEEK_GAIN:
                    decoded = _frames_from(timeline, index, container, stream)
                frame = next((frame for frame in decoded if frame.pts is not None and frame.pts >= time), None)
            except av.FFmpegError:
                return None  # damage, or a stream that can't be entered here: decoding from the start will tell
            if frame is None or frame.pts != time:
                return None
            image = upright_rgb(frame)
            taken[index], size, position = each(image), image.shape[:2], index
    return taken, size


def _decoded_timeline(path: Path) -> _Timeline:
    """The timeline of a file that has to be decoded to be known."""
    times: list[int | None] = []
    duration = None
    with _opened(path) as (container, stream):
        for frame in _checked(_frames(container, stream), path):
            times.append(frame.pts)
            duration = frame.duration
        if not times:
            raise VideoError(f"{path} has a video stream without a frame that can be decoded; expected at least one frame")
        known = [time for time in times if time is not None]
        if len(known) == len(times) and all(a < b for a, b in pairwise(known)):
            return _timeline(known, duration, stream, _tick(stream))
        return _timeline(range(len(times)), 1, stream, 1 / (stream.average_rate or Fraction(25)))


def _take_by_number(
    path: Path, timeline: _Timeline, frames: int, each: Callable[[np.ndarray], np.ndarray]
) -> tuple[Mapping[int, np.ndarray], tuple[int, int]]:
    """Take the sampled frames by number, decoding from the start."""
    wanted = set(timeline.sample(frames))
    taken: dict[int, np.ndarray] = {}
    size = (0, 0)
    with _opened(path) as (container, stream):
        for index, frame in enumerate(_checked(_frames(container, stream), path)):
            if index in wanted:
                image = upright_rgb(frame)
                taken[index], size = each(image), image.shape[:2]
                if len(taken) == len(wanted):
                    break
    return taken, size


@contextmanager
def _opened(path: Path) -> Iterator[tuple[InputContainer, VideoStream]]:
    try:
        import av
    except ImportError:
        raise missing_package("av", "decoding a video", "runtime") from None
    try:
        # The file protocol alone: neither a path that looks like an address nor a reference in the file opens anything else.
        container = av.open(
            f"file:{path}", options={"format_whitelist": _FORMATS, "protocol_whitelist": "file", "pattern_type": "none"}
        )
    except av.FFmpegError as error:
        raise VideoError(
            f"{path} is not a video, or not all of one ({error.strerror}); expected a file such as mp4, mkv or webm"
        ) from None
    with container:
        covers = av.stream.Disposition.attached_pic
        stream = next((s for s in container.streams.video if not s.disposition & covers and s.codec_context), None)
        if stream is None:
            kinds = ", ".join(sorted({s.type for s in container.streams})) or "no stream"
            raise VideoError(f"{path} has no video stream that can be decoded (it has {kinds}); expected a video")
        stream.thread_type = "AUTO"
        stream.codec_context.options = {"err_detect": "explode"}
        _check_limits(path, container, stream)
        yield container, stream


def _check_limits(path: Path, container: InputContainer, stream: VideoStream) -> None:
    """Refuse, from its header, what is over the limits; the decoder refuses larger frames that the header does not tell."""
    limits = _limits.get()
    if limits is None:
        return
    if len(container.streams) > limits.streams:
        raise VideoError(f"{path} has {len(container.streams)} streams; expected at most {limits.streams}")
    width, height = stream.codec_context.width, stream.codec_context.height
    if width * height > limits.pixels:
        raise VideoError(f"{path} has frames of {width}x{height}; expected at most {limits.pixels} pixels a frame")
    stream.codec_context.options = {"err_detect": "explode", "max_pixels": str(limits.pixels)}
    for length, unit in ((container.duration, 1_000_000), (stream.duration, 1 / float(_tick(stream)))):
        if length and length / unit > limits.seconds:
            raise VideoError(f"{path} is {length / unit:.0f} s long; expected at most {limits.seconds:.0f} s")


def _packets(container: InputContainer, stream: VideoStream) -> Iterator[av.Packet]:
    limits = _limits.get()
    for count, packet in enumerate(packet for packet in container.demux(stream) if packet.size):
        if limits and count >= limits.frames:
            raise VideoError(f"{container.name.removeprefix('file:')} has more than {limits.frames} frames; send a shorter clip")
        yield packet


def _check_length(path: Path, stream: VideoStream) -> None:
    """Refuse a file that ends before the frames that its own index lists; the demuxer would just stop there."""
    length = path.stat().st_size
    for entry in stream.index_entries:
        if entry.pos + entry.size > length:
            at = float(max(0, entry.timestamp) * _tick(stream))
            raise VideoError(f"{path} is cut off at {at:.2f} s: it has {length} bytes and its index lists more; copy it again")


def _frames(container: InputContainer, stream: VideoStream) -> Iterator[VideoFrame]:
    """Decode from where the container stands: from its start or from where a seek went."""
    packets = _packets(container, stream)
    entry = next((packet for packet in packets if packet.is_keyframe), None)
    return _frames_after(entry, packets, stream)


def _frames_from(timeline: _Timeline, index: int, container: InputContainer, stream: VideoStream) -> Iterator[VideoFrame]:
    """Seek to the keyframe that frame `index` needs and decode from there."""
    wanted = bisect_right(timeline.keys, timeline.times[index]) - 1
    for back in (0, 1, 2, 4):  # containers without an index (MPEG-TS) are searched by guess and may overshoot
        container.seek(timeline.keys[max(0, wanted - back)], stream=stream, backward=True)
        packets = _packets(container, stream)
        entry = next((packet for packet in packets if packet.is_keyframe), None)
        if entry is not None and entry.pts is not None and entry.pts <= timeline.keys[wanted]:
            return _frames_after(entry, packets, stream)
    return iter(())


def _frames_after(entry: av.Packet | None, packets: Iterable[av.Packet], stream: VideoStream) -> Iterator[VideoFrame]:
    """Decode keyframe `entry` and what follows.

    Frames that are shown before that keyframe but stored after it refer to frames that the decoder has not seen; nothing
    shown later refers to them, so they are left out.
    """
    if entry is None:
        return
    yield from entry.decode()
    for packet in packets:
        if packet.pts is None or entry.pts is None or packet.pts >= entry.pts:
            yield from packet.decode()
    yield from stream.codec_context.decode(None)


def _checked(frames: Iterable[VideoFrame], path: Path) -> Iterator[VideoFrame]:
    """Pass frames on; damage becomes a VideoError that says where."""
    import av

    first = last = None
    try:
        for frame in frames:
            if frame.time is not None:
                first = frame.time if first is None else first
                last = frame.time - first
            yield frame
    except av.FFmpegError as error:
        raise _damage(path, last, error.strerror) from None


def _damage(path: Path, seconds: float | None, reason: str | None) -> VideoError:
    where = "at its first frame" if seconds is None else f"after {max(0.0, seconds):.2f} s"
    return VideoError(f"{path} is damaged {where} ({reason}); expected a file that plays to its end, copy it again")


def upright_rgb(frame: VideoFrame) -> np.ndarray:
    """RGB uint8 [h, w, 3], turned by the quarter turns of the file's display matrix."""
    image = frame.to_ndarray(format="rgb24")
    turns = round(frame.rotation / 90) % 4
    return np.ascontiguousarray(np.rot90(image, turns)) if turns else image
