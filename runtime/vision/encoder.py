"""Video file -> compressed visual tokens: decode, preprocess, encode, compress.

T frames, h, w pixels of a preprocessed frame, N visual tokens, D hidden.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from runtime.bundle import Bundle
from runtime.core.errors import EngineError
from runtime.engine import EngineOptions
from runtime.media.clip import Clip
from runtime.media.preprocess import Preprocessor
from runtime.vision.engine import VisionEngine, open_vision
from runtime.vision.overlap import encode_while_decoding


@dataclass(frozen=True)
class VisualTokens:
    """tokens [N, D] float; clip: which frames they came from; seconds: {stage: duration}, which add up to the elapsed time.

    Frames are encoded while others are decoded: only the time spent waiting for the encoder counts as encoding.
    """

    tokens: np.ndarray
    clip: Clip
    seconds: dict[str, float] = field(default_factory=dict)


class VisionEncoder:
    """The vision component of a bundle, with its preprocessing."""

    def __init__(self, bundle: Bundle, engine: VisionEngine):
        self.bundle, self.engine = bundle, engine
        self.preprocessor = Preprocessor(bundle.manifest.preprocessing)

    @classmethod
    def open(cls, bundle: Bundle, backend: str = "auto", options: EngineOptions = EngineOptions()) -> VisionEncoder:
        return cls(bundle, open_vision(bundle, backend, options))

    def encode(self, video: str | Path) -> VisualTokens:
        """Visual tokens of a video file. VideoError for a file that can't be decoded, EngineError for a failed run."""
        start = time.perf_counter()
        encoded = encode_while_decoding(video, self.bundle.manifest.frames, self.preprocessor, self.engine)
        tokens = finite(self.engine.compress(encoded.features))["visual_tokens"]
        encoding = time.perf_counter() - start - encoded.decoding
        return VisualTokens(tokens, encoded.clip, {"decode+preprocess": encoded.decoding, "encode+compress": encoding})

    def tokens(self, pixel_values: np.ndarray) -> np.ndarray:
        """pixel_values [T, 3, h, w] float32 -> visual tokens [N, D] in the bundle's precision."""
        return self.run(pixel_values)["visual_tokens"]

    def run(self, pixel_values: np.ndarray) -> dict[str, np.ndarray]:
        """All outputs of the graph, where the engine was opened with more than the visual tokens."""
        features = self.engine.encode_clip(pixel_values.astype(self.engine.pixel_values.dtype, copy=False))
        return finite(self.engine.compress(features))


def finite(outputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The outputs of a vision graph unchanged; EngineError where a visual token is not finite."""
    if not np.isfinite(outputs["visual_tokens"]).all():
        raise EngineError("the vision graph returned values that are not finite; try a bundle of --precision fp32")
    return outputs
