"""Which frames are sampled: what each is worth by its time, and what is done about times that can't be right."""

from __future__ import annotations

from fractions import Fraction

import av
import numpy as np
import pytest
from video_files import pattern, write_video

from runtime.media.clip import sample_frames
from runtime.media.stream import Stream
from runtime.media.timeline import Timeline


def timeline(times: list[int], last: int | None = None, rate: int | None = None) -> Timeline:
    return Timeline.of(times, last, Fraction(rate) if rate else None, Fraction(1, 1000))


@pytest.mark.parametrize(
    ("times", "last", "expected"),
    [
        ([0, 1000], 60_000, (0, 1, 1, 1, 1, 1, 1, 1)),  # the last slide stays for a minute
        ([0, 1000], 1000, (0, 0, 0, 0, 1, 1, 1, 1)),
        ([0, 7000], 1000, (0, 0, 0, 0, 1, 1, 1, 1)),  # two frames are a constant rate
        ([0, 1000], 2000, (0, 0, 0, 0, 1, 1, 1, 1)),  # for two intervals, and no longer
        ([0, 1000], 2001, (0, 0, 0, 1, 1, 1, 1, 1)),
        ([0, 1000, 61_000], 1000, (0, 1, 1, 1, 1, 1, 1, 1)),  # slides again, of which one stays
        (list(range(0, 1600, 100)), None, tuple(range(0, 16, 2))),
        (list(range(0, 1600, 100)), 1600, (0, 3, 7, 11, 15, 15, 15, 15)),
        ([0, *range(1_000_040, 1_000_600, 40)], 40, tuple(i * 15 // 8 for i in range(8))),  # a wrong first time
        ([*range(0, 560, 40), 1_000_000], 40, tuple(i * 15 // 8 for i in range(8))),  # a wrong last one
        ([0, 100, 201, 300, 400, 500, 600, 700], 100, tuple(range(8))),  # a time is rounded by up to a tick
        ([0, 100, 202, 300, 400, 500, 600, 700], 100, (0, 1, 1, 3, 4, 5, 6, 7)),  # and not by two
        ([5000], None, (0,) * 8),
    ],
)
def test_frames_are_sampled(times, last, expected):
    assert timeline(times, last).sample(8) == expected
    later = timeline([time + 4321 for time in times], last)
    assert later.sample(8) == expected
    assert [later.seconds(index) for index in range(len(times))] == [(time - times[0]) / 1000 for time in times]


@pytest.mark.parametrize(
    ("times", "last", "rate", "span"),
    [
        ([9], 30, 25, 30),
        ([9], None, 25, 40),
        ([9], 0, 25, 40),
        ([9], None, None, 0),
        ([9, 59], None, 25, 100),
        ([9, 59, 99, 139], None, None, 170),  # as long as most frames before it
        ([9, 59, 99], None, None, 130),
        ([9, 59], 1, None, 51),
    ],
)
def test_how_long_a_clip_is_shown(times, last, rate, span):
    one = timeline(times, last, rate)
    assert (one.times, one.span, one.tick, one.keys, one.cut) == (times, span, Fraction(1, 1000), (), False)


@pytest.mark.parametrize(
    ("times", "gap"),
    [
        ([7, 107, 207, 307, 1207], True),
        ([7, 107, 207, 1207], False),  # so few are slides
        ([7, 107, 207, 307, 707], False),  # 400 of 800 ms
        ([7, 107, 207, 307, 708], True),
        ([7], False),
    ],
)
def test_what_is_a_gap(times, gap):
    assert timeline(times, 100).has_gap is gap


def test_a_frame_is_entered_at_the_last_keyframe_that_is_shown_before_it_or_is_it():
    clip = Timeline.of([5, 6, 7, 8, 9], 1, None, Fraction(1, 10), keys=[5, 8], cut=True)
    assert [clip.entry(index) for index in range(5)] == [0, 0, 0, 3, 3] and clip.cut


def test_one_gap_that_is_most_of_the_clip_is_noted_and_half_of_it_is_not():
    assert timeline([0, *range(1_000_040, 1_000_600, 40)], 40).has_gap
    assert not timeline([0, 100, 200, 300, 1300, 1400, 1500, 1600, 1700, 1800, 1900], 100).has_gap  # 1 s of 2 s
    assert not timeline([0, 1000, 61_000], 1000).has_gap


def write_times(path, times: list[int], last: int):
    """MJPEG with these times in milliseconds; `last` is how long the last frame is shown."""
    with av.open(str(path), "w") as output:
        stream = output.add_stream("mjpeg", rate=10)
        stream.height, stream.width, stream.pix_fmt = 64, 96, "yuvj420p"
        stream.codec_context.time_base = Fraction(1, 1000)
        packets = []
        for time, image in zip(times, pattern(len(times), 64, 96), strict=True):
            frame = av.VideoFrame.from_ndarray(image, format="rgb24")
            frame.pts, frame.time_base = time, Fraction(1, 1000)
            packets += stream.encode(frame)
        packets += stream.encode()
        for packet, following in zip(packets, [*times[1:], times[-1] + last], strict=True):
            packet.duration = following - packet.pts
            output.mux(packet)
    return path


@pytest.mark.parametrize("container", ["mp4", "mov"])
def test_the_last_slide_weighs_what_its_duration_says(tmp_path, container):
    clip = sample_frames(write_times(tmp_path / f"slides.{container}", [0, 1000], 60_400), 8, lambda frame: frame)
    assert clip.indices == (0, 1, 1, 1, 1, 1, 1, 1)
    assert clip.duration == pytest.approx(61.4)


@pytest.mark.parametrize("times", [[0, *range(1_000_100, 1_002_000, 100)], [*range(0, 1900, 100), 1_000_000]])
def test_a_wrong_timestamp_does_not_make_one_frame_of_the_clip(tmp_path, times):
    path = write_times(tmp_path / "wrong.mp4", times, 100)
    clip = sample_frames(path, 10, lambda frame: frame)
    assert clip.total == 20 and clip.indices == tuple(range(0, 20, 2))
    (note,) = clip.notes
    assert "one gap between two frames is most of the clip" in note and "sampled by number" in note


def test_a_raw_stream_has_the_rate_of_its_headers(tmp_path):
    path = write_video(tmp_path / "raw.h264", pattern(20), rate=10)
    clip = sample_frames(path, 4, lambda frame: frame)
    assert clip.timestamps == (0, 0.5, 1, 1.5) and clip.duration == 2
    assert [time for time, _ in Stream(str(path))] == pytest.approx([number / 10 for number in range(20)])


def test_the_note_about_repeats_says_why(tmp_path):
    short = sample_frames(write_video(tmp_path / "short.mp4", pattern(3)), 8, lambda frame: frame)
    assert short.notes == ["the clip is shorter than 8 frames: 5 are repeated"]
    times = [0, 100, 200, *range(1200, 2000, 100)]
    uneven = sample_frames(write_times(tmp_path / "uneven.mp4", times, 100), 8, lambda frame: frame)
    assert uneven.notes == ["the clip's frames are not shown equally long: 3 of 8 sampled frames are repeated"]
    assert sample_frames(tmp_path / "short.mp4", 3, lambda frame: frame).notes == []


@pytest.mark.parametrize("container", ["ts", "h264"])
def test_joined_files_are_one_clip_with_all_their_frames(tmp_path, container):
    options = {"g": "12", "bf": "2"}
    first = write_video(tmp_path / f"first.{container}", pattern(20), rate=25, options=options)
    second = write_video(tmp_path / f"second.{container}", pattern(30)[20:], rate=25, options=options)
    joined = tmp_path / f"joined.{container}"
    joined.write_bytes(first.read_bytes() + second.read_bytes())
    clip = sample_frames(joined, 30, lambda frame: frame)
    assert clip.total == 30 and clip.indices == tuple(range(30)) and clip.notes == []
    assert clip.timestamps == pytest.approx([i / 25 for i in range(30)])
    assert clip.duration == pytest.approx(30 / 25)
    assert np.abs(clip.frames.astype(int) - pattern(30)).mean(axis=(1, 2, 3)).max() < 8
