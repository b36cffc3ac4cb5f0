"""Limits on what an untrusted file may ask of the decoder. Each is checked before the pixels concerned are decoded.

`limited(limits)` sets the limits for the code inside it; `current()` returns them, or None for a trusted file.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path

from runtime.core.errors import VideoError
from runtime.core.options import option


@dataclass(frozen=True)
class DecodeLimits:
    """Upper limits for one file.

    side               width or height of a frame; a resize filter's buffers grow with it
    frames             frames in the clip
    streams            streams in the container
    decoded_pixels     pixels of all frames that must be decoded to reach the sampled ones
    animation_pixels   pixels of all frames of a GIF, APNG or WebP animation, whose frames can't be skipped
    """

    pixels: int = option(4096 * 2304, "largest frame, width times height", flag="--max-clip-pixels", above=0)
    side: int = 65_535  # the largest that a JPEG can have
    seconds: float = option(3600.0, "longest clip", flag="--max-clip-seconds", metavar="S", above=0)
    frames: int = 300_000
    streams: int = 16
    decoded_pixels: int = 10_000_000_000
    animation_pixels: int = 2_000_000_000


_limits: ContextVar[DecodeLimits | None] = ContextVar("limits", default=None)


def current() -> DecodeLimits | None:
    return _limits.get()


@contextmanager
def limited(limits: DecodeLimits | None) -> Iterator[None]:
    token = _limits.set(limits)
    try:
        yield
    finally:
        _limits.reset(token)


def check_size(path: Path, width: int, height: int) -> None:
    got = f"has frames of {width}x{height}"
    _check(path, "pixels", width * height, got, "pixels a frame")
    _check(path, "side", max(width, height), got, "pixels a side")


def check_seconds(path: Path, seconds: float) -> None:
    _check(path, "seconds", seconds, f"is {seconds:.0f} s long", "s")


def check_frames(path: Path, frames: int) -> None:
    _check(path, "frames", frames, f"has {frames} frames or more", "frames, send a shorter clip")


def check_streams(path: Path, streams: int) -> None:
    _check(path, "streams", streams, f"has {streams} streams", "streams")


def check_animation(path: Path, frames: int, width: int, height: int) -> None:
    got = f"is an animation of {frames} frames of {width}x{height}"
    _check(path, "animation_pixels", frames * width * height, got, "pixels in all its frames, send a video")


def check_decoded(path: Path, frames: int, width: int, height: int) -> None:
    got, advice = f"needs {frames} frames of {width}x{height} decoded", "a shorter clip, a smaller one, or one with more keyframes"
    _check(path, "decoded_pixels", frames * width * height, got, f"pixels in all, send {advice}")


def _check(path: Path, limit: str, value: float, got: str, unit: str) -> None:
    most = getattr(current(), limit, value)  # a trusted file has no limits
    if value > most:
        raise VideoError(f"{path} {got}; expected at most {most:.0f} {unit}")
