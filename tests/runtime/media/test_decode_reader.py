"""What a Reader makes of frames, packets and indexes, on stand-ins for them."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace

import av
import pytest
from refusal import naming

from runtime.core.errors import VideoError
from runtime.media.decode import _LAST, DamageError, Reader, _with_two_more
from runtime.media.limits import DecodeLimits, limited


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
