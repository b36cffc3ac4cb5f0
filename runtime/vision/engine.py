"""The vision component of a bundle as one engine, whichever graphs it has: frames -> features -> visual tokens.

    vision.onnx, vision.loop.onnx       one graph takes a clip: the features of a frame are its pixel values
    vision.encoder.onnx and             an encoder takes one frame, a compressor the features of all T: memory is that of a frame
    vision.compressor.onnx              and the features, and a frame that is in several clips is encoded once

T frames, h, w pixels of a preprocessed frame, N visual tokens, D hidden.
"""

from __future__ import annotations

import numpy as np

from runtime.bundle import Bundle
from runtime.core.errors import BundleError
from runtime.engine import Engine, EngineOptions, TensorSpec, check_feeds, open_engines, place

FEATURES = "features"


class VisionEngine:
    """Encodes frames one by one, then compresses the features of T of them.

    backend, device     where it runs, for reports
    pixel_values        what it takes of a clip, [T, 3, h, w], or uint8 [T, h, w, 3] where the graph preprocesses frames itself
    features            what it keeps of a clip, [T, ...]
    outputs             what `compress` returns
    """

    def __init__(self, *graphs: Engine):
        """graphs: one that takes a clip, or encoder and compressor.

        Where the features of one are not those of the other both are closed, and BundleError is raised.
        """
        *encoders, self.compressor = graphs
        self.encoder = encoders[0] if encoders else None
        self.backend, self.device, self.outputs = graphs[0].backend, graphs[0].device, self.compressor.outputs
        (self.features,) = self.compressor.inputs
        self.pixel_values = self.features
        if self.encoder is None:
            return
        (frame,), (encoded,) = self.encoder.inputs, self.encoder.outputs
        if encoded.shape != (1, *self.features.shape[1:]) or encoded.dtype != self.features.dtype:
            self.close()
            raise BundleError(
                f"the encoder returns {encoded.dtype} {list(encoded.shape)} for a frame, the compressor takes {self.features.dtype} "
                f"{list(self.features.shape)}; export the bundle again"
            )
        self.pixel_values = TensorSpec(frame.name, frame.dtype, (self.features.shape[0], *frame.shape[1:]))

    @property
    def encodes_frames(self) -> bool:
        """Whether `encode` runs a graph."""
        return self.encoder is not None

    def encode(self, frame: np.ndarray) -> np.ndarray:
        """pixel_values [1, ...] of one frame -> its features, of shape `features.shape[1:]`."""
        return self.encoder.run({self.pixel_values.name: frame})[FEATURES][0] if self.encoder else frame[0]

    def encode_clip(self, pixel_values: np.ndarray) -> np.ndarray:
        """pixel_values of a clip -> features of its frames."""
        check_feeds((self.pixel_values,), {self.pixel_values.name: pixel_values})
        if self.encoder is None:
            return pixel_values
        features = np.empty(self.features.sizes(), self.features.dtype)
        for row, frame in zip(features, pixel_values, strict=True):
            row[...] = self.encode(frame[None])
        return features

    def compress(self, features: np.ndarray) -> dict[str, np.ndarray]:
        """Features of T frames -> {"visual_tokens": [N, D]} and further outputs of the graph."""
        return self.compressor.run({self.features.name: features})

    def close(self) -> None:
        """Free the graphs."""
        if self.encoder:
            self.encoder.close()
        self.compressor.close()


def open_vision(bundle: Bundle, backend: str = "auto", options: EngineOptions = EngineOptions()) -> VisionEngine:
    """The vision component of `bundle`; EngineError says why nothing can run it."""
    options = place(bundle, backend, options).options
    return VisionEngine(*open_engines(bundle, bundle.vision_graphs(options.device), backend, options))
