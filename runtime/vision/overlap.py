"""Decode and encode at once: a video's frames go to a split bundle's encoder while the next ones are decoded.

    decoder (this thread) -> resize, normalise -> at most DEPTH frames under way -> encoder (a second thread) -> features

Decoder and engines let go of the interpreter's lock while they work. On a GPU decoding then costs nothing but the first frame;
on a CPU whose cores the encoder fills it costs what it costs. No clip of pixel values is ever in memory.

T frames, h, w pixels, H, W patch rows and columns, C features of a patch.
"""

from __future__ import annotations

import time
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from runtime.engine.split import SplitVision
from runtime.media.clip import Clip, sample_frames
from runtime.media.preprocess import Preprocessor

DEPTH = 3  # frames sent to the encoder and not done: it seldom waits, and memory stays a few frames


@dataclass(frozen=True)
class Encoded:
    """features [T, H, W, C] of clip.frames; decoding: seconds spent on decoding and preprocessing alone, the encoder's queue not full."""

    features: np.ndarray
    clip: Clip
    decoding: float


def encode_while_decoding(path: str | Path, frames: int, preprocessor: Preprocessor, engine: SplitVision) -> Encoded:
    """Sample T frames of a video and encode each once. VideoError for a file that does not give them, EngineError of the encoder."""
    with ThreadPoolExecutor(1, "encoder") as encoder:
        try:
            return _encode(path, frames, preprocessor, engine, encoder)
        except BaseException:
            encoder.shutdown(wait=False, cancel_futures=True)
            raise


def _encode(path: str | Path, frames: int, preprocessor: Preprocessor, engine: SplitVision, encoder: ThreadPoolExecutor) -> Encoded:
    images: list[np.ndarray] = []
    coming: list[Future[np.ndarray]] = []
    waited = 0.0

    def each(frame: np.ndarray) -> np.ndarray:
        """Send a frame on; its number stands for it, because a file that must be read again gives its frames again."""
        nonlocal waited
        images.append(preprocessor.resize(frame))
        pixel_values = preprocessor.normalise(images[-1][None], engine.inputs[0].dtype)  # [1, 3, h, w]
        start = time.perf_counter()
        if len(coming) >= DEPTH:
            coming[-DEPTH].result()  # waits for room, and tells now of an encoder that failed
        waited += time.perf_counter() - start
        coming.append(encoder.submit(engine.encode, pixel_values))
        return np.array(len(images) - 1)

    start = time.perf_counter()
    clip = sample_frames(path, frames, each)
    decoding = time.perf_counter() - start - waited
    features = np.empty(engine.features.sizes(), engine.features.dtype)
    for row, number in zip(features, clip.frames, strict=True):
        row[...] = coming[number].result()
    return Encoded(features, replace(clip, frames=np.stack([images[number] for number in clip.frames])), decoding)
