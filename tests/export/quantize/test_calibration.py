"""Calibration clips: which frames of which videos, in which order."""

from __future__ import annotations

import numpy as np
import pytest
from video_files import write_video

from export.quantize.calibration import Clips
from runtime.core.errors import ExportError

COLORS = {"a.mp4": (200, 30, 30), "b.mp4": (30, 30, 200), "c.mp4": (30, 200, 30)}


@pytest.fixture
def clips(bundle, tmp_path) -> Clips:
    """Of three videos of one colour each: red, blue and green."""
    for name, color in COLORS.items():
        write_video(tmp_path / name, [np.full((64, 64, 3), color, np.uint8)] * 8)
    (tmp_path / "notes.txt").write_text("no video")
    return Clips(bundle.manifest.preprocessing, tmp_path)


def test_neighbours_are_of_different_clips(clips):
    frames = clips.frames(7)
    assert frames.shape == (7, 3, 126, 126)
    assert frames.mean((2, 3)).argmax(1).tolist() == [0, 2, 1, 0, 2, 1, 0]  # channels: red, blue, green


def test_frames_are_normalised_as_the_bundle_says(clips):
    red, green = clips.frames(1)[0, :2].mean((1, 2))
    assert red == pytest.approx(200 / 127.5 - 1, abs=0.05) and green == pytest.approx(30 / 127.5 - 1, abs=0.05)


def test_clips_of_the_demo_are_several_too(bundle):
    frames = Clips(bundle.manifest.preprocessing).frames(8)  # two clips of four frames
    within = np.abs(frames[2:] - frames[:-2]).mean()
    assert np.abs(frames[1:] - frames[:-1]).mean() > 2 * within


def test_a_directory_without_videos_is_refused(bundle, tmp_path):
    with pytest.raises(ExportError, match="holds no video"):
        Clips(bundle.manifest.preprocessing, tmp_path)


def test_the_report_says_where_they_come_from(clips):
    assert clips.source.startswith("3 videos of ")
