"""Video file -> compressed visual tokens: decode, preprocess, encode, compress.

An encoder of single frames works while the next frames are decoded:

    decoder (this thread) -> resize, normalise -> at most DEPTH frames in flight -> encoder (a second thread) -> features

Decoder and engines release the interpreter's lock while they work. Decoding then costs a GPU only the first frame, and no clip of
pixel values is ever in memory; on a CPU whose cores the encoder keeps busy nothing is gained. A graph that takes a clip starts when
all frames are there.

T frames, h, w pixels of a preprocessed frame, N visual tokens, D hidden.
"""

from __future__ import annotations

import time
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from runtime.bundle import Bundle
from runtime.core.errors import EngineError
from runtime.engine import EngineOptions
from runtime.media.clip import Clip, sample_frames
from runtime.media.preprocess import Preprocessor
from runtime.vision.engine import VisionEngine, open_vision

DEPTH = 3  # frames sent to the encoder and not done: it seldom waits, and memory stays at a few frames


@dataclass(frozen=True)
class VisualTokens:
    """tokens [N, D] float; clip: which frames they came from; seconds: {stage: duration}, which add up to the elapsed time.

    Where frames are encoded while others are decoded, only the time spent waiting for the encoder counts as encoding.
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
        frames = self.bundle.manifest.frames
        if self.engine.encodes_frames:
            features, clip, decoding = encode_while_decoding(video, frames, self.preprocessor, self.engine)
        else:
            clip = sample_frames(video, frames, self.preprocessor.resize)
            features = self.preprocessor.normalise(clip.frames, self.engine.pixel_values.dtype)
            decoding = time.perf_counter() - start
        tokens = finite(self.engine.compress(features))["visual_tokens"]
        encoding = time.perf_counter() - start - decoding
        return VisualTokens(tokens, clip, {"decode+preprocess": decoding, "encode+compress": encoding})

    def tokens(self, pixel_values: np.ndarray) -> np.ndarray:
        """pixel_values [T, 3, h, w], float32 or the graph's dtype -> visual tokens [N, D] in the bundle's precision."""
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


def encode_while_decoding(
    path: str | Path, frames: int, preprocessor: Preprocessor, engine: VisionEngine
) -> tuple[np.ndarray, Clip, float]:
    """Sample T frames of a video and encode each once: features [T, ...], the clip, and the seconds of decoding and preprocessing.

    VideoError for a file that has no T frames, EngineError from the encoder.
    """
    images: list[np.ndarray] = []
    pending: list[Future[np.ndarray]] = []
    waited = 0.0

    def submit(frame: np.ndarray) -> np.ndarray:
        """Send a frame to the encoder; its number stands for it, because a file that must be read again yields its frames again."""
        nonlocal waited
        images.append(preprocessor.resize(frame))
        pixel_values = preprocessor.normalise(images[-1][None], engine.pixel_values.dtype)  # [1, 3, h, w]
        start = time.perf_counter()
        if len(pending) >= DEPTH:
            pending[-DEPTH].result()  # waits for room, and raises early where the encoder has failed
        waited += time.perf_counter() - start
        pending.append(encoder.submit(engine.encode, pixel_values))
        return np.array(len(images) - 1)

    with ThreadPoolExecutor(1, "encoder") as encoder:
        try:
            start = time.perf_counter()
            clip = sample_frames(path, frames, submit)
            decoding = time.perf_counter() - start - waited
            features = np.empty(engine.features.sizes(), engine.features.dtype)
            for row, number in zip(features, clip.frames, strict=True):
                row[...] = pending[number].result()
        except BaseException:
            encoder.shutdown(wait=False, cancel_futures=True)
            raise
    return features, replace(clip, frames=np.stack([images[number] for number in clip.frames])), decoding
