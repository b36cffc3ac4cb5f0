"""The vision component of a bundle as one engine, whichever graphs it has: frames -> features -> visual tokens.

    vision.onnx, vision.loop.onnx       one graph takes a clip: the features of a frame are its pixel values
    vision.encoder.onnx and             an encoder takes one frame, a compressor the features of all T: memory is that of a frame
    vision.compressor.onnx              and the features, and a frame that is in several clips is encoded once

T frames, h, w pixels of a preprocessed frame, N visual tokens, D hidden.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np

from runtime.bundle import Bundle
from runtime.core.errors import BundleError
from runtime.engine import Engine, EngineOptions, TensorSpec, check_feeds, open_engines
from runtime.engine.place import place

FEATURES = "features"


class VisionEngine(Protocol):
    """Encodes frames one by one, then compresses the features of T of them.

    backend, device     where it runs, for reports
    pixel_values        what it takes for a clip, [T, 3, h, w], or uint8 [T, h, w, 3] where the graph preprocesses frames itself
    features            what it keeps of a clip, [T, ...]
    outputs             what `compress` returns
    encodes_frames      whether `encode` runs a graph
    """

    backend: str
    device: str
    pixel_values: TensorSpec
    features: TensorSpec
    outputs: tuple[TensorSpec, ...]
    encodes_frames: bool

    def encode(self, frame: np.ndarray) -> np.ndarray:
        """pixel_values [1, ...] of one frame -> its features, of shape `features.shape[1:]`."""

    def encode_clip(self, pixel_values: np.ndarray) -> np.ndarray:
        """pixel_values of a clip -> features of its frames."""

    def compress(self, features: np.ndarray) -> dict[str, np.ndarray]:
        """Features of T frames -> {"visual_tokens": [N, D]} and further outputs of the graph."""

    def close(self) -> None:
        """Free the graphs."""


class ClipEngine:
    """One graph that takes a clip."""

    encodes_frames = False

    def __init__(self, engine: Engine):
        self._engine = engine
        self.backend, self.device, self.outputs = engine.backend, engine.device, engine.outputs
        (self.pixel_values,) = engine.inputs
        self.features = self.pixel_values

    def encode(self, frame: np.ndarray) -> np.ndarray:
        return frame[0]

    def encode_clip(self, pixel_values: np.ndarray) -> np.ndarray:
        return pixel_values

    def compress(self, features: np.ndarray) -> dict[str, np.ndarray]:
        return self._engine.run({self.features.name: features})

    def close(self) -> None:
        self._engine.close()


class SplitEngine:
    """An encoder of one frame and a compressor. BundleError where the features of one are not those of the other."""

    encodes_frames = True

    def __init__(self, encoder: Engine, compressor: Engine):
        self.encoder, self.compressor = encoder, compressor
        self.backend, self.device, self.outputs = encoder.backend, encoder.device, compressor.outputs
        (frame,), (self.features,), (encoded,) = encoder.inputs, compressor.inputs, encoder.outputs
        if encoded.shape != (1, *self.features.shape[1:]) or encoded.dtype != self.features.dtype:
            raise BundleError(
                f"the encoder returns {encoded.dtype} {list(encoded.shape)} for a frame, the compressor takes {self.features.dtype} "
                f"{list(self.features.shape)}; export the bundle again"
            )
        self.pixel_values = TensorSpec(frame.name, frame.dtype, (self.features.shape[0], *frame.shape[1:]))

    def encode(self, frame: np.ndarray) -> np.ndarray:
        return self.encoder.run({self.pixel_values.name: frame})[FEATURES][0]

    def encode_clip(self, pixel_values: np.ndarray) -> np.ndarray:
        check_feeds((self.pixel_values,), {self.pixel_values.name: pixel_values})
        features = np.empty(self.features.sizes(), self.features.dtype)
        for row, frame in zip(features, pixel_values, strict=True):
            row[...] = self.encode(frame[None])
        return features

    def compress(self, features: np.ndarray) -> dict[str, np.ndarray]:
        return self.compressor.run({self.features.name: features})

    def close(self) -> None:
        self.encoder.close()
        self.compressor.close()


def open_vision(bundle: Bundle, backend: str = "auto", options: EngineOptions = EngineOptions()) -> VisionEngine:
    """The vision component of `bundle`; EngineError says why nothing can run it."""
    options = place(bundle, backend, options).options
    engines = open_engines(bundle, bundle.vision_graphs(options.device), backend, options)
    return vision_engine(*engines)


def vision_engine(*engines: Engine) -> VisionEngine:
    """The engine that one graph, or encoder and compressor, are together; they are closed where they do not fit."""
    try:
        return ClipEngine(*engines) if len(engines) == 1 else SplitEngine(*engines)
    except BaseException:
        for engine in engines:
            engine.close()
        raise
