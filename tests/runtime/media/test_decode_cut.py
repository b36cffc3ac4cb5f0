"""Files that end in the middle of a frame: its frames before, and what is a copy that was cut off instead."""

from __future__ import annotations

import av
import numpy as np
import pytest
from PIL import Image
from refusal import naming
from video_files import frames_of, pattern, seen, write_video, write_without_its_last_slice

from runtime.core.errors import VideoError
from runtime.media.clip import sample_frames

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
