"""Frames are encoded while the next are decoded: in their order, each once, a few in flight, and errors of either side come out."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import numpy as np
import pytest
from video_files import pattern, write_video

import runtime.vision.encoder
from runtime.bundle.manifest import Preprocessing
from runtime.core.errors import EngineError, VideoError
from runtime.engine import TensorSpec
from runtime.media.clip import sample_frames
from runtime.media.preprocess import Preprocessor
from runtime.vision.encoder import DEPTH, encode_while_decoding

SIZE = 8
FACTS = Preprocessing((SIZE, SIZE), "bicubic", 1, 0, 1)


class Encoder:
    """Takes a frame's mean for its features and counts the frames. Each waits for a place in `gate`, where there is one."""

    def __init__(self, frames: int, gate: threading.Semaphore | None = None, fails_at: int | None = None):
        dtype = np.dtype(np.float32)
        self.pixel_values = TensorSpec("pixel_values", dtype, (frames, 3, SIZE, SIZE))
        self.features = TensorSpec("features", dtype, (frames, 1, 1, 1))
        self.gate, self.fails_at, self.encoded = gate, fails_at, 0

    def encode(self, pixel_values: np.ndarray) -> np.ndarray:
        assert self.gate is None or self.gate.acquire(timeout=30)
        if self.encoded == self.fails_at:
            raise EngineError("the encoder failed")
        self.encoded += 1
        return pixel_values.mean().reshape(1, 1, 1)


@pytest.fixture(scope="module")
def video(tmp_path_factory):
    return write_video(tmp_path_factory.mktemp("overlap") / "clip.mp4", pattern(40))


@pytest.fixture
def preprocessor() -> Preprocessor:
    return Preprocessor(FACTS)


@pytest.fixture
def slow(monkeypatch):
    """An encoder that takes a frame through `gate` only when it is waited for or shut down, and each wait takes a second.

    in_flight: how many frames were sent and not done at the beginning of each wait.
    """
    gate, in_flight, sent, clock = threading.Semaphore(0), [], [], [0.0]

    class Pool(ThreadPoolExecutor):
        def submit(self, *work):
            sent.append(future := super().submit(*work))
            return SimpleNamespace(result=lambda: result(future))

        def shutdown(self, wait=True, **options):
            super().shutdown(wait=False, **options)
            gate.release(DEPTH)
            super().shutdown(wait)

    def result(future):
        clock[0] += 1
        if not future.done():
            in_flight.append(sum(not one.done() for one in sent))
            gate.release()
        return future.result(30)

    monkeypatch.setattr(runtime.vision.encoder, "ThreadPoolExecutor", Pool)
    monkeypatch.setattr(runtime.vision.encoder, "time", SimpleNamespace(perf_counter=lambda: clock[0]))
    return SimpleNamespace(gate=gate, in_flight=in_flight)


@pytest.mark.parametrize("frames", [1, 7, 40, 100])
def test_features_stand_in_the_order_of_the_clip_and_each_frame_is_encoded_once(video, preprocessor, frames):
    engine = Encoder(frames)
    features, clip, _ = encode_while_decoding(video, frames, preprocessor, engine)
    expected = sample_frames(video, frames, preprocessor.resize)
    np.testing.assert_array_equal(clip.frames, expected.frames)
    assert (clip.indices, clip.timestamps) == (expected.indices, expected.timestamps)
    np.testing.assert_allclose(features.reshape(-1), expected.frames.mean(axis=(1, 2, 3)), rtol=1e-5)
    assert engine.encoded == len(set(expected.indices))


def test_a_slow_encoder_holds_the_decoder_back(video, preprocessor, slow):
    *_, decoding = encode_while_decoding(video, 40, preprocessor, Encoder(40, slow.gate))
    assert slow.in_flight == [DEPTH] * (40 - DEPTH) + list(range(DEPTH, 0, -1))
    assert decoding == 0  # all the time that passed was spent on waiting for the encoder


def test_an_encoder_that_fails_is_told_before_the_last_frame(video, preprocessor, monkeypatch):
    sent = []
    resize = preprocessor.resize
    monkeypatch.setattr(preprocessor, "resize", lambda frame: sent.append(1) or resize(frame))
    with pytest.raises(EngineError, match="the encoder failed"):
        encode_while_decoding(video, 40, preprocessor, Encoder(40, fails_at=2))
    assert len(sent) <= 3 + DEPTH + 1


def test_a_damaged_file_is_told_and_no_thread_stays(tmp_path, video, preprocessor, slow):
    content = bytearray(video.read_bytes())
    content[len(content) // 2 : len(content) // 2 + 400] = b"\xff" * 400
    damaged = tmp_path / "damaged.mp4"
    damaged.write_bytes(content)
    with pytest.raises(VideoError, match="damaged"):
        encode_while_decoding(damaged, 40, preprocessor, engine := Encoder(40, slow.gate))
    assert len(slow.in_flight) > 0 and engine.encoded <= len(slow.in_flight) + 1  # what had not begun is not encoded
    assert not any(thread.name.startswith("encoder") for thread in threading.enumerate())


def test_a_file_that_is_read_twice_gives_what_the_second_reading_gave(video, preprocessor, monkeypatch):
    import runtime.media.clip as reader

    expected, clip, _ = encode_while_decoding(video, 8, preprocessor, Encoder(8))
    take, readings = reader._take_by_time, []

    def fails_first(path, timeline, frames, each, *args, **kwargs):
        """The first reading gives other frames, and then says that they were not what it promised."""
        readings.append(1)
        if len(readings) > 1:
            return take(path, timeline, frames, each, *args, **kwargs)
        take(path, timeline, frames, lambda frame: each(255 - frame), *args, **kwargs)
        return None

    monkeypatch.setattr(reader, "_take_by_time", fails_first)
    engine = Encoder(8)
    features, again, _ = encode_while_decoding(video, 8, preprocessor, engine)
    assert engine.encoded == 16
    np.testing.assert_array_equal(features, expected)
    np.testing.assert_array_equal(again.frames, clip.frames)
