"""What is damage and what is not: open groups entered inside, recordings that end inside a frame, joints, and real losses."""

from __future__ import annotations

import subprocess
import sys
from fractions import Fraction
from itertools import chain, islice, repeat
from pathlib import Path
from types import SimpleNamespace

import av
import numpy as np
import pytest
from PIL import Image
from refusal import naming
from video_files import decoded_by, frames_of, pattern, write_video, write_without_its_last_slice

from runtime.core.errors import VideoError
from runtime.media import clip as video
from runtime.media.clip import sample_frames
from runtime.media.decode import _LAST, DamageError, Reader, _with_two_more, reading
from runtime.media.limits import DecodeLimits, limited
from runtime.media.stream import Stream

# x264's own settings for an open group: its first pictures tell the decoder to drop references that a cut took away.
OPEN = {"g": "24", "bf": "2", "x264-params": "open-gop=1:scenecut=0"}


def seen(path, count: int | None = None) -> tuple[video.Clip, list[np.ndarray]]:
    """All frames, or `count`."""
    clip = sample_frames(path, count or sample_frames(path, 1, lambda image: image).total, lambda image: image)
    return clip, list(clip.frames)


@pytest.fixture(scope="module")
def open_group(tmp_path_factory) -> Path:
    return write_video(tmp_path_factory.mktemp("open") / "open.ts", pattern(96), rate=25, options=OPEN)


@pytest.mark.parametrize("part", [0.2, 1 / 3, 0.45, 0.6])
def test_an_open_group_that_is_cut_anywhere_begins_at_its_first_keyframe(open_group, tmp_path, part):
    content = open_group.read_bytes()
    cut = tmp_path / "cut.ts"
    cut.write_bytes(content[int(len(content) / 188 * part) * 188 :])
    whole = frames_of(open_group)
    clip, frames = seen(cut)
    assert clip.total % 24 == 0 and 24 <= clip.total < 96  # whole groups: nothing that is shown before the keyframe
    np.testing.assert_array_equal(frames, whole[96 - clip.total :])


def test_an_open_group_that_is_cut_is_read_by_number_too(open_group, tmp_path, monkeypatch):
    """Strict decoding fails there, at references that were cut away and that no shown picture needs."""
    content = open_group.read_bytes()
    cut = tmp_path / "cut.ts"
    cut.write_bytes(content[len(content) // 188 * 2 // 3 * 188 :])
    monkeypatch.setattr(video, "_packet_timeline", lambda path: None)
    clip = sample_frames(cut, 4, lambda image: image)
    assert clip.total == 24
    np.testing.assert_array_equal(clip.frames, frames_of(open_group)[96 - 24 :: 6])


def test_open_groups_are_entered_by_seeking(tmp_path, monkeypatch):
    path = write_video(tmp_path / "open.mp4", pattern(96), options=OPEN)
    monkeypatch.setattr(video, "_decoded_timeline", lambda *_: pytest.fail("decoded from the start"))
    decoded = decoded_by(monkeypatch)
    clip, frames = seen(path, 4)
    np.testing.assert_array_equal(frames, [frames_of(path)[index] for index in clip.indices])
    assert len(decoded) < 48


def test_pictures_that_are_shown_before_the_entry_are_not_decoded(tmp_path):
    """Whatever a decoder would make of them: FFmpeg's drop most by themselves."""
    path = write_video(tmp_path / "open.ts", pattern(48), rate=25, options=OPEN)
    with av.open(str(path)) as container:
        packets = [packet for packet in container.demux(video=0) if packet.size]
        second = [index for index, packet in enumerate(packets) if packet.is_keyframe][1]
        entry, *others = packets[second:]
        leading = [packet for packet in others if packet.pts < entry.pts]
        assert leading
        sent = [packet.pts for packet in Reader._shown(entry, others)]
    assert sent == [entry.pts, *(packet.pts for packet in others if packet.pts >= entry.pts)]


FRAGMENTED = {"movflags": "frag_keyframe+empty_moov"}


@pytest.mark.parametrize(
    ("name", "codec", "options", "container"),
    [
        ("clip.mp4", "libx264", {"g": "12", "bf": "2"}, FRAGMENTED),
        ("listed.mp4", "libx264", {"g": "12", "bf": "2"}, {"movflags": "frag_keyframe"}),  # its first frames stand in an index
        ("clip.ts", "libx264", {"g": "12", "bf": "2"}, {}),
        ("clip.mkv", "libx264", {"g": "12", "bf": "2"}, {}),
        ("clip.flv", "flv", {"g": "12"}, {}),
        ("clip.avi", "mpeg4", {"g": "12"}, {}),
        ("clip.nut", "mpeg4", {"g": "12"}, {}),
        ("clip.h264", "libx264", {"g": "12", "bf": "2"}, {}),
    ],
)
def test_a_recording_that_ends_inside_a_frame_is_its_frames_before(tmp_path, name, codec, options, container):
    path = write_video(tmp_path / name, pattern(36), codec, options=options, container_options=container)
    whole = {frame.tobytes() for frame in frames_of(path)}
    content = path.read_bytes()
    said = False
    for part in (0.75, 0.84, 0.92):
        path.write_bytes(content[: int(len(content) * part)])
        clip, frames = seen(path)
        assert 5 <= clip.total < 36 and all(frame.tobytes() in whole for frame in frames)
        assert clip.cut == any("the file ends inside a frame" in note for note in clip.notes)
        said |= clip.cut
    assert said or name in ("clip.ts", "clip.mkv", "clip.h264")  # where FFmpeg leaves the rest out without a word


def test_a_part_of_the_last_frame_takes_none_of_those_before_it_away(open_group, tmp_path):
    """Threads still hold some of them when the error comes."""
    with av.open(str(open_group)) as container:
        packets = [packet for packet in container.demux(video=0) if packet.size]
    with av.open(str(open_group)) as container:
        whole = {frame.pts: frame.to_ndarray(format="rgb24", interpolation="BICUBIC") for frame in container.decode(video=0)}
    last = max(range(30, 90), key=lambda index: packets[index].size * (not packets[index].is_keyframe))
    cut = tmp_path / "cut.ts"
    cut.write_bytes(open_group.read_bytes()[: packets[last].pos + packets[last].size // 2 // 188 * 188])
    shown = sorted(packet.pts for packet in packets[:last])
    clip, frames = seen(cut, 128)
    assert clip.cut and clip.total == len(shown)
    np.testing.assert_array_equal(frames, [whole[shown[index]] for index in clip.indices])


def test_a_gif_that_ends_inside_a_frame_is_its_frames_before(tmp_path):
    images = [Image.fromarray(image) for image in pattern(6)]
    path = tmp_path / "whole.gif"
    images[0].save(path, save_all=True, append_images=images[1:], duration=100)
    content = path.read_bytes()
    _, whole = seen(path)
    for part in (3, 5, 7, 9, 11):
        cut = tmp_path / f"{part}.gif"
        cut.write_bytes(content[: len(content) * part // 12])
        clip, frames = seen(cut)
        assert clip.cut and clip.total == part // 2, part  # the pattern's frames are equally large
        np.testing.assert_array_equal(frames, whole[: clip.total])
    (tmp_path / "whole.gif").write_bytes(content[:-1])  # without its trailer, all frames are there
    assert not seen(path)[0].cut and seen(path)[0].total == 6


def test_an_mp4_whose_index_stands_at_its_end_is_not_all_there(tmp_path):
    path = write_video(tmp_path / "clip.mp4", pattern(36))
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(VideoError, match=naming(path, "video")):
        sample_frames(path, 4, lambda image: image)


def test_a_transport_stream_that_lost_packets_is_damaged_or_whole(open_group, tmp_path):
    """Wherever two packets are lost; around keyframes, where a mark may be that of a joint, too."""
    content, whole = open_group.read_bytes(), {frame.tobytes() for frame in frames_of(open_group)}
    packets = len(content) // 188
    refused, lossy = 0, tmp_path / "lossy.ts"
    for part in range(10, 90, 4):
        at = packets * part // 100 * 188
        lossy.write_bytes(content[:at] + content[at + 2 * 188 :])
        try:
            clip, frames = seen(lossy)
        except VideoError as error:
            assert "is damaged after" in str(error)
            refused += 1
        else:
            assert clip.total == 96 and all(frame.tobytes() in whole for frame in frames)
    assert refused >= 15


def test_what_a_demuxer_cant_read_is_damage_wherever_the_file_is_read(tmp_path):
    """An H.264 tag too short for its own header, and a transport stream with zeros where its next packet should begin."""
    flash = write_video(tmp_path / "clip.flv", pattern(6, 64, 64))
    transport = write_video(tmp_path / "clip.ts", pattern(6, 64, 64), "mpeg2video")
    tags, short = flash.read_bytes(), b"\t\0\0\2" + bytes(7) + b"\x27\1" + b"\0\0\0\r"
    flash.write_bytes(tags[:13] + short + tags[13:])
    transport.write_bytes(transport.read_bytes()[: 3 * 188] + bytes(188))
    for path in (flash, transport):
        for read in (lambda path: sample_frames(path, 4, lambda image: image), lambda path: list(Stream(str(path)))):
            with pytest.raises(DamageError, match=naming(path, "first frame")):
                read(path)


def test_a_seek_that_fails_is_damage(tmp_path):
    path = write_video(tmp_path / "clip.flv", pattern(4))
    with reading(path) as reader, pytest.raises(DamageError, match=naming(path, "first frame")):
        next(reader.checked(reader.frames_from(-1000, [])))


def test_what_is_damage_does_not_depend_on_how_threads_run(tmp_path):
    """MPEG-4, whose decoder flags a frame while another thread decodes the next."""
    path = write_video(tmp_path / "clip.nut", pattern(40, 64, 64), "mpeg4", options={"g": "10", "bf": "2"})
    content = path.read_bytes()
    at = len(content) // 4
    path.write_bytes(content[:at] + bytes(byte ^ 0x55 for byte in content[at : at + 8]) + content[at + 8 :])
    said = set()
    for _ in range(20):
        try:
            said.add(sample_frames(path, 8, lambda image: image).frames.tobytes())
        except VideoError as error:
            said.add(str(error))
    assert len(said) == 1


def test_a_last_picture_without_one_of_its_slices_is_left_out_however_threads_run(tmp_path):
    """The decoder calls it no error, and flags the picture when a thread may have handed it out already."""
    path = write_without_its_last_slice(tmp_path / "clip.mkv")
    with av.open(str(path)) as container:
        container.streams.video[0].thread_type = "NONE"
        shown = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0) if not frame.is_corrupt]
    for _ in range(20):
        clip, frames = seen(path, 6)
        assert (clip.total, clip.cut, clip.indices) == (5, True, (0, 0, 1, 2, 3, 4))
        np.testing.assert_array_equal(frames[1:], shown)


def test_a_file_that_gives_fewer_frames_when_it_is_read_again_is_refused_in_one_line(tmp_path, monkeypatch):
    path = write_video(tmp_path / "clip.h264", pattern(6))
    decoded = Reader.frames
    monkeypatch.setattr(Reader, "frames", lambda self: islice(decoded(self), next(counts)))
    counts = chain([6], repeat(3))
    with pytest.raises(DamageError, match=naming(path, "first frame", "read again")):
        sample_frames(path, 6, lambda image: image)


_ONE_CPU = """
import os, sys
os.sched_setaffinity(0, {0})
sys.path[:0] = ["tests"]
from pathlib import Path
from video_files import pattern, write_video
from runtime.core.errors import VideoError
from runtime.media.clip import sample_frames
path = write_video(Path(sys.argv[1]), pattern(90), "mpeg4", options={"bf": "2", "g": "10"})
content = bytearray(path.read_bytes())
content[len(content) // 2 : len(content) // 2 + len(content) // 20] = bytes(len(content) // 20)
path.write_bytes(content)
try:
    print(sample_frames(path, 16, lambda image: image).total)
except VideoError as error:
    print(error)
"""


@pytest.mark.skipif(not hasattr(__import__("os"), "sched_setaffinity"), reason="the system sets no affinity")
def test_damage_is_told_on_one_cpu_too(tmp_path):
    """One thread writes an MPEG-4 frame as one slice, so that the damage takes frames away and the rest decodes well."""
    done = subprocess.run([sys.executable, "-c", _ONE_CPU, str(tmp_path / "clip.avi")], capture_output=True, text=True, check=True)
    assert "is damaged after" in done.stdout and "packets are missing" in done.stdout


@pytest.fixture
def indexed():
    """indexed(container): a reader of 25 frames a second whose index lists packets of 100, 50, 60 and 70 bytes, one frame being empty."""

    def reader(container: str) -> Reader:
        one = Reader.__new__(Reader)
        entries = [SimpleNamespace(size=size, timestamp=time) for time, size in enumerate((100, 0, 50, 60, 70))]
        one.path, one.tick, one.cut = Path("clip.avi"), Fraction(1, 25), False
        one.container = SimpleNamespace(format=SimpleNamespace(name=container))
        one.stream = SimpleNamespace(index_entries=entries)
        return one

    return reader


@pytest.mark.parametrize(("sizes", "at"), [([100, 60, 70], "0.08"), ([50, 60, 70], "0.00"), ([100, 50, 70], "0.12")])
def test_a_packet_that_an_avi_lists_and_was_not_read_is_damage_at_its_time(indexed, sizes, at):
    with pytest.raises(DamageError, match=naming("clip.avi", f"{at} s", "packets")):
        indexed("avi").check_index(sizes)


@pytest.mark.parametrize(
    ("container", "sizes", "cut"),
    [("avi", [100, 50, 60, 70], False), ("avi", [100, 50], True), ("avi", [], True), ("matroska", [100, 60, 70], False)],
)
def test_an_avi_whose_last_packets_alone_were_not_read_is_cut_off(indexed, container, sizes, cut):
    reader = indexed(container)
    reader.check_index(sizes)
    assert reader.cut is cut


def _frame(pts: int | None, corrupt: bool = False, opaque: str | None = None, size: int = 8) -> SimpleNamespace:
    return SimpleNamespace(pts=pts, is_corrupt=corrupt, opaque=opaque, width=size, height=size)


class TestChecked:
    """What is made of frames as a decoder gives them."""

    def checked(self, reader: Reader, *frames: SimpleNamespace | Exception) -> list[int | None]:
        def given():
            for frame in frames:
                if isinstance(frame, Exception):
                    raise frame
                yield frame

        return [frame.pts for frame in reader.checked(given())]

    def test_whole_frames_pass(self, indexed):
        reader = indexed("mov")
        assert self.checked(reader, _frame(7), _frame(None), _frame(9)) == [7, None, 9] and not reader.cut

    def test_the_last_frame_may_be_cut_and_is_left_out(self, indexed):
        reader = indexed("mov")
        assert self.checked(reader, _frame(0), _frame(1, True, _LAST)) == [0] and reader.cut

    @pytest.mark.parametrize(
        ("frames", "where"),
        [
            ([_frame(5, True)], "first frame"),
            ([_frame(None), _frame(5, True)], "first frame"),
            ([_frame(5), _frame(6, True)], "0.00 s"),
            ([_frame(50), _frame(75), _frame(None), _frame(76, True)], "1.00 s"),
            ([_frame(50), _frame(25), _frame(76, True)], "0.00 s"),
        ],
    )
    def test_another_frame_that_is_corrupt_is_damage_after_the_one_before(self, indexed, frames, where):
        with pytest.raises(DamageError, match=naming("clip.avi", where, "decoded")):
            self.checked(indexed("mov"), *frames)

    def test_what_the_decoder_says_is_handed_on_with_the_limit_that_it_may_mean(self, indexed):
        error = av.error.InvalidDataError(1, "Invalid data")
        with pytest.raises(DamageError, match=naming("clip.avi", "0.40 s", "Invalid data")):
            self.checked(indexed("mov"), _frame(0), _frame(10), error)
        limits = limited(DecodeLimits(pixels=64))
        with limits, pytest.raises(DamageError, match=naming("clip.avi", "Invalid data", "64 pixels")):
            self.checked(indexed("mov"), _frame(0), error)

    def test_frames_are_counted_against_the_limits(self, indexed):
        with limited(DecodeLimits(decoded_pixels=2 * 64)), pytest.raises(VideoError, match="needs 3 frames of 8x8 decoded"):
            self.checked(indexed("mov"), _frame(0), _frame(1), _frame(2))


def _packet(dts: int | None, key: bool = False, duration: int | None = 2) -> SimpleNamespace:
    return SimpleNamespace(dts=dts, pts=dts, is_keyframe=key, duration=duration)


@pytest.mark.parametrize(
    ("following", "joint"),
    [
        ([], False),
        ([_packet(0)], False),
        ([_packet(0), _packet(2)], False),
        ([_packet(0), _packet(2, key=True)], True),
        ([_packet(0), _packet(3, key=True)], True),
        ([_packet(0), _packet(4, key=True)], False),  # a picture is missing
        ([_packet(0), _packet(24, key=True)], False),
        ([_packet(0), _packet(25, key=True)], True),  # a second: another clock
        ([_packet(40), _packet(0, key=True)], True),
        ([_packet(None), _packet(4, key=True)], True),
        ([_packet(0), _packet(None, key=True)], True),
        ([_packet(0, duration=None), _packet(4, key=True)], True),
    ],
)
def test_where_a_joint_may_be(indexed, following, joint):
    assert indexed("mpegts")._at_joint(following) is joint


@pytest.mark.parametrize(
    ("packet", "first", "seconds"),
    [(75, 50, 1.0), (25, 50, -1.0), (50, 50, 0.0), (None, 50, None), (75, None, None), (None, None, None)],
)
def test_damage_is_told_in_seconds_after_the_first_keyframe_where_both_have_times(indexed, packet, first, seconds):
    reader = indexed("mpegts")
    assert reader._seconds(_packet(packet), _packet(first)) == seconds
    assert reader._seconds(None, _packet(first)) is reader._seconds(_packet(packet), None) is None


@pytest.mark.parametrize(
    ("container", "fragmented", "size", "time", "at"),
    [
        ("mov,mp4", False, 40, 25, None),  # the last frame ends where the file does
        ("mov,mp4", False, 41, 25, "1.00"),
        ("mov,mp4", False, 41, -25, "0.00"),  # before what is shown
        ("mov,mp4", True, 41, 25, None),
        ("avi", False, 41, 25, None),
    ],
)
def test_an_mp4_that_ends_before_a_frame_that_it_lists_is_cut_off(
    indexed, tmp_path, monkeypatch, container, fragmented, size, time, at
):
    reader, path = indexed(container), tmp_path / "clip.mp4"
    path.write_bytes(bytes(100))
    reader.path = path
    reader.stream.index_entries = [SimpleNamespace(pos=pos, size=n, timestamp=t) for pos, n, t in ((0, 60, 0), (60, size, time))]
    monkeypatch.setattr("runtime.media.decode.is_fragmented", lambda asked: asked == path and fragmented)
    if at is None:
        reader.check_length()
    else:
        with pytest.raises(VideoError, match=naming(path, f"{at} s", "100 bytes")):
            reader.check_length()


@pytest.mark.parametrize(
    ("packets", "windows"),
    [("", []), ("a", ["a--"]), ("ab", ["ab-", "b--"]), ("abc", ["abc", "bc-", "c--"]), ("abcd", ["abc", "bcd", "cd-", "d--"])],
)
def test_every_packet_is_seen_with_the_two_after_it(packets, windows):
    assert ["".join(packet or "-" for packet in window) for window in _with_two_more(packets)] == windows


def test_packets_that_are_shown_before_the_entry_are_dropped_up_to_the_next_keyframe():
    entry, *packets = [_packet(10, True), _packet(8), _packet(12), _packet(9), _packet(None), _packet(11, True), _packet(7)]
    assert [packet.pts for packet in Reader._shown(entry, packets)] == [10, 12, None, 11, 7]
    assert [packet.pts for packet in Reader._shown(_packet(None, True), packets)] == [None, 8, 12, 9, None, 11, 7]


def test_a_stream_that_begins_in_the_middle_ends_with_the_last_packet(tmp_path, monkeypatch):
    """PyAV flushes it behind the last packet and raises IndexError, now and then: its list of wanted streams ends before."""
    path = write_video(tmp_path / "v.mkv", [np.full((32, 32, 3), 40 * i, np.uint8) for i in range(5)], "libx264", format="matroska")
    with reading(path) as reader:

        class Demuxer:
            def __getattr__(self, name):
                return getattr(container, name)

            def demux(self, stream):
                yield from container.demux(stream)
                raise IndexError("list index out of range")

        container, reader.container = reader.container, Demuxer()
        assert len(list(reader.packets())) == 5 and not reader.cut
