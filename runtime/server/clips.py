"""Each clip is encoded once: a bounded cache by content, and one encoding however many requests wait for it.

Up to two clips are decoded while a third is encoded, in the order of the requests, so that a clip that is slow to decode does not
keep the others from the encoder. Decoding has a time limit. An encoding is abandoned when every request that waits for it is gone.
"""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from concurrent.futures import ThreadPoolExecutor

from runtime.core.errors import VideoError
from runtime.llm.chat import Cancelled
from runtime.server.clip_encoder import ClipEncoder, EncodedClip
from runtime.server.media import Media

_AHEAD = 3  # clips that are decoded or encoded at a time
_THREADS = 8  # for decoding; more, because an abandoned clip occupies its thread until that notices


class ClipStore:
    """`await get(encoder, media)`. Keeps at most `capacity` bytes, dropping the least recently used clip first.

    decode_seconds: for decoding one clip.
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
        """The encoded clip, and whether the cache had it. `media` is closed as soon as it is no longer needed."""
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
    """One clip that is being encoded, and the number of requests that wait for it."""

    def __init__(self, store: ClipStore, encoder: ClipEncoder, media: Media):
        self.waiters, self.abandoned = 0, False
        self.task = asyncio.ensure_future(self._encode(store, encoder, media))
        # a failed task, its error and the error's frames keep each other alive, and with them the clip
        self.task.add_done_callback(lambda _: media.close())

    async def wait(self) -> EncodedClip:
        self.waiters += 1
        try:
            return await asyncio.shield(self.task)
        finally:
            self.waiters -= 1
            if not self.waiters and not self.task.done():
                self.abandoned = True  # its threads check this
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
                message = f"the clip takes more than {store.decode_seconds:g} s to decode; send a shorter or smaller one"
                raise VideoError(message) from None
            decoded = time.perf_counter() - start
            encoded = await loop.run_in_executor(store.vision, encoder.encode, media, clip, self._check)
            encoded.seconds["decode+preprocess"] += decoded
            return encoded

    def _check(self) -> None:
        if self.abandoned:
            raise Cancelled("all requests for this clip were cancelled")
