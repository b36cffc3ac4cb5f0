"""Video -> compressed visual tokens: decode, preprocess, run the vision half.

T frames, h, w pixels of a preprocessed frame, H, W patch rows and columns, C features of a patch, N visual tokens, D hidden.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from runtime.bundle import VISION, Bundle
from runtime.core.errors import EngineError
from runtime.engine import Engine, EngineOptions, open_engine
from runtime.engine.split import SplitVision
from runtime.media.clip import Clip
from runtime.media.preprocess import Preprocessor, load_clip
from runtime.vision.overlap import encode_while_decoding


@dataclass(frozen=True)
class VisualTokens:
    """tokens [N, D] float; clip: which frames they came from; seconds: {stage: duration}, whose sum is the time that passed.

    A split bundle encodes while it decodes: what it encodes meanwhile is in no stage, waiting for the encoder is encoding.
    """

    tokens: np.ndarray
    clip: Clip
    seconds: dict[str, float] = field(default_factory=dict)


class VisionEncoder:
    """The vision half of a bundle on one engine."""

    def __init__(self, bundle: Bundle, engine: Engine):
        self.bundle, self.engine = bundle, engine
        self.preprocessor = Preprocessor(bundle.manifest.preprocessing)

    @classmethod
    def open(cls, bundle: Bundle, backend: str = "auto", options: EngineOptions = EngineOptions()) -> VisionEncoder:
        return cls(bundle, open_engine(bundle, VISION, backend, options))

    def encode(self, video: str | Path) -> VisualTokens:
        """Compressed tokens of a video file. VideoError for a file that can't be decoded, EngineError for a failed run."""
        start = time.perf_counter()
        if isinstance(self.engine, SplitVision):
            encoded = encode_while_decoding(video, self.bundle.manifest.frames, self.preprocessor, self.engine)
            clip, decoding = encoded.clip, encoded.decoding
            tokens = finite(self.engine.compress(encoded.features))
        else:
            pixel_values, clip = load_clip(video, self.bundle.manifest.frames, self.preprocessor)
            decoding = time.perf_counter() - start
            tokens = self.tokens(pixel_values)
        seconds = {"decode+preprocess": decoding, "encode+compress": time.perf_counter() - start - decoding}
        return VisualTokens(tokens, clip, seconds)

    def tokens(self, pixel_values: np.ndarray) -> np.ndarray:
        """pixel_values [T, 3, h, w] float32 -> visual tokens [N, D] in the bundle's precision."""
        return self.run(pixel_values)["visual_tokens"]

    def run(self, pixel_values: np.ndarray) -> dict[str, np.ndarray]:
        """All outputs of the graph, where the engine was opened with more than the visual tokens."""
        (spec,) = self.engine.inputs
        outputs = self.engine.run({spec.name: pixel_values.astype(spec.dtype, copy=False)})
        finite(outputs["visual_tokens"])
        return outputs


def finite(tokens: np.ndarray) -> np.ndarray:
    """The same tokens; EngineError where one is not finite."""
    if not np.isfinite(tokens).all():
        raise EngineError("the vision graph returned values that are not finite; try a bundle of --precision fp32")
    return tokens
