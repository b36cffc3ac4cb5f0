"""What the routes share: whether the server is ready, and a clip that is encoded before a deadline and counted."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace

import numpy as np
import pytest
from refusal import naming

from runtime.llm.chat import DeadlineError
from runtime.server import state as module
from runtime.server.models import Models, ServedModel
from runtime.server.options import ServerOptions
from runtime.server.state import State

MODEL = ServedModel("m", SimpleNamespace(manifest=SimpleNamespace(patch_tokens=100)), "encoder", None)


@pytest.fixture
def state(monkeypatch):
    """One whose clips have 7 tokens and took a second to decode; `cached` says whether the cache has them."""
    one = State(Models([]), ServerOptions())
    one.cached = False

    async def get(encoder, media):
        assert (encoder, media) == ("encoder", "media")
        return SimpleNamespace(tokens=np.zeros((7, 2)), seconds={"decode": 1.0}), one.cached

    monkeypatch.setattr(one.clips, "get", get)
    yield one
    one.close()


@pytest.mark.parametrize(("cached", "label", "decoded"), [(True, "hit", None), (False, "miss", 1)])
def test_a_clip_is_counted_and_its_seconds_unless_it_was_cached(state, cached, label, decoded):
    def value(name: str, **labels: str) -> float | None:
        return state.metrics.registry.get_sample_value(f"gridpool_{name}", labels)

    state.cached = cached
    clip, was_cached = asyncio.run(state.encode(MODEL, "media", float("inf")))
    assert (len(clip.tokens), was_cached) == (7, cached)
    assert value("clips_total", cache=label) == 1
    assert (value("patch_tokens_total"), value("visual_tokens_total")) == (100, 7)
    assert value("stage_seconds_sum", stage="decode") == decoded


@pytest.mark.parametrize(("deadline", "seconds"), [(103.5, 3.5), (100, 0), (90, 0)])
def test_a_clip_has_the_time_up_to_the_deadline(state, monkeypatch, deadline, seconds):
    waits = []

    async def wait_for(coming, timeout):
        coming.close()
        waits.append(timeout)
        raise asyncio.TimeoutError

    monkeypatch.setattr(asyncio, "wait_for", wait_for)
    monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: 100.0))
    with pytest.raises(DeadlineError, match=naming("deadline", "clip")):
        asyncio.run(state.encode(MODEL, "media", deadline))
    assert waits == [seconds]


@pytest.mark.parametrize(
    ("works", "draining", "reason"),
    [
        ([], False, None),
        ([True, True], False, None),
        ([True, False], False, "the LLM does not work"),
        ([True, True], True, "draining"),
    ],
)
def test_a_server_is_ready_while_all_its_llms_work_and_it_does_not_drain(works, draining, reason):
    one = State(SimpleNamespace(llms=[SimpleNamespace(healthy=healthy) for healthy in works]), ServerOptions())
    one.admission.draining = draining
    assert one.not_ready() == reason
