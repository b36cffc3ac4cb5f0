"""Packets to frames: where decoding may begin, where a file was joined from several, and what counts as damage.

Damage is an error in a picture that is shown. It is never concealed: the decoder flags a frame whose data it could not read, or
refuses the packet, and the error says where in the clip that was. FFmpeg's "explode" finds a little more of it, but turns H.264's
warnings into errors too. So decoding is strict first, and where that fails it may be repeated without: in one thread, because a
decoder with threads may hand a frame out before it has set the flags. The frames that threads still hold at the end are decoded in
one thread for the same reason. (What is left to luck: an H.264 picture inside a clip with B-frames that lacks a slice, which is no
error to the decoder.) These are not damage:

- pictures of an open group that are shown before its keyframe when decoding begins there: they refer to what came before
  and nothing shown later refers to them, so they are left out;
- the last packet of a file that ends inside it, as a recording that was stopped: its picture is left out, and `Reader.cut` says so
  (an mp4 without fragments is the exception: its index lists every frame, so it was copied in part);
- the joint of transport streams that were put one behind the other: the demuxer marks a packet, though nothing of it is lost. Its
  mark comes a packet early, because the parser is one behind; so a mark on the last packet but one before a keyframe is left to the
  decoder to judge, and any other is a loss.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from runtime.core.errors import VideoError
from runtime.media import gif, limits
from runtime.media.container import is_fragmented, opened, tick_of
from runtime.media.orientation import upright_rgb

_LAST = "last"  # what a file's last packet carries, and the frame of it

if TYPE_CHECKING:
    import av
    from av.container import InputContainer
    from av.video.frame import VideoFrame
    from av.video.stream import VideoStream


class DamageError(VideoError):
    """An error in a picture that is shown, or packets that are missing."""


@contextmanager
def reading(path: Path, strict: bool = True, threads: bool = True) -> Iterator[Reader]:
    """strict: a warning of the decoder ends the reading too, and it works in threads; else a frame's flags alone tell of damage.
    threads: whether frames may be decoded side by side."""
    with opened(path, strict, threads) as (container, stream):
        yield Reader(path, container, stream)


class Reader:
    """The video stream of an open file.

    cut     whether the packets so far ended inside one, which was left out
    warns   whether strict decoding may fail at what is not shown: references and metadata that a picture doesn't need
    """

    def __init__(self, path: Path, container: InputContainer, stream: VideoStream):
        self.path, self.container, self.stream = path, container, stream
        self.tick = tick_of(stream)
        self.cut = False
        self._whole_frames = gif.frames_before_cut(path) if container.format.name == "gif" else None
        self.warns = stream.codec_context.name in ("h264", "tiff")
        stream.codec_context.copy_opaque = True  # from a packet to its frame

    def packets(self) -> Iterator[av.Packet]:
        """Packets from where the container stands; VideoError where some are missing or incomplete, but for the last, and where the
        demuxer finds what it can't read."""
        import av

        codec = self.stream.codec_context
        first: av.Packet | None = None  # the first keyframe
        broken: av.Packet | None = None  # the first marked packet
        packet: av.Packet | None = None
        packets = (packet for packet in self._demuxed() if packet.size)
        try:
            for count, (packet, *following) in enumerate(_with_two_more(islice(packets, self._whole_frames)), 1):
                limits.check_frames(self.path, count)
                if self.container.format.name == "gif":
                    limits.check_animation(self.path, count, codec.width, codec.height)
                if packet.has_sidedata("encryption_info"):
                    raise VideoError(f"{self.path} is encrypted; expected a video without copy protection")
                if packet.is_corrupt and not (first is None and following) and not self._at_joint(following):
                    broken = broken or packet
                elif broken and len(following) == 2:  # the file goes on
                    raise damage(self.path, self._seconds(broken, first), "packets are missing or incomplete")
                elif not broken:
                    first = first or (packet if packet.is_keyframe else None)
                    packet.opaque = None if following else _LAST
                    yield packet
        except av.FFmpegError as error:
            raise damage(self.path, self._seconds(packet, first), error.strerror) from None
        self.cut = self.cut or broken is not None or self._whole_frames is not None

    def _demuxed(self) -> Iterator[av.Packet]:
        try:
            yield from self.container.demux(self.stream)
        except (
            IndexError
        ):  # behind the last packet PyAV flushes streams that begin in the middle of the file, and knows none of them
            return

    def _at_joint(self, following: list[av.Packet]) -> bool:
        """Whether a marked packet stands before a keyframe, and no picture before that is missing, unless a new clock begins there."""
        if len(following) < 2 or not following[1].is_keyframe:
            return False
        before, key = following
        if before.dts is None or key.dts is None or not before.duration:
            return True
        gap = key.dts - before.dts
        return not 1.5 * before.duration < gap < 1 / self.tick

    def _seconds(self, packet: av.Packet | None, first: av.Packet | None) -> float | None:
        if packet is None or first is None or first.pts is None or packet.pts is None:
            return None
        return float((packet.pts - first.pts) * self.tick)

    def frames(self) -> Iterator[VideoFrame]:
        """Decode from where the container stands: from its start or from where a seek went."""
        packets = self.packets()
        entry = next((packet for packet in packets if packet.is_keyframe), None)
        return self.frames_after(entry, packets, Reader.frames)

    def frames_from(self, key: int, earlier: Iterable[int]) -> Iterator[VideoFrame]:
        """Seek to the keyframe at `key` and decode from there; `earlier` are keyframes to seek to where that overshoots, as it
        may in containers without an index (MPEG-TS), which are searched by guess."""
        for target in chain([key], earlier):
            self.container.seek(target, stream=self.stream, backward=True)
            packets = self.packets()
            entry = next((packet for packet in packets if packet.is_keyframe), None)
            if entry is not None and entry.pts is not None and entry.pts <= key:
                yield from self.frames_after(entry, packets, lambda reader: reader.frames_from(key, earlier))
                return

    def frames_after(
        self, entry: av.Packet | None, packets: Iterable[av.Packet], again: Callable[[Reader], Iterator[VideoFrame]]
    ) -> Iterator[VideoFrame]:
        """Decode keyframe `entry` and what follows, but for the pictures of its group that are shown before it.

        At the end threads hand out the frames that they still hold, without the flags that a decoder sets last, and PyAV keeps their
        errors to itself. So these frames are what `again` gives in a reader without threads.
        """
        from av.codec.context import ThreadType

        if entry is None:
            return
        given = taken = 0
        for packet in self._shown(entry, packets):
            given += not packet.is_discard
            frames = packet.decode()
            taken += len(frames)
            yield from frames
        threads = self.stream.thread_type & ThreadType.FRAME
        held = self.stream.codec_context.decode(None)
        if not threads:
            yield from held
        elif held or taken < given:
            with reading(self.path, threads=False) as reader:
                yield from islice(again(reader), taken, None)
                self.cut = self.cut or reader.cut

    @staticmethod
    def _shown(entry: av.Packet, packets: Iterable[av.Packet]) -> Iterator[av.Packet]:
        """`entry` and the packets after it, without those of its group that are shown before it."""
        yield entry
        leading = True
        for packet in packets:
            leading = leading and not packet.is_keyframe
            if not (leading and packet.pts is not None and entry.pts is not None and packet.pts < entry.pts):
                yield packet

    def checked(self, frames: Iterable[VideoFrame]) -> Iterator[VideoFrame]:
        """Pass frames on; damage becomes a VideoError that says where."""
        import av

        first: int | None = None
        last: float | None = None  # seconds after the first
        try:
            for count, frame in enumerate(frames, 1):
                limits.check_decoded(self.path, count, frame.width, frame.height)
                if frame.is_corrupt and frame.opaque == _LAST:
                    self.cut = True
                    continue
                if frame.is_corrupt:
                    raise damage(self.path, last, "a picture can't be decoded")
                if frame.pts is not None:  # its time base is wrong where the decoder was flushed
                    first = frame.pts if first is None else first
                    last = float((frame.pts - first) * self.tick)
                yield frame
        except av.FFmpegError as error:
            allowed = limits.current()
            or_large = f", or frames of more than {allowed.pixels} pixels" if allowed else ""
            raise damage(self.path, last, f"{error.strerror}{or_large}") from None

    def rgb(self, frame: VideoFrame) -> np.ndarray:
        """RGB uint8 [h, w, 3], upright."""
        return upright_rgb(frame, self.stream.codec_context.name)

    def check_length(self) -> None:
        """Refuse an mp4 that ends before the frames that its own index lists; the demuxer would just stop there."""
        if not self.container.format.name.startswith("mov") or is_fragmented(self.path):
            return
        length = self.path.stat().st_size
        for entry in self.stream.index_entries:
            if entry.pos + entry.size > length:
                at = float(max(0, entry.timestamp) * self.tick)
                raise VideoError(
                    f"{self.path} is cut off at {at:.2f} s: it has {length} bytes and its index lists more; copy it again"
                )

    def check_index(self, sizes: list[int]) -> None:
        """Refuse an AVI whose index lists packets between those that were read, of `sizes`: the demuxer skips what it can't read."""
        if self.container.format.name != "avi":
            return
        listed = [(entry.size, entry.timestamp) for entry in self.stream.index_entries if entry.size]
        if len(sizes) < len(listed):
            lost = next((time for size, (other, time) in zip(sizes, listed) if size != other), None)  # noqa: B905
            if lost is not None:
                raise damage(self.path, float((lost - listed[0][1]) * self.tick), "packets are missing or incomplete")
            self.cut = True


def _with_two_more(packets: Iterable[av.Packet]) -> Iterator[deque[av.Packet]]:
    """Each packet with the two after it, fewer at the end."""
    window: deque[av.Packet] = deque()
    for packet in packets:
        window.append(packet)
        if len(window) == 3:
            yield window
            window.popleft()
    while window:
        yield window
        window.popleft()


def damage(path: Path, seconds: float | None, reason: str | None) -> DamageError:
    """seconds: after the first frame; None at the first."""
    where = "at its first frame" if seconds is None else f"after {max(0.0, seconds):.2f} s"
    return DamageError(f"{path} is damaged {where} ({reason}); expected a file that plays to its end, copy it again")
