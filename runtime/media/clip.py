"""A video file in, T upright RGB frames out: `sample_frames(path, T, each)`.

`runtime.media.timeline` chooses the frames. A clip with fewer than T frames repeats some.

Times are read from the packets, without decoding and without relying on a frame count or duration in the file. Each run of sampled
frames is then decoded from the keyframe before it, or from the current position if the decoder is already past that keyframe. A file
whose packets don't tell its frames (no timestamps, hidden frames, one packet per field, concatenated files, keyframes where decoding
can't start) is decoded from the start instead, once to list its frames and once to read them; both ways give the same frames.
Pillow reads pictures and picture animations (`runtime.media.stills`).

Damage is never concealed, and the error gives its position in the clip (`runtime.media.decode`). Each frame is passed to `each` as
soon as it is decoded, so only one full-size frame is in memory.

T sampled frames, h, w rows and columns of a frame.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from runtime.core.errors import VideoError
from runtime.media import limits, stills
from runtime.media.container import check_file, interval_of
from runtime.media.decode import DamageError, damage, reading
from runtime.media.limits import DecodeLimits
from runtime.media.timeline import Timeline

__all__ = ["MAX_FRAMES", "Clip", "DecodeLimits", "check_file", "sample_frames", "sample_frames_limited"]

MAX_FRAMES = 4096

_SEEK_GAIN = 4  # frames that a seek must save: a flushed decoder needs about as long to return its first frame (benchmarks/seek.py)

Each = Callable[[np.ndarray], np.ndarray]
Frames = tuple[Mapping[int, np.ndarray], tuple[int, int]]  # {frame number: what `each` made of it}, (h, w)


@dataclass(frozen=True)
class Clip:
    """T frames sampled from a video file.

    frames        [T, ...], the results of `each`, in order
    indices       T frame numbers in the file, from 0
    timestamps    T presentation times in seconds after the file's first frame
    duration      seconds from the first frame to the end of the last
    total         frames in the file
    size          (h, w) of a frame, after rotation and mirroring
    has_gap       one gap makes up most of the clip, so frames were sampled by number
    cut           the file ends in the middle of a frame, which is dropped
    """

    path: Path
    frames: np.ndarray
    indices: tuple[int, ...]
    timestamps: tuple[float, ...]
    duration: float
    total: int
    size: tuple[int, int]
    has_gap: bool = False
    cut: bool = False

    @property
    def repeated(self) -> int:
        """How many of the T frames repeat an earlier one."""
        return len(self.indices) - len(set(self.indices))

    @property
    def notes(self) -> list[str]:
        """Remarks for the user about the sampled frames, one line each."""
        notes, frames = [], len(self.indices)
        if self.cut:
            notes.append(f"the file ends inside a frame: the clip is what comes before, {self.total} frames")
        if self.has_gap:
            notes.append("one gap between two frames is most of the clip, as after a wrong timestamp: frames are sampled by number")
        if self.repeated and self.total < frames:
            notes.append(f"the clip is shorter than {frames} frames: {self.repeated} are repeated")
        elif self.repeated:
            notes.append(f"the clip's frames are not shown equally long: {self.repeated} of {frames} sampled frames are repeated")
        return notes


def sample_frames_limited(path: str | Path, frames: int, each: Each, allowed: DecodeLimits) -> Clip:
    """`sample_frames` of an untrusted file; VideoError names the limit that it exceeds."""
    with limits.limited(allowed):
        return sample_frames(path, frames, each)


def sample_frames(path: str | Path, frames: int, each: Each) -> Clip:
    """Decode `frames` frames, evenly spread over the clip, and stack what `each(rgb uint8 [h, w, 3])` returns for them.

    VideoError for a count out of range, for a file that can't be opened or has no video, and, with the position in seconds, for one
    that is damaged where it must be decoded.
    """
    path = Path(path)
    if not 1 <= frames <= MAX_FRAMES:
        raise VideoError(f"{frames} frames asked of {path}; expected 1 to {MAX_FRAMES}")
    check_file(path)
    timeline, (images, size) = _take(path, frames, each)
    indices = timeline.sample(frames)
    return Clip(
        path=path,
        frames=np.stack([images[index] for index in indices]),
        indices=indices,
        timestamps=tuple(timeline.seconds(index) for index in indices),
        duration=float(timeline.span * timeline.tick),
        total=len(timeline.times),
        size=size,
        has_gap=timeline.has_gap,
        cut=timeline.cut,
    )


def _take(path: Path, frames: int, each: Each) -> tuple[Timeline, Frames]:
    """Read the frames the fastest way that works: seeking, then without seeks, then without relying on the packets."""
    if stills.is_still(path):
        with stills.opened(path) as picture:
            timeline = picture.timeline()
            taken = {index: each(picture.rgb(index)) for index in sorted(set(timeline.sample(frames)))}
            return timeline, (taken, picture.size)
    from_packets = _packet_timeline(path)
    if from_packets:
        for seek in (True, False):
            by_packets = _take_by_packets(path, from_packets, frames, each, seek)
            if by_packets:
                return from_packets, by_packets
    strict = True
    try:
        timeline = _decoded_timeline(path, strict)
    except DamageError:
        strict = False
        timeline = _decoded_timeline(path, strict)
        if not timeline.cut and list(_strictness(path)) == [True]:
            raise
    return timeline, _take_by_number(path, timeline, frames, each, strict)


def _take_by_packets(path: Path, timeline: Timeline, frames: int, each: Each, seek: bool) -> Frames | None:
    """`_take_by_time`, as strictly as the file allows; None if it finds damage or decoding can't start at the keyframes.

    Decoding from the start then decides.
    """
    for strict in _strictness(path):
        try:
            return _take_by_time(path, timeline, frames, each, strict, seek)
        except DamageError:
            continue
    return None


def _strictness(path: Path) -> Iterator[bool]:
    """True, then False if the file may fail strict decoding without being damaged; the file is inspected only then."""
    yield True
    with reading(path) as reader:
        warns = reader.warns
    if warns:
        yield False


def _packet_timeline(path: Path) -> Timeline | None:
    """The timeline according to the packets; None if they don't give the time of every frame."""
    durations: dict[int, int | None] = {}
    keys: list[int] = []
    sizes: list[int] = []
    with reading(path) as reader:
        reader.check_length()
        for packet in reader.packets():
            sizes.append(packet.size)
            if packet.pts is None or packet.pts in durations:
                return None
            if packet.is_keyframe:
                if keys and packet.pts < keys[-1]:
                    return None  # the clock restarts: concatenated files
                keys.append(packet.pts)
            # Frames before the first keyframe can't be decoded; those that an edit list cuts are decoded but not shown.
            if keys and packet.pts >= keys[0] and not packet.is_discard:
                durations[packet.pts] = packet.duration
        reader.check_index(sizes)
        times = sorted(durations)
        if not times:
            return None
        return Timeline.of(times, durations[times[-1]], reader.stream.average_rate, reader.tick, keys, reader.cut)


def _take_by_time(path: Path, timeline: Timeline, frames: int, each: Each, strict: bool, seek: bool) -> Frames | None:
    """Read the sampled frames by their times; None if a frame that the packets announced does not appear."""
    taken: dict[int, np.ndarray] = {}
    size = (0, 0)
    wanted = sorted(set(timeline.sample(frames)))
    with reading(path, strict) as reader:
        codec = reader.stream.codec_context
        if seek:
            limits.check_decoded(path, _decoded_by_seeking(timeline, wanted), codec.width, codec.height)
        decoded = reader.checked(reader.frames())
        position = -1  # the last frame that the decoder returned
        for index in wanted:
            time = timeline.times[index]
            if seek and timeline.entry(index) > position + _SEEK_GAIN:
                key = bisect_right(timeline.keys, time) - 1
                earlier = [timeline.keys[max(0, key - back)] for back in (1, 2, 4)]
                decoded = reader.checked(reader.frames_from(timeline.keys[key], earlier))
            frame = next((frame for frame in decoded if frame.pts is not None and frame.pts >= time), None)
            if frame is None or frame.pts != time:
                return None
            image = reader.rgb(frame)
            taken[index], size, position = each(image), image.shape[:2], index
    return taken, size


def _decoded_by_seeking(timeline: Timeline, wanted: list[int]) -> int:
    """How many frames must be decoded to reach the wanted ones."""
    count, position = 0, -1
    for index in wanted:
        entry = timeline.entry(index)
        count += index - (entry - 1 if entry > position + _SEEK_GAIN else position)
        position = index
    return count


def _decoded_timeline(path: Path, strict: bool = True) -> Timeline:
    """The timeline found by decoding the whole file. Concatenated files follow one another without a gap."""
    times: list[int] = []
    known, shift, duration = True, 0, None
    with reading(path, strict, threads=False) as reader:  # reads to the end, which would be decoded twice with threads
        rate = reader.stream.average_rate
        for frame in reader.checked(reader.frames()):
            if frame.pts is None:
                known = False
            elif times and frame.pts + shift <= times[-1] and frame.key_frame:
                shift = times[-1] + (duration or (times[-1] - times[-2] if len(times) > 1 else 1)) - frame.pts
            time = len(times) if frame.pts is None else frame.pts + shift
            known = known and (not times or time > times[-1])
            times.append(time)
            duration = frame.duration
        if not times:
            raise VideoError(
                f"{path} has a video stream without a frame that can be decoded (no keyframe, or none with its headers); "
                "expected at least one frame"
            )
        if known:
            return Timeline.of(times, duration, rate, reader.tick, cut=reader.cut)
        return Timeline.of(range(len(times)), 1, rate, interval_of(reader.stream), cut=reader.cut)


def _take_by_number(path: Path, timeline: Timeline, frames: int, each: Each, strict: bool) -> Frames:
    """Read the sampled frames by number, decoding from the start."""
    wanted = set(timeline.sample(frames))
    taken: dict[int, np.ndarray] = {}
    size = (0, 0)
    with reading(path, strict) as reader:
        for index, frame in enumerate(reader.checked(reader.frames())):
            if index in wanted:
                image = reader.rgb(frame)
                taken[index], size = each(image), image.shape[:2]
                if len(taken) == len(wanted):
                    return taken, size
    raise damage(path, None, "it gave other frames when it was read again")
