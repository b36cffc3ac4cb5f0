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
    limits = current()
    if limits and width * height > limits.pixels:
        raise VideoError(f"{path} has frames of {width}x{height}; expected at most {limits.pixels} pixels a frame")
    if limits and max(width, height) > limits.side:
        raise VideoError(f"{path} has frames of {width}x{height}; expected at most {limits.side} pixels a side")


def check_seconds(path: Path, seconds: float) -> None:
    limits = current()
    if limits and seconds > limits.seconds:
        raise VideoError(f"{path} is {seconds:.0f} s long; expected at most {limits.seconds:.0f} s")


def check_frames(path: Path, frames: int) -> None:
    limits = current()
    if limits and frames > limits.frames:
        raise VideoError(f"{path} has more than {limits.frames} frames; send a shorter clip")


def check_streams(path: Path, streams: int) -> None:
    limits = current()
    if limits and streams > limits.streams:
        raise VideoError(f"{path} has {streams} streams; expected at most {limits.streams}")


def check_animation(path: Path, frames: int, width: int, height: int) -> None:
    limits = current()
    if limits and frames * width * height > limits.animation_pixels:
        raise VideoError(
            f"{path} is an animation of {frames} frames of {width}x{height}; "
            f"expected at most {limits.animation_pixels} pixels in all its frames, send a video"
        )


def check_decoded(path: Path, frames: int, width: int, height: int) -> None:
    limits = current()
    if limits and frames * width * height > limits.decoded_pixels:
        raise VideoError(
            f"{path} needs {frames} frames of {width}x{height} decoded; expected at most {limits.decoded_pixels} pixels in all, "
            "send a shorter clip, a smaller one, or one with more keyframes"
        )
