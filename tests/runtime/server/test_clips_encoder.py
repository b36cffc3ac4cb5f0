"""A clip on its way through the encoder, on stand-ins for decoder and engine: which frames, whose names, what is shown and kept."""

from __future__ import annotations

import asyncio
import base64
import io
import threading
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from clip_store import with_store
from loop_time import turns
from PIL import Image

from runtime.core.errors import VideoError
from runtime.media.clip import Clip
from runtime.server import clip_encoder, clips
from runtime.server.clip_encoder import ClipEncoder, EncodedClip
from runtime.server.clips import ClipStore

LIMITS = object()


@pytest.fixture
def asked(monkeypatch):
    """What the decoder was asked for: (path, count, limits); a file's frames are [count, 1] of the number in its name."""
    calls = []

    def sample(path, count, each, limits):
        calls.append((str(path), count, limits))
        if path.suffix == ".bad":
            raise VideoError(f"{path}: cut off; {path} is no video")
        frames = np.stack([each(np.full(1, int(path.stem))) for _ in range(count)])
        return Clip(path, frames, tuple(range(count)), (0.0,) * count, 1.0, count, (int(path.stem), 7))

    monkeypatch.setattr(clip_encoder, "sample_frames_limited", sample)
    return calls


@pytest.fixture
def encoder(monkeypatch):
    """encoder(frames, outputs): of a bundle of 2×3 patches a frame, whose frames are resized by ten times their value."""

    def make(frames: int = 2, *outputs: str) -> ClipEncoder:
        def run(pixels):
            assert pixels.dtype == np.float16, "what the graph takes, without a copy in another precision"
            everything = {"visual_tokens": pixels[:, :1] + 0.5, "token_norms": np.arange(frames * 6, dtype=np.float32)}
            return {name: everything[name] for name in outputs}

        preprocessor = SimpleNamespace(resize=lambda frame: frame * 10, normalise=lambda frames, dtype: (frames + 1).astype(dtype))
        engine = SimpleNamespace(pixel_values=SimpleNamespace(dtype=np.dtype(np.float16)))
        vision = SimpleNamespace(preprocessor=preprocessor, run=run, engine=engine)
        manifest = SimpleNamespace(frames=frames, grid=[2, 3])
        bundle = SimpleNamespace(manifest=manifest, sha256=lambda graph: f"sum of {graph}")
        monkeypatch.setattr(clip_encoder, "open_with_norms", lambda *arguments: arguments)
        monkeypatch.setattr(clip_encoder, "VisionEncoder", lambda *arguments: opened.append(arguments) or vision)
        opened = []
        made = ClipEncoder(bundle, "onnx", "options", LIMITS)
        assert opened == [(bundle, (bundle, "onnx", "options"))]
        return made

    return make


def media(*names: str, fps: float | None = None) -> SimpleNamespace:
    return SimpleNamespace(paths=[Path("/t") / name for name in names], fps=fps, digest="digest")


def test_the_frames_of_a_file_are_sampled_at_once(encoder, asked):
    checks = []
    clip = encoder(3).decode(media("4"), lambda: checks.append(1))
    assert clip.frames.tolist() == [[40]] * 3 and len(checks) == 3
    assert asked == [("/t/4", 3, LIMITS)]


@pytest.mark.parametrize(
    ("total", "count", "indices"),
    [(5, 8, (0, 0, 1, 1, 2, 3, 3, 4)), (5, 3, (0, 1, 3)), (1, 2, (0, 0)), (4, 4, (0, 1, 2, 3)), (4, 1, (0,))],
)
def test_pictures_are_spread_evenly_and_each_is_decoded_once(encoder, asked, total, count, indices):
    clip = encoder(count).decode(media(*(str(one + 1) for one in range(total)), fps=4.0), lambda: None)
    assert clip.frames.tolist() == [[10 * (index + 1)] for index in indices]
    assert (clip.indices, clip.timestamps) == (indices, tuple(index / 4 for index in indices))
    assert (clip.path, clip.duration, clip.total, clip.size) == (Path("/t/1"), total / 4, total, (1, 7))
    assert asked == [(f"/t/{index + 1}", 1, LIMITS) for index in sorted(set(indices))]


def test_a_clip_that_nobody_waits_for_is_decoded_no_further(encoder, asked):
    def gone():
        raise TimeoutError

    for one in (media("1"), media("1", "2", fps=1.0)):
        with pytest.raises(TimeoutError):
            encoder().decode(one, gone)
    assert len(asked) == 2


@pytest.mark.parametrize(
    ("one", "message"),
    [
        (media("1.bad"), "the clip: cut off; the clip is no video"),
        (media("1", "2.bad", fps=1.0), "frame 1 of the clip: cut off; frame 1 of the clip is no video"),
    ],
)
def test_an_error_names_the_clip_and_not_our_file(encoder, asked, one, message):
    with pytest.raises(VideoError) as raised:
        encoder().decode(one, lambda: None)
    assert str(raised.value) == message and raised.value.__cause__ is None


def test_what_is_known_of_an_encoded_clip(encoder, monkeypatch):
    times = iter([1.0, 3.0, 8.0])
    monkeypatch.setattr(clip_encoder, "time", SimpleNamespace(perf_counter=lambda: next(times)))
    monkeypatch.setattr(clip_encoder, "_picture", lambda frame: f"picture of {frame[0]}")
    frames, checks = np.array([[3.0], [4.0]]), []
    clip = Clip(Path("a"), frames, (5, 5), (1.25, 1.25), 9.0, 20, (4, 6))
    got = encoder(2, "visual_tokens", "token_norms").encode(media("1"), clip, lambda: checks.append(1))
    assert got.tokens.tolist() == [[4.5], [5.5]] and got.norms.shape == (2, 2, 3) and got.norms.dtype == np.float16
    assert got.norms.ravel().tolist() == list(range(12))
    assert (got.key, got.frames, got.timestamps, got.repeated) == ("sum of vision:digest", (5, 5), (1.25, 1.25), 1)
    assert got.pictures == ("picture of 3.0", "picture of 4.0") and len(checks) == 1
    assert got.seconds == {"decode+preprocess": 2.0, "encode+compress": 5.0}


def test_an_engine_without_norms_has_only_tokens(encoder):
    clip = Clip(Path("a"), np.zeros((2, 8, 8, 3), np.uint8), (0, 1), (0.0, 0.5), 1.0, 2, (8, 8))
    got = encoder(2, "visual_tokens").encode(media("1"), clip, lambda: None)
    assert len(got.tokens) == 2 and got.norms is None


def test_an_encoding_that_nobody_waits_for_ends_before_the_engine_runs(encoder):
    def gone():
        raise TimeoutError

    one = encoder(1, "visual_tokens")
    one.vision.run = lambda pixels: pytest.fail("the engine ran")
    with pytest.raises(TimeoutError):
        one.encode(media("1"), Clip(Path("a"), np.zeros((1, 1)), (0,), (0.0,), 1, 1, (1, 1)), gone)


def kept(key: str, size: int = 100, **more) -> EncodedClip:
    values = {"norms": None, "pictures": (), "seconds": {"decode+preprocess": 1.5}} | more
    return EncodedClip(key, np.zeros(size, np.uint8), (), (), 0, **values)


def test_a_clip_takes_the_bytes_of_tokens_norms_and_pictures():
    assert kept("a").bytes == 100
    assert kept("a", 6, norms=np.zeros((2, 2), np.float16), pictures=("abc", "defg")).bytes == 6 + 8 + 7
    assert EncodedClip("a", np.zeros(1), (), (), 0, None, ()).seconds == {}


@pytest.mark.parametrize(
    ("size", "shown"), [((384, 192), (192, 96)), ((192, 10), (192, 10)), ((100, 200), (96, 192)), ((193, 193), (192, 192))]
)
def test_a_small_picture_is_192_pixels_at_most(size, shown):
    frame = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), np.uint8)
    head, _, text = clip_encoder._picture(frame).partition(",")
    image = Image.open(io.BytesIO(base64.b64decode(text)))
    assert (head, image.format, image.size) == ("data:image/jpeg;base64", "JPEG", shown)
    other = io.BytesIO()
    Image.fromarray(frame).save(other, "JPEG", quality=80)
    assert image.quantization == Image.open(other).quantization


class Numbers:
    """An encoder of numbers; most: encodings that ran at the same time."""

    def __init__(self, gate: threading.Event | None = None):
        self.gate, self.encoding, self.most = gate, 0, 0

    def key(self, media) -> str:
        return str(media.number)

    def decode(self, media, check):
        assert self.gate is None or self.gate.wait(60)
        return media.number

    def encode(self, media, clip, check):
        self.encoding += 1
        self.most = max(self.most, self.encoding)
        threading.Event().wait(0.01)
        self.encoding -= 1
        return kept(str(clip))


def number(clip: int) -> SimpleNamespace:
    return SimpleNamespace(number=clip, close=lambda: None)


def test_clips_that_fill_the_cache_to_the_byte_are_kept():
    async def work(store):
        for clip in (0, 1):
            await store.get(Numbers(), number(clip))
        assert (list(store._kept), store.bytes) == (["0", "1"], 200)
        await store.get(Numbers(), number(2))
        assert (list(store._kept), store.bytes) == (["1", "2"], 200)

    with_store(work, capacity=200)


def test_a_clip_as_large_as_the_cache_is_kept_alone():
    async def work(store):
        await store.get(Numbers(), number(0))
        assert len(store) == 1 and store.bytes == 100
        assert (await store.get(Numbers(), number(0)))[1]

    with_store(work, capacity=100)


def test_three_clips_are_decoded_at_once_and_one_is_encoded(monkeypatch):
    async def work(store):
        one, submitted = Numbers(threading.Event()), []
        submit = store.decoders.submit
        monkeypatch.setattr(store.decoders, "submit", lambda *work: submitted.append(work) or submit(*work))
        asking = [asyncio.ensure_future(store.get(one, number(clip))) for clip in range(5)]
        await turns()
        assert len(submitted) == 3
        one.gate.set()
        await asyncio.gather(*asking)
        assert (len(submitted), one.most) == (5, 1)

    with_store(work)


def test_the_time_of_decoding_is_in_the_clip_s_seconds(monkeypatch):
    times = iter([10.0, 14.25])
    monkeypatch.setattr(clips, "time", SimpleNamespace(perf_counter=lambda: next(times)))

    async def work(store):
        clip, cached = await store.get(Numbers(), number(0))
        assert clip.seconds == {"decode+preprocess": 1.5 + 4.25} and not cached

    with_store(work)


def test_what_waits_for_the_encoder_does_not_run_once_the_store_is_closed():
    store, gate = ClipStore(10, 10), threading.Event()
    store.vision.submit(gate.wait, 60)
    waiting, ended = store.vision.submit(lambda: None), threading.Event()
    waiting.add_done_callback(lambda _: ended.set())
    closing = threading.Thread(target=store.close)
    closing.start()
    assert ended.wait(60)  # while the one before it still runs
    gate.set()
    closing.join()
    assert waiting.cancelled()
