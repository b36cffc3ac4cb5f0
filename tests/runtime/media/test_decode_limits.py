"""A real clip over each limit of an untrusted client's, and one whose frames outgrow its header."""

from __future__ import annotations

import numpy as np
import pytest
from refusal import naming
from video_files import pattern, write_video

from runtime.core.errors import VideoError
from runtime.media.clip import sample_frames_limited
from runtime.media.limits import DecodeLimits


@pytest.mark.parametrize(
    ("limits", "named"),
    [
        (DecodeLimits(pixels=100), ("128x96",)),
        (DecodeLimits(side=100), ("128x96", "100 pixels a side")),
        (DecodeLimits(seconds=1), ("2 s",)),
        (DecodeLimits(frames=10), ("10 frames",)),
        (DecodeLimits(streams=0), ("1 streams",)),
        # the last of the four is frame 24, and the only keyframe is the first
        (DecodeLimits(decoded_pixels=25 * 128 * 96 - 1), ("25 frames of 128x96", "307199 pixels")),
    ],
)
def test_a_clip_over_a_decode_limit_is_refused(tmp_path, limits, named):
    path = write_video(tmp_path / "a.mp4", pattern(32))
    with pytest.raises(VideoError, match=naming(*named)):
        sample_frames_limited(path, 4, lambda frame: frame, limits)
    for enough in (DecodeLimits(), DecodeLimits(decoded_pixels=25 * 128 * 96)):
        assert len(sample_frames_limited(path, 4, lambda frame: frame, enough).frames) == 4


def test_frames_that_grow_beyond_the_header_are_refused_by_the_decoder(tmp_path):
    """A raw MJPEG stream may change its size at any frame."""
    small = write_video(tmp_path / "s.mjpeg", pattern(3, 64, 64), codec="mjpeg", pixel_format="yuvj420p", format="mjpeg")
    large = write_video(tmp_path / "l.mjpeg", pattern(3, 640, 640), codec="mjpeg", pixel_format="yuvj420p", format="mjpeg")
    (tmp_path / "both.mjpeg").write_bytes(small.read_bytes() + large.read_bytes())
    sizes: list[tuple[int, ...]] = []

    def each(frame: np.ndarray) -> np.ndarray:
        sizes.append(frame.shape)
        return frame[:8, :8]

    with pytest.raises(VideoError):
        sample_frames_limited(tmp_path / "both.mjpeg", 6, each, DecodeLimits(pixels=64 * 64))
    assert all(size == (64, 64, 3) for size in sizes)
