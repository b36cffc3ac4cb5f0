"""95 % intervals of shares that are paired on the same clips: a bootstrap over clips, since questions about one clip go together."""

from __future__ import annotations

import numpy as np

RESAMPLES = 2000


class Bootstrap:
    """The same resamples of C clips for every row of a table. clip_of: int [Q], the clip of each question."""

    def __init__(self, clip_of: np.ndarray, seed: int = 0):
        self.clip_of = np.asarray(clip_of)
        clips = int(self.clip_of.max()) + 1
        drawn = np.random.default_rng(seed).integers(clips, size=(RESAMPLES, clips))
        self.times = np.stack([np.bincount(row, minlength=clips) for row in drawn]).astype(float)  # [RESAMPLES, C]
        self.clips = clips

    def interval(self, values: np.ndarray) -> tuple[float, float]:
        """Of the mean over questions of values [Q]: hits, or differences of two rows' hits."""
        sums = np.bincount(self.clip_of, weights=np.asarray(values, float), minlength=self.clips)
        counts = np.bincount(self.clip_of, minlength=self.clips)
        means = self.times @ sums / (self.times @ counts)
        low, high = np.percentile(means, [2.5, 97.5])
        return float(low), float(high)
