"""Decode and encode at the same time: frames of a video are encoded while the next ones are decoded.

    decoder (this thread) -> resize, normalise -> at most DEPTH frames in flight -> encoder (a second thread) -> features

Decoder and engines release the interpreter's lock while they work. Where an encoder takes one frame, decoding then costs a GPU only
the first frame, and no clip of pixel values is ever in memory; on a CPU whose cores the encoder keeps busy nothing is gained. A graph
that takes a clip starts when all frames are there.

T frames.
"""

from __future__ import annotations

import time
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from runtime.media.clip import Clip, sample_frames
from runtime.media.preprocess import Preprocessor
from runtime.vision.engine import VisionEngine

DEPTH = 3  # frames sent to the encoder and not done: it seldom waits, and memory stays at a few frames


@dataclass(frozen=True)
class Encoded:
    """features [T, ...] of clip.frames; decoding: seconds of decoding and preprocessing, without waiting for the encoder."""

    features: np.ndarray
    clip: Clip
    decoding: float


def encode_while_decoding(path: str | Path, frames: int, preprocessor: Preprocessor, engine: VisionEngine) -> Encoded:
    """Sample T frames of a video and encode each once. VideoError for a file that has no T frames, EngineError from the encoder."""
    with ThreadPoolExecutor(1, "encoder") as encoder:
        try:
            return _encode(path, frames, preprocessor, engine, encoder)
        except BaseException:
            encoder.shutdown(wait=False, cancel_futures=True)
            raise


def _encode(
    path: str | Path, frames: int, preprocessor: Preprocessor, engine: VisionEngine, encoder: ThreadPoolExecutor
) -> Encoded:
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

    start = time.perf_counter()
    clip = sample_frames(path, frames, submit)
    decoding = time.perf_counter() - start - waited
    features = np.empty(engine.features.sizes(), engine.features.dtype)
    for row, number in zip(features, clip.frames, strict=True):
        row[...] = pending[number].result()
    return Encoded(features, replace(clip, frames=np.stack([images[number] for number in clip.frames])), decoding)
