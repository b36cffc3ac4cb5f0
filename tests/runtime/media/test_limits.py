"""A limit is the most that passes; without limits everything does."""

from __future__ import annotations

from pathlib import Path

import pytest

from runtime.core.errors import VideoError
from runtime.media import limits
from runtime.media.limits import DecodeLimits, limited

CLIP = Path("clip.mp4")


@pytest.mark.parametrize(
    ("check", "most", "more", "message"),
    [
        (limits.check_size, (20, 5), (101, 1), "has frames of 101x1; expected at most 100 pixels a frame"),
        (limits.check_size, (1, 50), (1, 51), "has frames of 1x51; expected at most 50 pixels a side"),
        (limits.check_size, (50, 1), (51, 1), "has frames of 51x1; expected at most 50 pixels a side"),
        (limits.check_seconds, (2.5,), (2.6,), "is 3 s long; expected at most 2 s"),
        (limits.check_frames, (7,), (8,), "has more than 7 frames; send a shorter clip"),
        (limits.check_streams, (2,), (3,), "has 3 streams; expected at most 2"),
        (
            limits.check_animation,
            (3, 10, 20),
            (3, 11, 20),
            "is an animation of 3 frames of 11x20; expected at most 600 pixels in all its frames, send a video",
        ),
        (
            limits.check_decoded,
            (4, 10, 20),
            (5, 10, 20),
            "needs 5 frames of 10x20 decoded; expected at most 800 pixels in all, "
            "send a shorter clip, a smaller one, or one with more keyframes",
        ),
    ],
)
def test_a_limit_is_the_most_that_passes(check, most, more, message):
    allowed = DecodeLimits(pixels=100, side=50, seconds=2.5, frames=7, streams=2, decoded_pixels=800, animation_pixels=600)
    with limited(allowed):
        check(CLIP, *most)
        with pytest.raises(VideoError) as raised:
            check(CLIP, *more)
    assert str(raised.value) == f"clip.mp4 {message}"
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
        with pytest.raises(VideoError, match=r"expected at most|has more than"):
            check(CLIP, *more)
