"""Packets to frames: where decoding can start, where several files were concatenated, and what counts as damage.

Damage is an error in a frame that is shown, and it is never concealed: the decoder flags a frame whose data it could not read, or
rejects the packet, and the error gives the position in the clip. FFmpeg's "explode" mode catches slightly more, but also turns
H.264 warnings into errors. Decoding therefore starts out strict and, if that fails, may be repeated without it, in a single thread,
because a multithreaded decoder can return a frame before it has set the frame's flags. Frames that the threads still hold at the end
are decoded in a single thread for the same reason. (Not detected: a slice missing from an H.264 frame inside a clip with B-frames,
which the decoder does not report.) The following are not damage:

- frames of an open GOP that are shown before its keyframe, when decoding starts at that keyframe: they refer to earlier frames, no
  later frame refers to them, and they are dropped;
- the last packet of a file that ends in the middle of it, like a recording that was stopped: its frame is dropped and `Reader.cut`
  is set (except in an unfragmented mp4, whose index lists every frame: such a file was only partly copied);
- the seam between concatenated transport streams: the demuxer marks a packet there although nothing is missing. The mark comes one
  packet early because the parser lags by one, so a mark on the second-to-last packet before a keyframe is left to the decoder, and a
  mark anywhere else is a loss.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from itertools import chain, islice, tee, zip_longest
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from runtime.core.errors import VideoError
from runtime.media import gif, limits
from runtime.media.container import is_fragmented, opened, tick_of
from runtime.media.orientation import upright_rgb

_LAST = "last"  # the `opaque` value of the last packet of a file, and of its frame

if TYPE_CHECKING:
    import av
    from av.container import InputContainer
    from av.video.frame import VideoFrame
    from av.video.stream import VideoStream


class DamageError(VideoError):
    """An error in a frame that is shown, or missing packets."""


@contextmanager
def reading(path: Path, strict: bool = True, threads: bool = True) -> Iterator[Reader]:
    """Open the video stream of `path`.

    strict: decoder warnings are errors too, and decoding is multithreaded; otherwise only the flags of a frame reveal damage.
    threads: whether frames may be decoded in parallel.
    """
    with opened(path, strict, threads) as (container, stream):
        yield Reader(path, container, stream)


class Reader:
    """The video stream of an open file.

    cut     whether the file ended in the middle of a packet, which was dropped
    warns   whether strict decoding can fail because of data that is never shown, such as unused references and metadata
    """

    def __init__(self, path: Path, container: InputContainer, stream: VideoStream):
        self.path, self.container, self.stream = path, container, stream
        self.tick = tick_of(stream)
        self.cut = False
        self._complete_frames = gif.frames_before_cut(path) if container.format.name == "gif" else None
        self.warns = stream.codec_context.name in ("h264", "tiff")
        stream.codec_context.copy_opaque = True  # from each packet to its frame

    def packets(self) -> Iterator[av.Packet]:
        """Packets from the current position on.

        VideoError if packets other than the last are missing or incomplete, or if the demuxer cannot read the file.
        """
        import av

        codec = self.stream.codec_context
        first: av.Packet | None = None  # the first keyframe
        broken: av.Packet | None = None  # the first marked packet
        packet: av.Packet | None = None
        packets = (packet for packet in self._demuxed() if packet.size)
        try:
            for count, (packet, *next_two) in enumerate(_with_two_more(islice(packets, self._complete_frames)), 1):
                following = [packet for packet in next_two if packet is not None]
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
        self.cut = self.cut or broken is not None or self._complete_frames is not None

    def _demuxed(self) -> Iterator[av.Packet]:
        try:
            yield from self.container.demux(self.stream)
        except IndexError:  # at the end PyAV flushes streams that start in the middle of the file, which it has no entry for
            return

    def _at_joint(self, following: list[av.Packet]) -> bool:
        """Whether a marked packet comes right before a keyframe without a gap in time, or where the clock restarts."""
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
        """Decode from the current position: the start of the file or the target of a seek."""
        packets = self.packets()
        entry = next((packet for packet in packets if packet.is_keyframe), None)
        return self.frames_after(entry, packets, Reader.frames)

    def frames_from(self, key: int, earlier: Iterable[int]) -> Iterator[VideoFrame]:
        """Seek to the keyframe at `key` and decode from there.

        earlier: keyframes to try if the seek overshoots, which happens in containers without an index (MPEG-TS).
        """
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
        """Decode keyframe `entry` and what follows it, without the frames of its GOP that are shown before it.

        At the end, decoder threads flush the frames they still hold without their final flags, and PyAV swallows their errors. Those
        frames are taken from `again` on a single-threaded reader instead.
        """
        from av.codec.context import ThreadType

        if entry is None:
            return
        sent = received = 0
        for packet in self._shown(entry, packets):
            sent += not packet.is_discard
            frames = packet.decode()
            received += len(frames)
            yield from frames
        threads = self.stream.thread_type & ThreadType.FRAME
        held = self.stream.codec_context.decode(None)
        if not threads:
            yield from held
        elif held or received < sent:
            with reading(self.path, threads=False) as reader:
                yield from islice(again(reader), received, None)
                self.cut = self.cut or reader.cut

    @staticmethod
    def _shown(entry: av.Packet, packets: Iterable[av.Packet]) -> Iterator[av.Packet]:
        """`entry` and the packets after it, without those of its GOP that are shown before it."""
        yield entry
        leading = True
        for packet in packets:
            leading = leading and not packet.is_keyframe
            if not (leading and packet.pts is not None and entry.pts is not None and packet.pts < entry.pts):
                yield packet

    def checked(self, frames: Iterable[VideoFrame]) -> Iterator[VideoFrame]:
        """Yield the same frames; raise a VideoError with the position at damage."""
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
                if frame.pts is not None:  # frame.time_base is wrong after a flush
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
        """Refuse an mp4 that is shorter than its own index says; the demuxer would silently stop there."""
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
        """Refuse an AVI whose index lists packets that were not among those read (of `sizes`): the demuxer skips unreadable ones."""
        if self.container.format.name != "avi":
            return
        listed = [(entry.size, entry.timestamp) for entry in self.stream.index_entries if entry.size]
        if len(sizes) < len(listed):
            lost = next((time for size, (other, time) in zip(sizes, listed) if size != other), None)  # noqa: B905
            if lost is not None:
                raise damage(self.path, float((lost - listed[0][1]) * self.tick), "packets are missing or incomplete")
            self.cut = True


def _with_two_more(packets: Iterable[av.Packet]) -> Iterator[tuple[av.Packet, av.Packet | None, av.Packet | None]]:
    """Each packet together with the two after it, None where there are fewer."""
    first, second, third = tee(packets, 3)
    return zip_longest(first, islice(second, 1, None), islice(third, 2, None))


def damage(path: Path, seconds: float | None, reason: str | None) -> DamageError:
    """The error for damage `seconds` after the first frame; None for the first frame itself."""
    where = "at its first frame" if seconds is None else f"after {max(0.0, seconds):.2f} s"
    return DamageError(f"{path} is damaged {where} ({reason}); expected a file that plays to its end, copy it again")
