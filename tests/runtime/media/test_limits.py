"""A limit is the most that passes; without limits everything does."""

from __future__ import annotations

from pathlib import Path

import pytest
from refusal import naming

from runtime.core.errors import VideoError
from runtime.media import limits
from runtime.media.limits import DecodeLimits, limited

CLIP = Path("clip.mp4")


@pytest.mark.parametrize(
    ("check", "most", "more", "named"),
    [
        (limits.check_size, (20, 5), (101, 1), ("101x1", "100 pixels a frame")),
        (limits.check_size, (1, 50), (1, 51), ("1x51", "50 pixels a side")),
        (limits.check_size, (50, 1), (51, 1), ("51x1", "50 pixels a side")),
        (limits.check_seconds, (2.5,), (2.6,), ("3 s", "2 s")),
        (limits.check_frames, (7,), (8,), ("7 frames",)),
        (limits.check_streams, (2,), (3,), ("3 streams", 2)),
        (limits.check_animation, (3, 10, 20), (3, 11, 20), ("3 frames", "11x20", "600 pixels")),
        (limits.check_decoded, (4, 10, 20), (5, 10, 20), ("5 frames", "10x20", "800 pixels")),
    ],
)
def test_a_limit_is_the_most_that_passes(check, most, more, named):
    allowed = DecodeLimits(pixels=100, side=50, seconds=2.5, frames=7, streams=2, decoded_pixels=800, animation_pixels=600)
    with limited(allowed):
        check(CLIP, *most)
        with pytest.raises(VideoError, match=naming("clip.mp4", *named)):
            check(CLIP, *more)
    check(CLIP, *more)


def test_limits_hold_for_the_code_inside_alone():
    outer, inner = DecodeLimits(frames=1), DecodeLimits(frames=2)
    with limited(outer):
        with pytest.raises(ValueError, match="an error"), limited(inner):
            assert limits.current() is inner
            raise ValueError("an error")
        assert limits.current() is outer
        with limited(None):
            limits.check_frames(CLIP, 2)
    assert limits.current() is None


@pytest.mark.parametrize(
    ("check", "most", "more"),
    [
        (limits.check_size, (4096, 2304), (4097, 2304)),
        (limits.check_size, (65_535, 1), (65_536, 1)),
        (limits.check_seconds, (3600,), (3600.1,)),
        (limits.check_frames, (300_000,), (300_001,)),
        (limits.check_streams, (16,), (17,)),
        (limits.check_decoded, (1000, 10_000, 1000), (1, 10_000_000_001, 1)),
        (limits.check_animation, (200, 10_000, 1000), (1, 1, 2_000_000_001)),
    ],
)
def test_what_a_clip_may_ask_where_nobody_says_otherwise(check, most, more):
    with limited(DecodeLimits()):
        check(CLIP, *most)
        with pytest.raises(VideoError, match=naming("clip.mp4")):
            check(CLIP, *more)
