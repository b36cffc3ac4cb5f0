"""Which frames are taken, that every way to decode them gives the same ones, and what a bad file says."""

from __future__ import annotations

import os
import random
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from refusal import naming
from transformers.video_utils import VideoMetadata, default_sample_indices_fn
from video_files import decoded_by, frames_of, pattern, write_audio, write_video

from runtime.core.errors import VideoError
from runtime.media import clip as video
from runtime.media.clip import Clip, sample_frames
from runtime.media.timeline import Timeline

FILES = {
    "long-gop.mp4": {"options": {"bf": "3", "g": "250"}},
    "short-gop.mp4": {"options": {"bf": "3", "g": "12"}},
    "open-gop.mp4": {"options": {"bf": "3", "g": "12", "x264-params": "open-gop=1:b-adapt=0:scenecut=0"}},
    "intra-refresh.mp4": {"options": {"x264-params": "intra-refresh=1:keyint=20"}},
    "open-gop.ts": {"options": {"bf": "3", "g": "12", "x264-params": "open-gop=1:b-adapt=0:scenecut=0"}},
    "rounded-times.mkv": {"options": {"g": "10"}, "rate": 24},
    "no-times.h264": {"options": {"g": "10", "bf": "2"}},
    "mpeg4.avi": {"codec": "mpeg4", "options": {"bf": "2", "g": "10"}},
    "mpeg2.mpg": {"codec": "mpeg2video", "rate": 25, "options": {"bf": "2", "g": "10"}},
    "vp9.webm": {"codec": "libvpx-vp9", "options": {"deadline": "realtime", "lag-in-frames": "8", "g": "20"}},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("videos")
    for name, options in FILES.items():
        write_video(folder / name, pattern(90), **options)
    return folder


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("count", [1, 3, 16, 90])
def test_frames_are_those_that_transformers_would_sample(folder, name, count):
    clip = sample_frames(folder / name, count, lambda frame: frame)
    reference = frames_of(folder / name)
    expected = default_sample_indices_fn(VideoMetadata(total_num_frames=len(reference)), num_frames=count)
    assert clip.indices == tuple(expected)
    assert clip.total == len(reference) and clip.repeated == 0 and clip.size == (96, 128)
    np.testing.assert_array_equal(clip.frames, [reference[index] for index in expected])


@pytest.mark.parametrize("name", FILES)
def test_seeking_and_decoding_from_the_start_give_the_same_clip(folder, name, monkeypatch):
    seeking = sample_frames(folder / name, 7, lambda frame: frame)
    monkeypatch.setattr(video, "_packet_timeline", lambda path: None)
    straight = sample_frames(folder / name, 7, lambda frame: frame)
    np.testing.assert_array_equal(seeking.frames, straight.frames)
    assert seeking.indices == straight.indices
    assert seeking.timestamps == pytest.approx(straight.timestamps, abs=1e-9)


def test_sparse_frames_are_reached_by_seeking_without_decoding_what_lies_between(folder, monkeypatch):
    decoded = decoded_by(monkeypatch)
    sample_frames(folder / "short-gop.mp4", 3, lambda frame: frame)
    assert len(decoded) <= 3 * 12
    decoded.clear()
    sample_frames(folder / "long-gop.mp4", 3, lambda frame: frame)
    assert len(decoded) == len(set(decoded)) == 61  # one keyframe: straight on to frame 60, none twice


@pytest.mark.parametrize(
    ("wanted", "decoded"),
    [
        ([0], 1),
        ([3], 4),
        ([3, 9], 10),  # straight on
        ([3, 12], 4 + 3),  # from keyframe 10
        ([6, 10], 7 + 4),  # a seek would save three
        ([5, 10], 6 + 1),
        ([55], 6),  # from keyframe 50
        ([12, 55, 60], 3 + 6 + 5),
    ],
)
def test_what_must_be_decoded_is_counted_from_the_keyframes_that_are_sought(wanted, decoded):
    timeline = Timeline(range(100), Fraction(100), Fraction(1, 25), keys=(0, 10, 50))
    assert video._decoded_by_seeking(timeline, wanted) == decoded


def test_what_a_user_should_know_is_noted_in_one_line_each():
    def notes(indices: tuple[int, ...], total: int, **more: bool) -> list[str]:
        return Clip(Path("a.mp4"), np.zeros(0), indices, (), 1.0, total, (1, 1), **more).notes

    assert notes((0, 1, 2), 3) == []
    (repeated,) = notes((0, 0, 1), 2)
    assert naming("3 frames", 1, "repeated").match(repeated)
    (unequal,) = notes((0, 0, 1), 3)
    assert naming("1 of 3", "repeated").match(unequal) and unequal != repeated
    cut, gap = notes((0, 1), 7, cut=True, has_gap=True)
    assert naming("7 frames").match(cut)
    assert naming("gap").match(gap)


def test_timestamps_are_seconds_after_the_first_frame(folder):
    for name in ("short-gop.mp4", "open-gop.ts"):  # the second starts at 1.4 s
        clip = sample_frames(folder / name, 3, lambda frame: frame)
        assert clip.timestamps == pytest.approx((0, 30 / 16, 60 / 16))
        assert clip.duration == pytest.approx(90 / 16)


def test_variable_rate_takes_what_is_on_the_screen(tmp_path):
    # Frame 2 stays for a second, the others for 100 ms: 2 s in all, so one of eight frames each 250 ms.
    times = [0, 100, 200, *range(1200, 2000, 100)]
    path = write_video(tmp_path / "slides.mkv", pattern(len(times)), times=times, rate=10, options={"bf": "2"})
    clip = sample_frames(path, 8, lambda frame: frame)
    shown = [max(i for i, time in enumerate(times) if time <= start) for start in range(0, 2000, 250)]
    assert clip.indices == tuple(shown)
    assert clip.repeated == len(shown) - len(set(shown)) == 3
    np.testing.assert_array_equal(clip.frames, [frames_of(path)[index] for index in shown])


@pytest.fixture
def packets_suffice(monkeypatch):
    """Fail where a file has to be decoded twice although its packets tell its frames."""
    monkeypatch.setattr(video, "_decoded_timeline", lambda path: pytest.fail("the packets' times were not the frames'"))


def test_frames_that_an_edit_list_cuts_are_not_in_the_clip(tmp_path, packets_suffice):
    path = write_video(tmp_path / "edited.mp4", pattern(60), cut=20, options={"g": "24", "bf": "2"})
    reference = frames_of(path)
    clip = sample_frames(path, 10, lambda frame: frame)
    assert clip.total == len(reference) == 40
    np.testing.assert_array_equal(clip.frames, reference[::4])
    assert np.abs(clip.frames[0].astype(int) - pattern(21)[20]).mean() < 5


@pytest.mark.parametrize("codec", ["mpeg2video", "libx264", "libx265"])
def test_a_recording_that_starts_inside_a_group_of_pictures_begins_at_its_first_keyframe(tmp_path, codec, packets_suffice):
    # In an open group the frames shown before its keyframe are stored after it, and refer to what was lost.
    options = {
        "mpeg2video": {"bf": "2", "g": "12"},
        "libx264": {"bf": "2", "g": "12", "x264-params": "open-gop=1:b-adapt=0:scenecut=0:b-pyramid=none:ref=1"},
        "libx265": {"x265-params": "keyint=12:min-keyint=12:open-gop=1:log-level=none"},
    }[codec]
    path = write_video(tmp_path / "whole.ts", pattern(60), codec, rate=25, options=options)
    with av.open(str(path)) as container:
        starts = [packet.pos for packet in container.demux(video=0) if packet.is_keyframe]
    whole = frames_of(path)
    cut = tmp_path / "cut.ts"
    cut.write_bytes(path.read_bytes()[starts[1] - 3 * 188 :])
    clip = sample_frames(cut, 20, lambda frame: frame)
    assert 60 - 26 < clip.total <= 60 - 11
    np.testing.assert_array_equal(clip.frames, [whole[60 - clip.total + index] for index in clip.indices])


def test_a_clip_shorter_than_asked_repeats_frames_and_counts_them(tmp_path):
    path = write_video(tmp_path / "short.mp4", pattern(3))
    clip = sample_frames(path, 8, lambda frame: frame)
    assert clip.indices == (0, 0, 0, 1, 1, 1, 2, 2)
    assert clip.repeated == 5


@pytest.mark.parametrize(("name", "codec", "pixel_format"), [("one.png", "png", "rgb24"), ("50%02d.jpg", "mjpeg", "yuvj420p")])
def test_an_image_is_a_clip_of_one_frame(tmp_path, name, codec, pixel_format):
    write_video(tmp_path / "image", pattern(1), codec, pixel_format, format="image2", options={"update": "1"})
    path = (tmp_path / "image").rename(tmp_path / name)
    clip = sample_frames(path, 4, lambda frame: frame)
    assert clip.total == 1 and clip.repeated == 3
    assert np.abs(clip.frames[0].astype(int) - pattern(1)[0]).mean() < (5 if codec == "mjpeg" else 1e-9)


@pytest.mark.parametrize("rotation", [90, 180, -90])
def test_rotation_of_the_display_matrix_is_applied(tmp_path, rotation):
    image = np.zeros((48, 64, 3), np.uint8)
    image[:16, :24] = (255, 255, 255)
    clip = sample_frames(write_video(tmp_path / "turned.mp4", [image] * 3, rotation=rotation), 1, lambda frame: frame)
    upright = np.rot90(image, rotation // 90)
    assert clip.size == upright.shape[:2]
    assert np.abs(clip.frames[0].astype(int) - upright).mean() < 4


@pytest.mark.parametrize("size", [(75, 113), (41, 37), (361, 641), (190, 338)])
def test_widths_that_fill_no_stride_keep_their_pixels(tmp_path, size):
    images = pattern(2, *size)
    clip = sample_frames(write_video(tmp_path / "odd.mkv", images, "ffv1", "yuv444p"), 2, lambda frame: frame)
    assert np.abs(clip.frames.astype(int) - images).max() <= 3  # RGB to limited-range YUV and back


@pytest.mark.parametrize(("pixel_format", "codec"), [("yuv420p", "ffv1"), ("yuvj420p", "mjpeg")])
def test_limited_and_full_range_both_reach_black_and_white(tmp_path, pixel_format, codec):
    images = [np.full((32, 32, 3), level, np.uint8) for level in (0, 255, 128)]
    clip = sample_frames(write_video(tmp_path / "range.mkv", images, codec, pixel_format), 3, lambda frame: frame)
    assert np.abs(clip.frames.astype(int) - images).max() <= 2


def test_each_frame_is_handed_over_once_and_only_the_result_is_kept(tmp_path):
    path = write_video(tmp_path / "short.mp4", pattern(3))
    shapes = []
    clip = sample_frames(path, 8, lambda frame: shapes.append(frame.shape) or frame[::8, ::8])
    assert shapes == [(96, 128, 3)] * 3
    assert clip.frames.shape == (8, 12, 16, 3) and clip.frames.dtype == np.uint8


@pytest.mark.parametrize("fill", ["zeros", "noise"])
@pytest.mark.parametrize("name", ["long-gop.mp4", "open-gop.mp4", "open-gop.ts", "mpeg4.avi"])
def test_a_damaged_middle_is_an_error_that_says_where(folder, tmp_path, name, fill):
    content = bytearray((folder / name).read_bytes())
    middle, length = len(content) // 2, len(content) // 20
    content[middle : middle + length] = bytes(length) if fill == "zeros" else random.Random(0).randbytes(length)
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(VideoError, match=r"is damaged after [1-4]\.\d\d s") as caught:
        sample_frames(path, 16, lambda frame: frame)
    assert "\n" not in str(caught.value)


def test_a_file_cut_off_is_an_error_even_where_its_index_is_whole(tmp_path):
    path = write_video(tmp_path / "cut.mp4", pattern(90), options={"g": "12"}, container_options={"movflags": "faststart"})
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(VideoError, match=r"is cut off at [1-4]\.\d\d s"):
        sample_frames(path, 4, lambda frame: frame)


def test_a_file_without_its_index_is_an_error(folder, tmp_path):
    path = tmp_path / "cut.mp4"
    path.write_bytes((folder / "short-gop.mp4").read_bytes()[:8000])
    with pytest.raises(VideoError, match=naming(path, "video")):
        sample_frames(path, 4, lambda frame: frame)


@pytest.mark.parametrize("count", [0, -1, 4097])
def test_a_frame_count_out_of_range_is_an_error(folder, count):
    with pytest.raises(VideoError, match=f"{count} frames asked .* expected 1 to 4096"):
        sample_frames(folder / "long-gop.mp4", count, lambda frame: frame)


def test_what_is_no_video_is_an_error_that_says_what_it_is(tmp_path):
    (tmp_path / "empty.mp4").write_bytes(b"")
    (tmp_path / "notes.txt").write_text("hello\n" * 100)  # FFmpeg would draw it
    (tmp_path / "text.mp4").write_text("hello\n" * 100)
    os.mkfifo(tmp_path / "pipe.mp4")  # opening it would wait for ever
    with av.open(str(tmp_path / "no-frames.avi"), "w") as container:
        container.add_stream("mpeg4", rate=16, width=64, height=64, pix_fmt="yuv420p")
        container.start_encoding()
    write_audio(tmp_path / "sound.mp4")
    for name, message in {
        "absent.mp4": "no such file",
        "x" * 300: "no such file",
        ".": "is a directory",
        "empty.mp4": r"is empty \(0 bytes\)",
        "notes.txt": "not a video",
        "text.mp4": "not a video",
        "pipe.mp4": "not a regular file",
        "no-frames.avi": "without a frame",
        "sound.mp4": r"no video stream that can be decoded \(it has audio\)",
    }.items():
        with pytest.raises(VideoError, match=message):
            sample_frames(tmp_path / name, 4, lambda frame: frame)


@pytest.mark.parametrize("name", ["list.m3u8", "list.ffconcat"])
def test_a_playlist_opens_no_other_file(folder, tmp_path, name):
    (tmp_path / "clip.mp4").write_bytes((folder / "short-gop.mp4").read_bytes())
    playlists = {"list.m3u8": "#EXTM3U\n#EXTINF:10,\nclip.mp4\n", "list.ffconcat": "ffconcat version 1.0\nfile clip.mp4\n"}
    (tmp_path / name).write_text(playlists[name])
    with pytest.raises(VideoError, match="not a video"):
        sample_frames(tmp_path / name, 4, lambda frame: frame)


def test_a_name_with_odd_characters_is_a_file_like_any_other(folder, tmp_path):
    path = tmp_path / "http:#?& é%03d.mp4"
    path.write_bytes((folder / "short-gop.mp4").read_bytes())
    assert sample_frames(str(path), 4, lambda frame: frame).total == 90
