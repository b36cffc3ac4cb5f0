"""The vision half of a split bundle: an encoder that takes one frame, a compressor that takes the features of T.

Together they are one engine for VISION, with the inputs and outputs of `vision.onnx`, so whoever runs a clip need not know.
Who gets frames one at a time calls the halves: `encode` for each frame, `compress` for T of them.

T frames, h, w pixels, H, W patch rows and columns, C features of a patch, N visual tokens, D hidden.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from runtime.bundle import VISION_COMPRESSOR, VISION_ENCODER, Bundle
from runtime.core.errors import BundleError, EngineError
from runtime.engine import Engine, EngineOptions, State, TensorSpec, check_feeds

FEATURES = "features"


class SplitVision:
    """pixel_values [T, 3, h, w] -> visual_tokens [N, D], frame by frame: memory is a frame's, and the features'.

    features    spec of what the compressor takes, [T, H, W, C]
    """

    def __init__(self, encoder: Engine, compressor: Engine):
        self.encoder, self.compressor = encoder, compressor
        self.backend, self.device = encoder.backend, encoder.device
        (frame,), (features,) = encoder.inputs, compressor.inputs
        (made,) = encoder.outputs
        if made.shape != (1, *features.shape[1:]) or made.dtype != features.dtype:
            raise BundleError(
                f"the encoder makes {made.dtype} {list(made.shape)} of a frame, the compressor takes {features.dtype} "
                f"{list(features.shape)}; export the bundle again"
            )
        self.features = features
        self.inputs: tuple[TensorSpec, ...] = (TensorSpec(frame.name, frame.dtype, (features.shape[0], *frame.shape[1:])),)
        self.outputs = compressor.outputs
        self._frame = frame

    @classmethod
    def open_both(cls, backend: Any, bundle: Bundle, options: EngineOptions) -> SplitVision:
        """Load both graphs on an engine class of the registry."""
        encoder = backend.open(bundle, VISION_ENCODER, options)
        try:
            return cls(encoder, backend.open(bundle, VISION_COMPRESSOR, options))
        except BaseException:
            encoder.close()
            raise

    def encode(self, pixel_values: np.ndarray) -> np.ndarray:
        """One frame, [1, 3, h, w] -> features [H, W, C] in the graph's dtype."""
        return self.encoder.run({self._frame.name: pixel_values})[FEATURES][0]

    def encode_all(self, pixel_values: Iterable[np.ndarray]) -> np.ndarray:
        """T frames [3, h, w], one after the other -> features [T, H, W, C]."""
        features = np.empty(self.features.sizes(), self.features.dtype)
        for row, frame in zip(features, pixel_values, strict=True):
            row[...] = self.encode(frame[None])
        return features

    def compress(self, features: np.ndarray) -> np.ndarray:
        """features [T, H, W, C] -> visual tokens [N, D]."""
        return self.compressor.run({self.features.name: features})["visual_tokens"]

    def run(self, feeds: Mapping[str, np.ndarray], state: State | None = None) -> dict[str, np.ndarray]:
        check_feeds(self.inputs, feeds)
        return {"visual_tokens": self.compress(self.encode_all(feeds[self._frame.name]))}

    def new_state(self, pairs: Mapping[str, str]) -> State:
        raise EngineError(f"the vision half keeps no state, asked for {', '.join(pairs)}")

    def close(self) -> None:
        self.encoder.close()
        self.compressor.close()
