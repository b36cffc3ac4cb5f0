"""Clips to visual tokens, each clip once: a bounded cache by content, and one encoding however many requests ask for it.

Up to two clips are decoded while a third is encoded, in the order of asking, so that one that is hard to decode does not keep
the encoder from the others; each has a limited time for it. An encoding ends early when every request that waits for it has
gone. With the tokens come what the page shows: small pictures of the sampled frames and the norms of their tokens before
compression.

T frames, H, W patch rows and columns, N visual tokens, D hidden.
"""

from __future__ import annotations

import asyncio
import base64
import io
import time
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np

from runtime.bundle import VISION, Bundle
from runtime.core.errors import VideoError
from runtime.engine import EngineOptions
from runtime.llm.chat import Cancelled
from runtime.media.clip import Clip, DecodeLimits, sample_frames_limited
from runtime.server.media import Media
from runtime.server.norms import TOKEN_NORMS, open_with_norms
from runtime.vision.encoder import VisionEncoder

_PICTURE = 192  # pixels of a small picture's longer side
_AHEAD = 3  # clips that are decoded or encoded at once
_THREADS = 8  # that decode: those that were given up have one until they notice


@dataclass(frozen=True)
class EncodedClip:
    """key names the content and the graph; tokens [N, D]; norms [T, H, W] float16 or None; pictures: T JPEG data: URLs."""

    key: str
    tokens: np.ndarray
    frames: tuple[int, ...]
    timestamps: tuple[float, ...]
    repeated: int
    norms: np.ndarray | None
    pictures: tuple[str, ...]
    seconds: dict[str, float] = field(default_factory=dict)

    @property
    def bytes(self) -> int:
        return self.tokens.nbytes + (self.norms.nbytes if self.norms is not None else 0) + sum(map(len, self.pictures))


class ClipEncoder:
    """The vision encoder of one bundle for untrusted clips."""

    def __init__(self, bundle: Bundle, backend: str, options: EngineOptions, limits: DecodeLimits):
        self.bundle, self.limits = bundle, limits
        self.vision = VisionEncoder(bundle, open_with_norms(bundle, backend, options))
        self.identity = bundle.sha256(VISION)

    def key(self, media: Media) -> str:
        return f"{self.identity}:{media.digest}"

    def decode(self, media: Media, check: Callable[[], None]) -> Clip:
        """The bundle's frames of a clip. check is called for each and raises to stop; VideoError names the clip, not our file."""
        count = self.bundle.manifest.frames

        def each(frame: np.ndarray) -> np.ndarray:
            check()
            return self.vision.preprocessor.resize(frame)

        if media.fps is None:
            return self._sampled(media, 0, count, each)
        total = len(media.paths)
        indices = tuple(number * total // count for number in range(count))
        stills = {index: self._sampled(media, index, 1, each) for index in sorted(set(indices))}
        return Clip(
            path=media.paths[0],
            frames=np.concatenate([stills[index].frames for index in indices]),
            indices=indices,
            timestamps=tuple(index / media.fps for index in indices),
            duration=total / media.fps,
            total=total,
            size=stills[0].size,
        )

    def encode(self, media: Media, clip: Clip, check: Callable[[], None]) -> EncodedClip:
        """check raises to stop before the encoder runs."""
        start = time.perf_counter()
        pixel_values = self.vision.preprocessor.normalise(clip.frames)
        check()
        ready = time.perf_counter()
        tokens, norms = self._run(pixel_values)
        return EncodedClip(
            key=self.key(media),
            tokens=tokens,
            frames=clip.indices,
            timestamps=clip.timestamps,
            repeated=clip.repeated,
            norms=norms,
            pictures=tuple(map(_picture, clip.frames)),
            seconds={"decode+preprocess": ready - start, "encode+compress": time.perf_counter() - ready},
        )

    def _sampled(self, media: Media, file: int, count: int, each: Callable[[np.ndarray], np.ndarray]) -> Clip:
        path, name = media.paths[file], "the clip" if media.fps is None else f"frame {file} of the clip"
        try:
            return sample_frames_limited(path, count, each, self.limits)
        except VideoError as error:
            raise VideoError(str(error).replace(str(path), name)) from None

    def _run(self, pixel_values: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
        engine, manifest = self.vision.engine, self.bundle.manifest
        if not any(output.name == TOKEN_NORMS for output in engine.outputs):
            return self.vision.tokens(pixel_values), None
        outputs = self.vision.run(pixel_values)
        return outputs["visual_tokens"], outputs[TOKEN_NORMS].reshape(manifest.frames, *manifest.grid).astype(np.float16)


class ClipStore:
    """`await get(encoder, media)`; keeps at most `capacity` bytes, the least recently used go first.

    decode_seconds: for the decoding of one clip.
    """

    def __init__(self, capacity: int, decode_seconds: float):
        self.capacity, self.bytes = capacity, 0
        self.decode_seconds = decode_seconds
        self.ahead = asyncio.Semaphore(_AHEAD)
        self.decoders = ThreadPoolExecutor(_THREADS, thread_name_prefix="decode")
        self.vision = ThreadPoolExecutor(1, thread_name_prefix="vision")
        self._kept: OrderedDict[str, EncodedClip] = OrderedDict()
        self._running: dict[str, _Encoding] = {}

    def __len__(self) -> int:
        return len(self._kept)

    async def get(self, encoder: ClipEncoder, media: Media) -> tuple[EncodedClip, bool]:
        """(the clip, whether it was there already). `media` is closed as soon as it is not needed any more."""
        key = encoder.key(media)
        if key in self._kept:
            media.close()
            self._kept.move_to_end(key)
            return self._kept[key], True
        running = self._running.get(key)
        if running is None:
            running = self._running[key] = _Encoding(self, encoder, media)
        else:
            media.close()
        try:
            clip = await running.wait()
        finally:
            if self._running.get(key) is running and (running.abandoned or running.task.done()):
                del self._running[key]
        if key not in self._kept:
            self._keep(clip)
        return clip, False

    def close(self) -> None:
        for pool in (self.decoders, self.vision):
            pool.shutdown(cancel_futures=True)

    def _keep(self, clip: EncodedClip) -> None:
        if clip.bytes > self.capacity:
            return
        self._kept[clip.key] = clip
        self.bytes += clip.bytes
        while self.bytes > self.capacity:
            _, old = self._kept.popitem(last=False)
            self.bytes -= old.bytes


class _Encoding:
    """One clip being encoded and how many wait for it."""

    def __init__(self, store: ClipStore, encoder: ClipEncoder, media: Media):
        self.waiters, self.abandoned = 0, False
        self.task = asyncio.ensure_future(self._encode(store, encoder, media))
        # a task that failed, the error and its frames hold each other, and the clip with them
        self.task.add_done_callback(lambda _: media.close())

    async def wait(self) -> EncodedClip:
        self.waiters += 1
        try:
            return await asyncio.shield(self.task)
        finally:
            self.waiters -= 1
            if not self.waiters and not self.task.done():
                self.abandoned = True  # its threads notice
                self.task.cancel()

    async def _encode(self, store: ClipStore, encoder: ClipEncoder, media: Media) -> EncodedClip:
        loop = asyncio.get_running_loop()
        async with store.ahead:
            start = time.perf_counter()
            decoding = loop.run_in_executor(store.decoders, encoder.decode, media, self._check)
            try:
                clip = await asyncio.wait_for(decoding, store.decode_seconds)
            except asyncio.TimeoutError:  # noqa: UP041: a class of its own before Python 3.11
                self.abandoned = True
                raise VideoError(
                    f"the clip takes more than {store.decode_seconds:g} s to decode; send a shorter or smaller one"
                ) from None
            decoded = time.perf_counter() - start
            encoded = await loop.run_in_executor(store.vision, encoder.encode, media, clip, self._check)
            encoded.seconds["decode+preprocess"] += decoded
            return encoded

    def _check(self) -> None:
        if self.abandoned:
            raise Cancelled("every request for this clip was cancelled")


def _picture(frame: np.ndarray) -> str:
    from PIL import Image

    image = Image.fromarray(frame)
    image.thumbnail((_PICTURE, _PICTURE))
    file = io.BytesIO()
    image.save(file, "JPEG", quality=80)
    return "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode()
