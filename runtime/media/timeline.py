"""When each frame of a clip is shown, and which T of them are sampled.

Sampled are the frames on screen at the start of T equal parts of the clip. At a constant rate that is frame `i * total // T`, as in
transformers' video processors. At a variable rate the presentation times decide, and the last frame counts for as long as it is
shown: a slide shown for a minute weighs a minute. A single gap that makes up most of the clip is taken for a wrong timestamp, and
frames are then sampled by number. (A slide show of a few frames may well have such a gap.)

Times are in ticks; T sampled frames.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise
from statistics import median_low

_SLIDES = 4  # a clip of more frames is not a slide show


@dataclass(frozen=True)
class Timeline:
    """When each frame is shown.

    times   presentation times in ticks, ascending
    span    ticks from the first frame to the end of the last
    tick    seconds per tick
    keys    times of the keyframes, where decoding can start
    cut     the file ends in the middle of a frame, which is dropped
    """

    times: Sequence[int]
    span: Fraction
    tick: Fraction
    keys: Sequence[int] = ()
    cut: bool = False

    @classmethod
    def of(
        cls,
        times: Sequence[int],
        last: int | None,
        rate: Fraction | None,
        tick: Fraction,
        keys: Sequence[int] = (),
        cut: bool = False,
    ) -> Timeline:
        """last: duration of the last frame according to the file, in ticks.

        If the file does not say, it is the median interval, or that of `rate` frames a second for a single frame.
        """
        if last:
            shown = Fraction(last)
        elif len(times) > 1:
            shown = Fraction(median_low(later - earlier for earlier, later in pairwise(times)))
        else:
            shown = 1 / (rate * tick) if rate else Fraction(0)
        return cls(times, times[-1] - times[0] + shown, tick, keys, cut)

    def sample(self, frames: int) -> tuple[int, ...]:
        total, first = len(self.times), self.times[0]
        if self.has_gap or self._constant_rate():
            return tuple(i * total // frames for i in range(frames))
        starts = (first + i * self.span / frames for i in range(frames))
        return tuple(bisect_right(self.times, start) - 1 for start in starts)

    @property
    def has_gap(self) -> bool:
        """Whether one gap between two frames makes up most of the clip."""
        return len(self.times) > _SLIDES and 2 * max(b - a for a, b in pairwise(self.times)) > self.span

    def entry(self, index: int) -> int:
        """The number of the keyframe from which frame `index` can be decoded."""
        return bisect_left(self.times, self.keys[bisect_right(self.keys, self.times[index]) - 1])

    def seconds(self, index: int) -> float:
        return float((self.times[index] - self.times[0]) * self.tick)

    def _constant_rate(self) -> bool:
        # Containers round times to ticks (milliseconds in Matroska), so each may be off by one.
        last, first = len(self.times) - 1, self.times[0]
        travel = self.times[-1] - first
        if last and (self.span - travel) * last > 2 * travel:  # the last frame is shown for more than two intervals
            return False
        return all(abs((time - first) * last - i * travel) <= last for i, time in enumerate(self.times))
