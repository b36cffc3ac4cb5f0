"""What is made of packets as a demuxer gives them: marks, ends, limits, entries, and what threads still hold at the end."""

from __future__ import annotations

from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace

import av
import pytest
from av.codec.context import ThreadType
from refusal import naming

from runtime.core.errors import VideoError
from runtime.media import decode
from runtime.media.decode import _LAST, DamageError, Reader, damage
from runtime.media.limits import DecodeLimits, limited


class Packet(SimpleNamespace):
    """Of 1 tick, at `pts`; K keyframe, ! marked, 0 empty, E encrypted, D discarded by an edit list."""

    def __init__(self, pts: int, flags: str = ""):
        super().__init__(pts=pts, dts=pts, duration=1, opaque=None, flags=flags, size=0 if "0" in flags else 9)
        self.is_keyframe, self.is_corrupt, self.is_discard = "K" in flags, "!" in flags, "D" in flags

    def has_sidedata(self, kind: str) -> bool:
        assert kind == "encryption_info"
        return "E" in self.flags


def packets(flags: str) -> list[Packet]:
    """One for each word, a - for no flag."""
    return [Packet(pts, word.replace("-", "")) for pts, word in enumerate(flags.split())]


def reader(flags: str = "", container: str = "mpegts", whole_frames: int | None = None, error: Exception | None = None) -> Reader:
    """25 frames a second of 10 x 10 pixels; error: what the demuxer raises behind the last packet."""
    one = Reader.__new__(Reader)
    one.path, one.tick, one.cut, one._complete_frames = Path("clip"), Fraction(1, 25), False, whole_frames

    def demux(stream):
        assert stream is one.stream
        yield from packets(flags)
        if error:
            raise error

    one.container = SimpleNamespace(format=SimpleNamespace(name=container), demux=demux)
    one.stream = SimpleNamespace(codec_context=SimpleNamespace(width=10, height=10))
    return one


@pytest.mark.parametrize(
    ("flags", "container", "whole_frames", "given", "cut"),
    [
        ("", "mpegts", None, [], False),
        ("K", "mpegts", None, [0], False),
        ("K - -", "mpegts", None, [0, 1, 2], False),
        ("- 0 K 0 -", "mpegts", None, [0, 2, 4], False),
        ("K - !", "mpegts", None, [0, 1], True),
        ("K ! -", "mpegts", None, [0], True),  # its mark may come a packet early
        ("K !", "mpegts", None, [0], True),
        ("!", "mpegts", None, [], True),
        ("! -", "mpegts", None, [0, 1], False),  # the first, which nothing was lost of
        ("! ! K -", "mpegts", None, [0, 1, 2, 3], False),
        ("K ! - K -", "mpegts", None, [0, 1, 2, 3, 4], False),  # a joint
        ("K - - -", "gif", 2, [0, 1], True),
        ("K -", "gif", 2, [0, 1], True),
        ("K - - -", "gif", None, [0, 1, 2, 3], False),
    ],
)
def test_packets_are_given_up_to_what_is_cut_off(flags, container, whole_frames, given, cut):
    one = reader(flags, container, whole_frames)
    got = list(one.packets())
    assert ([packet.pts for packet in got], one.cut) == (given, cut)
    whole = bool(got) and not (cut and whole_frames is None)
    assert [packet.opaque for packet in got] == [None] * (len(got) - whole) + [_LAST] * whole


def test_what_was_cut_stays_so():
    one = reader("K -")
    one.cut = True
    assert len(list(one.packets())) == 2 and one.cut


@pytest.mark.parametrize(
    ("flags", "error", "where"),
    [
        ("K - ! - - -", None, "0.08 s"),
        ("K - ! ! - - -", None, "0.08 s"),
        ("- K - - ! - - -", None, "0.12 s"),
        ("K - - -", av.error.InvalidDataError(1, "no more"), "0.04 s"),
        ("", av.error.InvalidDataError(1, "no more"), "first frame"),
    ],
)
def test_what_is_missing_before_the_end_is_damage_at_its_time(flags, error, where):
    with pytest.raises(DamageError, match=naming("clip", where, "no more" if error else "packets")):
        list(reader(flags, error=error).packets())


@pytest.mark.parametrize("flags", ["KE -", "K E"])
def test_an_encrypted_packet_is_called_so(flags):
    with pytest.raises(VideoError, match=naming("clip", "encrypted")):
        list(reader(flags).packets())


@pytest.mark.parametrize(
    ("container", "limits", "named"),
    [
        ("mpegts", {"frames": 2}, ["2 frames"]),
        ("gif", {"frames": 2}, ["2 frames"]),
        ("gif", {"animation_pixels": 200}, ["3 frames", "10x10", "200 pixels"]),
        ("mpegts", {"animation_pixels": 200}, None),  # which can be skipped
    ],
)
def test_packets_are_counted_against_the_limits(container, limits, named):
    with limited(DecodeLimits(**limits)):
        assert len(list(reader("K -", container).packets())) == 2
        if named is None:
            assert len(list(reader("K - -", container).packets())) == 3
        else:
            with pytest.raises(VideoError, match=naming("clip", *named)):
                list(reader("K - -", container).packets())


@pytest.mark.parametrize(("seconds", "where"), [(None, "first frame"), (0, "0.00 s"), (-1.0, "0.00 s"), (1.257, "1.26 s")])
def test_where_damage_is(seconds, where):
    assert naming("a.mp4", where, "why").match(str(damage(Path("a.mp4"), seconds, "why")))


class TestEntries:
    """Where decoding begins: (entry, rest) of what `frames_after` is asked for."""

    @pytest.fixture
    def entered(self, monkeypatch) -> list[tuple[int | None, list[int]]]:
        entered: list[tuple[int | None, list[int]]] = []

        def frames_after(self, entry, packets, again):
            entered.append((entry and entry.pts, [packet.pts for packet in packets]))
            yield from again(SimpleNamespace(frames_from=lambda key, earlier: [key, list(earlier)]))

        monkeypatch.setattr(Reader, "frames_after", frames_after)
        return entered

    def sought(self, found: dict[int, list[Packet]], key: int, earlier: list[int]) -> tuple[list[int], list]:
        """found: packets from where a seek to each key goes."""
        one, asked = reader(), []

        def seek(target, *, stream, backward=True):
            assert stream is one.stream and backward
            asked.append(target)
            one.packets = lambda: iter(found[target])

        one.container.seek = seek
        return asked, list(one.frames_from(key, earlier))

    def test_decoding_begins_at_the_first_keyframe(self, entered, monkeypatch):
        one = reader("- - K - K")
        monkeypatch.setattr(Reader, "frames_after", lambda self, entry, packets, again: [entry, [p.pts for p in packets], again])
        entry, rest, again = one.frames()
        assert (entry.pts, rest, again) == (2, [3, 4], Reader.frames)
        assert reader("- -").frames()[0] is None

    def test_a_seek_that_ends_at_the_key_or_before_it_is_the_entry(self, entered):
        for pts in (10, 9):
            asked, again = self.sought({10: [Packet(7), Packet(pts, "K"), Packet(11)]}, 10, [5])
            assert (asked, again, entered.pop()) == ([10], [10, [5]], (pts, [11]))

    @pytest.mark.parametrize(
        "overshot", [[Packet(11, "K")], [], [Packet(3)], [Packet(None, "K")]], ids=["past", "end", "none", "timeless"]
    )
    def test_one_that_overshoots_is_made_again_to_keys_before(self, entered, overshot):
        asked, _ = self.sought({10: overshot, 6: overshot, 2: [Packet(2, "K"), Packet(3)]}, 10, [6, 2, 0])
        assert (asked, entered) == ([10, 6, 2], [(2, [3])])

    def test_where_none_is_found_nothing_is_shown(self, entered):
        assert self.sought({10: [], 6: []}, 10, [6]) == ([10, 6], []) and not entered


class TestHeld:
    """What becomes of the frames that threads hold when the packets end. A decoder of `delay` frames: letters in packets' order."""

    def decoded(self, monkeypatch, threads: bool, delay: int, flags: str = "K - -", loses: int = 0) -> tuple[list[str], list]:
        """The frames that are given, and (path, threads) of each reading that was begun again."""
        one, again = reader(), []
        inside: list[str] = []

        def decode_one(letter):
            inside.append(letter)
            if len(inside) > delay:
                return [inside.pop(0)]
            return []

        def flush(packet):
            assert packet is None
            return inside[loses:]

        one.stream.thread_type = ThreadType.FRAME if threads else ThreadType.SLICE
        one.stream.codec_context = SimpleNamespace(decode=flush)
        sent = packets(flags)
        for letter, packet in zip("abcdef", sent, strict=False):
            packet.decode = lambda letter=letter: decode_one(letter)

        @contextmanager
        def reading(path, strict=True, threads=True):
            again.append((path, strict, threads))
            yield SimpleNamespace(cut=True)

        monkeypatch.setattr(decode, "reading", reading)
        return list(one.frames_after(sent[0], sent[1:], lambda _: iter("ABCDEF"[: len(sent)]))), [*again, one.cut]

    def test_without_threads_they_are_given(self, monkeypatch):
        assert self.decoded(monkeypatch, threads=False, delay=2) == (["a", "b", "c"], [False])
        assert self.decoded(monkeypatch, threads=False, delay=0) == (["a", "b", "c"], [False])

    def test_with_threads_they_are_read_again_without(self, monkeypatch):
        assert self.decoded(monkeypatch, threads=True, delay=2) == (["a", "B", "C"], [(Path("clip"), True, False), True])

    def test_nothing_is_read_again_where_nothing_is_held(self, monkeypatch):
        assert self.decoded(monkeypatch, threads=True, delay=0) == (["a", "b", "c"], [False])

    def test_frames_that_threads_lost_are_read_again(self, monkeypatch):
        assert self.decoded(monkeypatch, threads=True, delay=1, loses=1) == (["a", "b", "C"], [(Path("clip"), True, False), True])

    def test_packets_that_are_decoded_and_not_shown_are_not_missed(self, monkeypatch):
        assert self.decoded(monkeypatch, threads=True, delay=1, flags="KD - -", loses=1) == (["a", "b"], [False])

    def test_without_an_entry_there_is_nothing(self):
        assert list(reader().frames_after(None, packets("- -"), Reader.frames)) == []
