"""Ranges of activations for symmetric int8: histograms of magnitudes, and for each tensor the threshold of least squared error.

A threshold t makes steps of t / 127, of which int8 has -128 to 127: a small one rounds finely and cuts outliers, a large one the other
way round. A histogram gives the squared error of both for any t; the best of a grid of thresholds up to the largest magnitude is chosen.

The bins are a part of an octave wide, so they serve all tensors, and a sample is simply added. (ONNX Runtime's collector widens its bins as
values come, and in 1.31 loses the largest of them.)
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np

STEPS = 127  # of a threshold, as ONNX Runtime's quantiser divides it
_OCTAVE = 64  # bins
_LOWEST, _HIGHEST = -40, 40  # octaves
_GRID = np.concatenate([np.linspace(0.02, 0.2, 46), np.linspace(0.2, 1, 81)[1:]])  # shares of the largest magnitude
_CENTERS = 2.0 ** ((np.arange((_HIGHEST - _LOWEST) * _OCTAVE) + 0.5) / _OCTAVE + _LOWEST)


@dataclass
class _Magnitudes:
    """counts: magnitudes in each bin, [bins]; largest: the largest magnitude."""

    counts: np.ndarray
    largest: float = 0.0

    def add(self, values: np.ndarray) -> None:
        magnitudes = np.abs(values, dtype=np.float32).reshape(-1)
        magnitudes = magnitudes[magnitudes > 0]  # zeros are exact whatever the threshold
        bins = (np.log2(magnitudes) - _LOWEST) * _OCTAVE
        self.counts += np.bincount(np.clip(bins, 0, len(_CENTERS) - 1).astype(np.int32), minlength=len(_CENTERS))
        self.largest = max(self.largest, float(magnitudes.max(initial=0.0)))

    def threshold(self) -> float:
        if not self.largest:
            return 1.0  # nothing but zeros
        found = np.flatnonzero(self.counts)
        centers, counts = _CENTERS[found], self.counts[found]
        limits = _GRID * self.largest
        steps = limits[:, None] / STEPS
        squared = (np.minimum(np.rint(centers / steps), STEPS) * steps - centers) ** 2
        # where a bin is wider than a step, its center's error is one draw of many: theirs is a step's uniform one
        wide = (centers * (2 ** (1 / _OCTAVE) - 1) > steps / 2) & (centers <= limits[:, None])
        return float(limits[(np.where(wide, steps**2 / 12, squared) * counts).sum(1).argmin()])


def thresholds(samples: Iterable[Mapping[str, np.ndarray]]) -> dict[str, float]:
    """{tensor: threshold} over all samples; each is {tensor: values}, read once."""
    found: dict[str, _Magnitudes] = {}
    for sample in samples:
        for name, values in sample.items():
            found.setdefault(name, _Magnitudes(np.zeros(len(_CENTERS), np.int64))).add(values)
    return {name: magnitudes.threshold() for name, magnitudes in found.items()}


def activation_rounded(values: np.ndarray, threshold: float) -> np.ndarray:
    """Float values after rounding to int8 with this threshold."""
    step = threshold / STEPS
    return np.clip(np.rint(values / step), -128, 127) * np.float32(step)
