"""The clip store over a stand-in for the encoder: what is kept, what is shared, what is given up."""

from __future__ import annotations

import asyncio
import threading
from types import SimpleNamespace

import numpy as np
import pytest
from clip_store import with_store
from loop_time import pass_time, turns

from runtime.core.errors import VideoError
from runtime.server.clip_encoder import EncodedClip
from runtime.server.clips import _AHEAD


class Encoder:
    """Clips are numbers; each has 100 bytes of tokens. `gates[clip]` holds its decoding up, `decoded` and `encoded` list what was done."""

    def __init__(self):
        self.gates: dict[int, threading.Event] = {}
        self.decoded: list[int] = []
        self.encoded: list[int] = []

    def key(self, media) -> str:
        return str(media.clip)

    def decode(self, media, check):
        self.decoded.append(media.clip)
        if media.clip in self.gates:
            assert self.gates[media.clip].wait(60)
        check()
        return media.clip

    def encode(self, media, clip, check):
        check()
        self.encoded.append(clip)
        return EncodedClip(str(clip), np.zeros(100, np.uint8), (), (), 0, None, (), {"decode+preprocess": 0.0})


@pytest.fixture
def encoder():
    return Encoder()


def _media(clip: int) -> SimpleNamespace:
    one = SimpleNamespace(clip=clip, closed=False)
    one.close = lambda: setattr(one, "closed", True)
    return one


def test_every_asker_s_file_goes_once_nobody_reads_it(encoder):
    async def work(store):
        gate = encoder.gates.setdefault(0, threading.Event())
        first, joined, cached = (_media(0) for _ in range(3))
        asking = [asyncio.ensure_future(store.get(encoder, one)) for one in (first, joined)]
        await _until(lambda: encoder.decoded == [0] and joined.closed)
        assert not first.closed  # it is being decoded
        gate.set()
        await asyncio.gather(*asking)
        await store.get(encoder, cached)
        assert first.closed and cached.closed

    with_store(work)


def test_the_file_of_a_clip_that_can_not_be_decoded_goes(encoder):
    async def work(store):
        encoder.decode = lambda *_: (_ for _ in ()).throw(VideoError("damaged"))
        media = _media(0)
        with pytest.raises(VideoError):
            await store.get(encoder, media)
        await _until(lambda: media.closed)

    with_store(work)


def test_what_was_used_least_recently_goes_first(encoder):
    async def work(store):
        hits = [(await store.get(encoder, _media(clip)))[1] for clip in (0, 1, 0, 2, 0, 1)]
        assert hits == [False, False, True, False, True, False]  # 2 took the place of 1, not of 0, which was asked for again
        assert encoder.encoded == [0, 1, 2, 1] and store.bytes == 200 and len(store) == 2

    with_store(work, capacity=250)


def test_a_clip_larger_than_the_cache_is_not_kept(encoder):
    async def work(store):
        assert [(await store.get(encoder, _media(0)))[1] for _ in range(2)] == [False, False]
        assert len(store) == store.bytes == 0

    with_store(work, capacity=99)


def test_one_encoding_serves_all_who_ask_and_goes_on_while_one_of_them_waits(encoder):
    async def work(store):
        gate = encoder.gates[0] = threading.Event()
        first, second = (asyncio.ensure_future(store.get(encoder, _media(0))) for _ in range(2))
        await _until(lambda: encoder.decoded)
        first.cancel()
        await asyncio.gather(first, return_exceptions=True)
        gate.set()
        assert (await second)[0].key == "0" and encoder.encoded == [0]

    with_store(work)


@pytest.mark.parametrize("late", [False, True], ids=["before the other has gone", "after"])
def test_who_asks_as_the_only_other_asker_goes_gets_the_clip(encoder, late):
    """Not the other's cancellation."""

    async def work(store):
        gate = encoder.gates[0] = threading.Event()
        gone = asyncio.ensure_future(store.get(encoder, _media(0)))
        await _until(lambda: encoder.decoded)
        gone.cancel()  # which arrives when the loop runs next
        if late:
            await asyncio.gather(gone, return_exceptions=True)
        asking = asyncio.ensure_future(store.get(encoder, _media(0)))
        await turns()
        gate.set()
        assert (await asking)[0].key == "0" and not store._running

    with_store(work)


def test_an_abandoned_encoding_ends_before_the_encoder_runs(encoder):
    async def work(store):
        gate = encoder.gates[0] = threading.Event()
        gone = asyncio.ensure_future(store.get(encoder, _media(0)))
        await _until(lambda: encoder.decoded)
        gone.cancel()
        await asyncio.gather(gone, return_exceptions=True)
        gate.set()
        await store.get(encoder, _media(1))
        assert encoder.encoded == [1] and not store._running

    with_store(work)


def test_the_file_of_an_abandoned_clip_goes_at_once_however_long_its_turn_takes(encoder):
    async def work(store):
        gates = [encoder.gates.setdefault(clip, threading.Event()) for clip in range(_AHEAD)]
        before = [asyncio.ensure_future(store.get(encoder, _media(clip))) for clip in range(_AHEAD)]
        waiting = _media(_AHEAD)
        gone = asyncio.ensure_future(store.get(encoder, waiting))
        await _until(lambda: len(encoder.decoded) == _AHEAD)
        assert not waiting.closed
        gone.cancel()
        await asyncio.gather(gone, return_exceptions=True)
        await turns()  # callbacks of a task that ended run in the loop's next turn
        assert waiting.closed and not any(task.done() for task in before)
        for gate in gates:
            gate.set()
        await asyncio.gather(*before)
        assert _AHEAD not in encoder.decoded

    with_store(work)


def test_a_clip_that_is_hard_to_decode_does_not_keep_the_encoder_from_others(encoder):
    async def work(store):
        gates = [encoder.gates.setdefault(clip, threading.Event()) for clip in (0, 1)]
        hard = [asyncio.ensure_future(store.get(encoder, _media(clip))) for clip in (0, 1)]
        await _until(lambda: len(encoder.decoded) == 2)
        assert [(await store.get(encoder, _media(clip)))[0].key for clip in (2, 3)] == ["2", "3"]
        for gate in gates:
            gate.set()
        await asyncio.gather(*hard)

    with_store(work)


def test_decoding_has_a_time_limit(encoder):
    async def work(store):
        gates = [encoder.gates.setdefault(clip, threading.Event()) for clip in range(6)]
        asking = [asyncio.ensure_future(store.get(encoder, _media(clip))) for clip in range(7)]
        for begun in (3, 6):
            await _until(lambda begun=begun: len(encoder.decoded) == begun)
            await pass_time(49)
            assert len(encoder.decoded) == begun and not any(one.done() for one in asking[begun - 3 :])
            await pass_time(1)
        got = await asyncio.gather(*asking, return_exceptions=True)
        assert all(isinstance(one, VideoError) and "more than 50 s to decode" in str(one) for one in got[:6])
        assert got[6][0].key == "6"  # behind all of those
        for gate in gates:
            gate.set()
        assert encoder.encoded == [6] and not store._running

    with_store(work, decode_seconds=50)


async def _until(condition) -> None:
    for _ in range(10_000):  # a minute: the machine may be busy
        if condition():
            return
        await asyncio.sleep(0.005)
    raise AssertionError("it did not happen in time")
