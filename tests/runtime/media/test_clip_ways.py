"""How a file is read, on a stand-in for the decoder: which frames it is asked for and when packets or strictness are given up."""

from __future__ import annotations

from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from refusal import naming

from runtime.core.errors import VideoError
from runtime.media import clip as video
from runtime.media.decode import DamageError
from runtime.media.timeline import Timeline

PATH = Path("a.mp4")
TICK = Fraction(1, 25)


class Reader:
    """frames: (time, keyframe, duration) in the order shown; packets: (pts, keyframe, duration, discarded); a picture is its number."""

    path, tick, cut, warns = PATH, TICK, False, False

    def __init__(self, frames=(), packets=()):
        self._frames = [
            SimpleNamespace(pts=pts, key_frame=key, duration=length, number=n) for n, (pts, key, length) in enumerate(frames)
        ]
        self._packets = [
            SimpleNamespace(pts=pts, is_keyframe=key, duration=length, is_discard=cut, size=10 + n)
            for n, (pts, key, length, cut) in enumerate(packets)
        ]
        self.stream = SimpleNamespace(
            codec_context=SimpleNamespace(width=6, height=4), average_rate=Fraction(5), guessed_rate=Fraction(10)
        )
        self.given, self.sought, self.sizes, self.lengths = [], [], None, 0

    def packets(self):
        return iter(self._packets)

    def check_length(self):
        self.lengths += 1

    def check_index(self, sizes):
        self.sizes = list(sizes)

    def frames(self, start=0):
        for frame in self._frames[start:]:
            self.given.append(frame.number)
            yield frame

    def frames_from(self, key, earlier):
        self.sought.append((key, list(earlier)))
        return self.frames(next(n for n, frame in enumerate(self._frames) if frame.pts == key))

    def checked(self, frames):
        return frames

    def rgb(self, frame):
        return np.full((4, 6, 3), frame.number, np.uint8)


@pytest.fixture
def opened(monkeypatch):
    """opened(reader): every file is read by it; the arguments of each reading."""

    def use(reader: Reader) -> list:
        calls = []

        @contextmanager
        def reading(path, *arguments, **named):
            calls.append((path, *arguments, named))
            yield reader

        monkeypatch.setattr(video, "reading", reading)
        return calls

    return use


class TestPackets:
    def timeline(self, opened, *packets) -> tuple[Reader, Timeline | None]:
        reader = Reader(packets=packets)
        opened(reader)
        return reader, video._packet_timeline(PATH)

    def test_times_are_those_of_the_packets_in_the_order_shown(self, opened):
        """Stored in the order in which they are decoded; the last that is shown says how long."""
        reader, got = self.timeline(
            opened, (10, True, 1, False), (16, False, 3, False), (12, False, 1, False), (18, True, 7, False), (17, False, 2, False)
        )
        assert got == Timeline([10, 12, 16, 17, 18], Fraction(8 + 7), TICK, [10, 18])
        assert (reader.sizes, reader.lengths) == ([10, 11, 12, 13, 14], 1)

    def test_a_file_that_ends_inside_a_packet_is_cut(self, opened):
        reader = Reader(packets=[(0, True, 2, False)])
        reader.cut = True
        opened(reader)
        assert video._packet_timeline(PATH) == Timeline([0], Fraction(2), TICK, [0], cut=True)

    def test_one_frame_of_no_known_length_is_shown_for_as_long_as_the_rate_says(self, opened):
        assert self.timeline(opened, (0, True, 0, False))[1].span == 5  # ticks of 1/25 s at 5 frames a second

    def test_what_is_shown_before_the_first_keyframe_or_is_cut_away_is_left_out(self, opened):
        _, got = self.timeline(
            opened,
            (3, False, 1, False),
            (10, True, 1, False),
            (8, False, 1, False),  # of an open group
            (11, False, 1, True),
            (12, False, 1, False),
        )
        assert got == Timeline([10, 12], Fraction(3), TICK, [10])

    @pytest.mark.parametrize(
        "packets",
        [
            [],
            [(0, False, 1, False), (1, False, 1, False)],  # no keyframe
            [(0, True, 1, False), (None, False, 1, False)],
            [(0, True, 1, False), (0, False, 1, False)],
            [(10, True, 1, False), (9, True, 1, False)],  # the clock goes back
        ],
    )
    def test_packets_that_do_not_tell_every_frames_time_tell_nothing(self, opened, packets):
        assert self.timeline(opened, *packets)[1] is None


class TestByTime:
    """100 frames at times 7, 9, 11, …; keyframes are 0, 10, 50 and 60."""

    TIMES = range(7, 207, 2)
    KEYS = (7, 27, 107, 127)

    def take(self, opened, monkeypatch, wanted, seek=True, frames=None, keys=KEYS):
        reader = Reader(frames or [(time, time in keys, 2) for time in self.TIMES])
        self.calls, self.limits = opened(reader), []
        monkeypatch.setattr(video.limits, "check_decoded", lambda *given: self.limits.append(given))
        monkeypatch.setattr(Timeline, "sample", lambda self, frames: wanted)
        timeline = Timeline(self.TIMES, Fraction(200), TICK, keys)
        taken = video._take_by_time(PATH, timeline, 4, lambda image: image[0, 0, 0], True, seek)
        return reader, taken

    @pytest.mark.parametrize(
        ("wanted", "decoded", "sought"),
        [
            ((0,), [0], []),
            ((3, 9), [*range(10)], []),
            ((6, 10), [*range(11)], []),  # a seek would save three
            ((5, 10), [*range(6), 10], [(27, [7, 7, 7])]),
            ((55,), [*range(50, 56)], [(107, [27, 7, 7])]),
            ((12, 62, 63), [10, 11, 12, 60, 61, 62, 63], [(27, [7, 7, 7]), (127, [107, 27, 7])]),
        ],
    )
    def test_it_seeks_where_that_saves_frames_and_goes_on_where_it_does_not(self, opened, monkeypatch, wanted, decoded, sought):
        reader, (taken, size) = self.take(opened, monkeypatch, wanted)
        assert (reader.given, reader.sought) == (decoded, sought)
        assert taken == {index: index for index in wanted} and size == (4, 6)
        assert self.limits == [(PATH, len(decoded), 6, 4)]
        assert self.calls == [(PATH, True, {})]

    @pytest.mark.parametrize(
        ("index", "keys", "first", "sought"),
        [
            (3, (7, 13), 0, []),  # a seek to frame 3 would save three
            (4, (7, 15), 4, [(15, [7, 7, 7])]),
            (62, range(7, 207, 20), 60, [(127, [107, 87, 47])]),  # keyframes one, two and four before it
        ],
    )
    def test_the_first_seek_must_save_as_much_and_has_keyframes_to_fall_back_to(
        self, opened, monkeypatch, index, keys, first, sought
    ):
        reader, _ = self.take(opened, monkeypatch, (index,), keys=keys)
        assert (reader.given, reader.sought) == ([*range(first, index + 1)], sought)

    def test_without_seeks_all_is_decoded_and_no_more_than_that_is_counted_beforehand(self, opened, monkeypatch):
        reader, (taken, _) = self.take(opened, monkeypatch, (12, 55), seek=False)
        assert reader.given == [*range(56)] and not reader.sought and not self.limits
        assert taken == {12: 12, 55: 55}

    def test_a_frame_without_a_time_is_passed_over(self, opened, monkeypatch):
        _, taken = self.take(opened, monkeypatch, (1,), frames=[(7, True, 2), (None, False, 2), (9, False, 2)])
        assert taken == ({1: 2}, (4, 6))

    @pytest.mark.parametrize("frames", [[(7, True, 2), (10, False, 2)], [(7, True, 2)]], ids=["another time", "the end"])
    def test_a_frame_that_does_not_come_as_promised_ends_it(self, opened, monkeypatch, frames):
        assert self.take(opened, monkeypatch, (1,), frames=frames)[1] is None


class TestByNumber:
    def test_frames_are_counted_from_the_start_and_no_more_are_decoded_than_needed(self, opened):
        reader = Reader([(None, True, 1)] * 10)
        calls = opened(reader)
        timeline = Timeline(range(10), Fraction(10), TICK)
        assert video._take_by_number(PATH, timeline, 4, lambda image: image[0, 0, 0], False) == ({0: 0, 2: 2, 5: 5, 7: 7}, (4, 6))
        assert reader.given == [*range(8)] and calls == [(PATH, False, {})]

    def test_fewer_frames_than_before_are_damage(self, opened):
        opened(Reader([(None, True, 1)] * 7))
        with pytest.raises(DamageError, match=naming(PATH, "first frame", "read again")):
            video._take_by_number(PATH, Timeline(range(10), Fraction(10), TICK), 4, np.asarray, True)


class TestDecoded:
    """Timelines of files whose packets tell nothing; ticks are 1/25 s, the rate guessed 10 a second."""

    @pytest.mark.parametrize(
        ("frames", "times", "span"),
        [
            ([(4, True, 2), (6, False, 2), (9, False, 5)], [4, 6, 9], 5 + 5),
            ([(4, True, None)], [4], 5),  # at 5 frames a second, as the stream's average is
            # joined: the second part begins when the first's last frame ends
            ([(4, True, 2), (6, False, 3), (4, True, 2), (6, False, 3)], [4, 6, 9, 11], 7 + 3),
            ([(4, True, None), (7, False, None), (0, True, None), (3, False, None)], [4, 7, 10, 13], 9 + 3),
            ([(4, True, None), (4, True, None), (6, False, 2)], [4, 5, 7], 3 + 2),
            ([(4, True, 2), (6, False, 2), (5, True, 2), (1, True, 1)], [4, 6, 8, 10], 6 + 1),
            ([(4, True, 2), (6, False, 2), (5, True, 2), (9, True, 1)], [4, 6, 8, 12], 8 + 1),
        ],
        ids=["one file", "one frame", "joined", "no durations", "one frame joined", "joined twice", "a pause after that"],
    )
    def test_each_of_joined_files_begins_when_the_one_before_it_ends(self, opened, frames, times, span):
        calls = opened(Reader(frames))
        assert video._decoded_timeline(PATH, False) == Timeline(times, Fraction(span), TICK)
        assert calls == [(PATH, False, {"threads": False})]
        video._decoded_timeline(PATH)
        assert calls[1] == (PATH, True, {"threads": False})

    @pytest.mark.parametrize(
        "frames",
        [
            [(4, True, 2), (None, False, 2), (8, False, 2)],
            [(None, True, 2), (9, False, 2), (11, False, 2)],
            [(4, True, 2), (4, False, 2), (8, False, 2)],  # no keyframe, so no other file
            [(4, True, 2), (8, False, 2), (6, False, 2)],
        ],
        ids=["no time", "none at first", "twice", "back"],
    )
    def test_times_that_are_missing_or_go_back_count_for_nothing(self, opened, frames):
        reader = Reader(frames)
        reader.cut = True
        opened(reader)
        assert video._decoded_timeline(PATH) == Timeline(range(3), Fraction(3), Fraction(1, 10), cut=True)

    def test_the_mark_of_a_file_that_was_cut_off_is_kept(self, opened):
        reader = Reader([(4, True, 2)])
        reader.cut = True
        opened(reader)
        assert video._decoded_timeline(PATH).cut

    def test_no_frame_is_an_error(self, opened):
        opened(Reader())
        with pytest.raises(VideoError, match=naming(PATH, "frame")):
            video._decoded_timeline(PATH)


class TestWays:
    """What is tried, in order."""

    WHOLE, CUT = (Timeline(range(3), Fraction(3), TICK, cut=cut) for cut in (False, True))

    @pytest.fixture
    def tried(self, monkeypatch) -> SimpleNamespace:
        tried = SimpleNamespace(steps=[], packets=None, by_time=[], warns=[True, False], decoded=[self.WHOLE])

        def decoded(path, strict):
            tried.steps.append(("decode", strict))
            found = tried.decoded.pop(0)
            if isinstance(found, Exception):
                raise found
            return found

        def by_packets(path, timeline, frames, each, seek):
            assert (path, timeline, frames, each) == (PATH, self.WHOLE, 5, np.sum)
            tried.steps.append(("packets", seek))
            return tried.by_time.pop(0)

        def by_number(path, timeline, frames, each, strict):
            assert (path, frames, each) == (PATH, 5, np.sum)
            tried.steps.append(("number", strict))
            return timeline.cut

        monkeypatch.setattr(video.stills, "is_still", lambda path: False)
        monkeypatch.setattr(video, "_packet_timeline", lambda path: tried.packets)
        monkeypatch.setattr(video, "_decoded_timeline", decoded)
        monkeypatch.setattr(video, "_take_by_packets", by_packets)
        monkeypatch.setattr(video, "_take_by_number", by_number)
        monkeypatch.setattr(video, "_strictness", lambda path: iter(tried.warns))
        return tried

    @pytest.mark.parametrize(
        ("by_time", "steps", "taken"),
        [
            ([{"a": 1}], [("packets", True)], {"a": 1}),
            ([None, {"b": 2}], [("packets", True), ("packets", False)], {"b": 2}),
            ([None, None], [("packets", True), ("packets", False), ("decode", True), ("number", True)], False),
        ],
    )
    def test_packets_are_trusted_first_with_seeks_and_then_without(self, tried, by_time, steps, taken):
        tried.packets, tried.by_time = self.WHOLE, by_time
        assert video._take(PATH, 5, np.sum) == (self.WHOLE, taken)
        assert tried.steps == steps

    @pytest.mark.parametrize(("warns", "again"), [([True, False], WHOLE), ([True, False], CUT), ([True], CUT)])
    def test_damage_is_looked_at_again_less_strictly(self, tried, warns, again):
        tried.warns, tried.decoded = warns, [DamageError("a warning"), again]
        assert video._take(PATH, 5, np.sum) == (again, again.cut)
        assert tried.steps == [("decode", True), ("decode", False), ("number", False)]

    def test_damage_of_a_decoder_that_only_fails_at_damage_is_an_error(self, tried):
        tried.warns, tried.decoded = [True], [DamageError("a hole"), self.WHOLE]
        with pytest.raises(DamageError, match="a hole"):
            video._take(PATH, 5, np.sum)

    @pytest.mark.parametrize(
        ("warns", "fails", "strict", "taken"),
        [
            (True, [], [True], "taken"),
            (True, [True], [True, False], "taken"),
            (True, [True, False], [True, False], None),
            (False, [True], [True], None),
        ],
    )
    def test_a_decoder_that_warns_is_asked_less_strictly_where_it_met_damage(
        self, monkeypatch, opened, warns, fails, strict, taken
    ):
        reader, asked = Reader(), []
        reader.warns = warns
        opened(reader)

        def by_time(path, timeline, frames, each, strict, seek):
            assert (path, timeline, frames, each, seek) == (PATH, self.WHOLE, 5, np.sum, "seek")
            asked.append(strict)
            if strict in fails:
                raise DamageError("a hole")
            return "taken"

        monkeypatch.setattr(video, "_take_by_time", by_time)
        assert video._take_by_packets(PATH, self.WHOLE, 5, np.sum, "seek") == taken
        assert asked == strict

    def test_the_clip_says_what_was_taken(self, monkeypatch):
        """Frames 2 and 4 of six; the first is shown at 10."""
        timeline = Timeline([10, 12, 14, 16, 18, 20], Fraction(12), TICK, cut=True)
        monkeypatch.setattr(video, "check_file", lambda path: None)
        images = {0: np.zeros(3), 3: np.ones(3)}
        monkeypatch.setattr(video, "_take", lambda path, frames, each: (timeline, (images, (8, 9))))
        clip = video.sample_frames("a.mp4", 2, np.sum)
        assert (clip.path, clip.indices, clip.timestamps, clip.duration, clip.total) == (PATH, (0, 3), (0, 6 / 25), 12 / 25, 6)
        assert (clip.size, clip.cut, clip.has_gap) == ((8, 9), True, False)
        np.testing.assert_array_equal(clip.frames, [[0] * 3, [1] * 3])
        gap = Timeline([0, 1, 2, 3, 4, 99], Fraction(100), TICK)
        monkeypatch.setattr(video, "_take", lambda *given: (gap, (dict.fromkeys(range(6), given), (8, 9))))
        clip = video.sample_frames("a.mp4", 4096, str)
        assert clip.has_gap and not clip.cut and len(clip.indices) == 4096 and tuple(clip.frames[0]) == (PATH, 4096, str)

    def test_pictures_of_an_animation_are_taken_once_each_in_order(self, monkeypatch):
        timeline, asked = Timeline(range(4), Fraction(4), TICK), []
        picture = SimpleNamespace(size=(2, 3), rgb=lambda index: asked.append(index) or index, timeline=lambda: timeline)

        @contextmanager
        def opened(path):
            yield picture

        monkeypatch.setattr(video, "stills", SimpleNamespace(is_still=lambda path: True, opened=opened))
        assert video._take(PATH, 8, lambda image: image * 10) == (timeline, ({0: 0, 1: 10, 2: 20, 3: 30}, (2, 3)))
        assert asked == [0, 1, 2, 3]
