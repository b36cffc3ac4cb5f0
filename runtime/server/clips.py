"""Clips to visual tokens, each clip once: a bounded cache by content, and one encoding however many requests ask for it.

Encoding runs in one thread, in the order of asking; it ends early when every request that waits for it has gone. With the
tokens come what the page shows: small pictures of the sampled frames and the norms of their tokens before compression.

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
from runtime.engine import EngineOptions
from runtime.errors import VideoError
from runtime.llm.scheduler import Cancelled
from runtime.server.media import Media
from runtime.server.norms import TOKEN_NORMS, open_with_norms
from runtime.video import DecodeLimits, sample_frames_limited
from runtime.vision import VisionEncoder

_PICTURE = 192  # pixels of a small picture's longer side


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
    """The vision half of one bundle for clips from strangers."""

    def __init__(self, bundle: Bundle, backend: str, options: EngineOptions, limits: DecodeLimits):
        self.bundle, self.limits = bundle, limits
        self.vision = VisionEncoder(bundle, open_with_norms(bundle, backend, options))
        self.identity = bundle.sha256(VISION)

    def encode(self, media: Media, check: Callable[[], None] = lambda: None) -> EncodedClip:
        """check is called between frames and raises to stop. VideoError names the clip as such, not our temporary file."""
        manifest, preprocessor = self.bundle.manifest, self.vision.preprocessor

        def each(frame: np.ndarray) -> np.ndarray:
            check()
            return preprocessor.resize(frame)

        start = time.perf_counter()
        with media.file() as path:
            try:
                clip = sample_frames_limited(path, manifest.frames, each, self.limits)
            except VideoError as error:
                raise VideoError(str(error).replace(str(path), "the clip")) from None
        pixel_values = preprocessor.normalise(clip.frames)
        check()
        decoded = time.perf_counter()
        tokens, norms = self._run(pixel_values)
        encoded = time.perf_counter()
        return EncodedClip(
            key=f"{self.identity}:{media.digest}",
            tokens=tokens,
            frames=clip.indices,
            timestamps=clip.timestamps,
            repeated=clip.repeated,
            norms=norms,
            pictures=tuple(map(_picture, clip.frames)),
            seconds={"decode+preprocess": decoded - start, "encode+compress": encoded - decoded},
        )

    def _run(self, pixel_values: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
        engine, manifest = self.vision.engine, self.bundle.manifest
        if not any(output.name == TOKEN_NORMS for output in engine.outputs):
            return self.vision.tokens(pixel_values), None
        outputs = self.vision.run(pixel_values)
        return outputs["visual_tokens"], outputs[TOKEN_NORMS].reshape(manifest.frames, *manifest.grid).astype(np.float16)


class ClipStore:
    """`await get(encoder, media)`; keeps at most `capacity` bytes, the least recently used go first."""

    def __init__(self, capacity: int):
        self.capacity, self.bytes = capacity, 0
        self._kept: OrderedDict[str, EncodedClip] = OrderedDict()
        self._running: dict[str, _Encoding] = {}
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="vision")

    def __len__(self) -> int:
        return len(self._kept)

    async def get(self, encoder: ClipEncoder, media: Media) -> tuple[EncodedClip, bool]:
        """(the clip, whether it was there already)."""
        key = f"{encoder.identity}:{media.digest}"
        if key in self._kept:
            self._kept.move_to_end(key)
            return self._kept[key], True
        running = self._running.get(key)
        if running is None or running.abandoned:
            running = self._running[key] = _Encoding(self._pool, encoder, media)
        try:
            clip = await running.wait()
        finally:
            if self._running.get(key) is running and (running.abandoned or running.future.done()):
                del self._running[key]
        if key not in self._kept:
            self._keep(clip)
        return clip, False

    def close(self) -> None:
        self._pool.shutdown(cancel_futures=True)

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

    def __init__(self, pool: ThreadPoolExecutor, encoder: ClipEncoder, media: Media):
        self.waiters, self.abandoned = 0, False
        self.future = asyncio.wrap_future(pool.submit(encoder.encode, media, self._check))

    async def wait(self) -> EncodedClip:
        self.waiters += 1
        try:
            return await asyncio.shield(self.future)
        finally:
            self.waiters -= 1
            if not self.waiters and not self.future.done():
                self.abandoned = True
                self.future.add_done_callback(lambda future: future.cancelled() or future.exception())  # nobody asks for it

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
