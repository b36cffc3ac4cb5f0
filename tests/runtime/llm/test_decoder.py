"""What a conversation feeds its engine, on one that only records it; the numbers are those that a cache of that length needs."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
from manifests import bundle_of

from runtime.bundle.manifest import LLMInfo
from runtime.core.errors import ContextError, NonFiniteError
from runtime.engine import EngineOptions
from runtime.llm import decoder
from runtime.llm.decoder import LocalDecoder


class Engine:
    """Logits of a run: the number of the run at id 0, and the first value of the last row at id 1; other rows are -9."""

    device = "cpu"

    def __init__(self, dtype: type = np.float32, layers: int = 2):
        self.inputs = [SimpleNamespace(name=name, dtype=np.dtype(kind)) for name, kind in
                       (("attention_mask", np.int64), ("inputs_embeds", dtype), ("position_ids", np.int64))]  # fmt: skip
        self.fed, self.pairs, self.spoilt = [], None, None
        caches = [f"{layer}.{part}" for layer in range(layers) for part in ("key", "value")]
        self.inputs += [SimpleNamespace(name=f"past_key_values.{cache}", dtype=np.dtype(dtype)) for cache in caches]
        self.outputs = [SimpleNamespace(name=name) for name in ("logits", *(f"present.{cache}" for cache in caches))]

    def new_state(self, pairs: dict) -> str:
        self.pairs = pairs
        return "the cache"

    def run(self, feeds: dict, state: str) -> dict:
        assert state == "the cache"
        self.fed.append(feeds)
        rows = feeds["inputs_embeds"]
        logits = np.full((1, rows.shape[1], 3), -9, np.float16)
        logits[0, -1] = len(self.fed), rows[0, -1, 0], 0
        if self.spoilt is not None:
            logits[0, -1, 2] = self.spoilt
        return {"hidden": rows, "logits": logits}


def opened(max_context: int = 300, dtype: type = np.float32) -> tuple[Engine, LocalDecoder]:
    engine = Engine(dtype)
    return engine, LocalDecoder(bundle_of(max_context=max_context, llm=LLMInfo(2, 1, 2)), engine)


def rows(count: int, first: int = 0) -> np.ndarray:
    return np.arange(first, first + 2 * count, dtype=np.float32).reshape(1, count, 2)


def test_a_conversation_has_a_key_and_a_value_cache_a_layer():
    engine, local = opened()
    conversation = local.conversation()
    assert (conversation.length, conversation.decoder, local.dtype) == (0, local, np.float32)
    assert engine.pairs == {
        "past_key_values.0.key": "present.0.key", "past_key_values.0.value": "present.0.value",
        "past_key_values.1.key": "present.1.key", "past_key_values.1.value": "present.1.value",
    }  # fmt: skip


@pytest.mark.parametrize("arguments", [(), ("openvino", EngineOptions(device="cpu", threads=3))])
def test_opening_loads_the_decoder_s_graph_on_the_backend_and_device_that_were_asked_for(monkeypatch, arguments):
    asked = []
    bundle = bundle_of(max_context=7, llm=LLMInfo(1, 1, 2))
    monkeypatch.setattr(decoder, "open_engine", lambda *passed: asked.append(passed) or Engine(layers=1))
    assert LocalDecoder.open(bundle, *arguments).max_context == 7
    assert asked == [(bundle, "llm/decoder", *(arguments or ("auto", EngineOptions())))]


def test_a_prompt_is_fed_in_chunks_behind_what_is_there():
    engine, local = opened()
    conversation = local.conversation()
    assert conversation.extend(rows(2, 50)).tolist() == [1, 52, 0]
    logits = conversation.extend(rows(7), chunk=3)
    assert logits.dtype == np.float32 and logits.tolist() == [4, 12, 0]  # of the fourth run, its last row begins with 12
    assert conversation.length == 9
    for feeds, first, count, held in zip(engine.fed[1:], (0, 6, 12), (3, 3, 1), (2, 5, 8), strict=True):
        np.testing.assert_array_equal(feeds["inputs_embeds"], rows(count, first))
        assert feeds["position_ids"].tolist() == [list(range(held, held + count))] and feeds["position_ids"].dtype == np.int64
        assert feeds["attention_mask"].tolist() == [[1] * (held + count)] and feeds["attention_mask"].dtype == np.int64


def test_embeddings_come_in_the_graph_s_precision():
    engine, local = opened(dtype=np.float16)
    local.conversation().extend(rows(2))
    assert engine.fed[0]["inputs_embeds"].dtype == np.float16


@pytest.mark.parametrize("value", [np.inf, -np.inf, np.nan])
def test_logits_that_are_not_finite_are_an_error(value):
    engine, local = opened()
    engine.spoilt = value
    with pytest.raises(NonFiniteError):
        local.conversation().extend(rows(1))


def test_the_cache_takes_as_many_positions_as_it_has():
    engine, local = opened(max_context=4)
    conversation = local.conversation()
    with pytest.raises(ContextError, match=r"5 .* 4"):
        conversation.extend(rows(5))
    assert not engine.fed
    conversation.extend(rows(3))
    conversation.extend(rows(1))
    with pytest.raises(ContextError, match=r"5 .* 4"):
        conversation.extend(rows(1))
    assert conversation.length == 4
