"""Ranges of activations for symmetric int8: histograms by ONNX Runtime's collector, thresholds of least squared error.

A threshold t maps [-t, t] to [-127, 127]: a small one rounds finely and cuts outliers, a large one the other way round. The histogram
of magnitudes tells the squared error of both for any t; the best of a grid of thresholds below the largest magnitude is taken.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterable, Mapping

import numpy as np

_BINS = 2048
_GRID = np.concatenate([np.linspace(0.02, 0.2, 46), np.linspace(0.2, 1, 81)[1:]])  # shares of the largest magnitude
_STEPS = 127


def thresholds(samples: Iterable[Mapping[str, np.ndarray]]) -> dict[str, float]:
    """{tensor: threshold} over all samples; each is {tensor: values} and may be dropped after it was read."""
    from onnxruntime.quantization.calibrate import HistogramCollector

    collector = HistogramCollector("percentile", True, _BINS, _BINS, 100.0, "same")
    for sample in samples:
        with contextlib.redirect_stdout(io.StringIO()):  # it reports on stdout
            collector.collect({name: [values] for name, values in sample.items()})
    return {name: _best(found[0], found[1]) for name, found in collector.get_histogram_dict().items()}


def _best(counts: np.ndarray, edges: np.ndarray) -> float:
    """The threshold of least squared error for magnitudes that are spread like this histogram."""
    top = float(edges[-1])
    if top <= 0:
        return 1.0  # nothing but zeros: any scale will do
    centers = (edges[:-1] + edges[1:]).astype(np.float64) / 2
    limits = _GRID * top
    steps = limits[:, None] / _STEPS
    rounded = np.minimum(np.round(centers / steps), _STEPS) * steps
    # the values inside a bin are spread over it, so the rounding error inside the range is that of a uniform spread, step^2 / 12
    inside = centers <= limits[:, None]
    squared = np.where(inside, np.maximum((rounded - centers) ** 2, steps**2 / 12), (centers - limits[:, None]) ** 2)
    return float(limits[(squared * counts).sum(1).argmin()])
