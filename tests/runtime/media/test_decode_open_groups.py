"""Open groups of pictures: cut anywhere, entered by seeking, and what is shown before their keyframe."""

from __future__ import annotations

import av
import numpy as np
import pytest
from video_files import OPEN, decoded_by, frames_of, pattern, seen, write_video

from runtime.media import clip as video
from runtime.media.clip import sample_frames
from runtime.media.decode import Reader


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
