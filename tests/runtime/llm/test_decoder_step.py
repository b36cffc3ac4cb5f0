"""One run of the decoder graph: its inputs in numbers, its caches, and which chunks a prompt is cut into."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
from manifests import bundle_of

from runtime.bundle.manifest import LLMInfo
from runtime.core.errors import BundleError, ContextError, NonFiniteError
from runtime.llm.decoder import DecoderStep, cache_pairs, check_context, decoder_feeds, finite


class Engine:
    """An engine of `layers` layers that records its feeds; logits are the position and the embedding's first value."""

    def __init__(self, layers: int = 2, dtype: type = np.float16, device: str = "cpu"):
        self.device, self.fed = device, []
        caches = [f"{layer}.{part}" for layer in range(layers) for part in ("key", "value")]
        inputs = {"inputs_embeds": dtype, "position_ids": np.int64, "attention_mask": np.int64}
        inputs |= {f"past_key_values.{cache}": dtype for cache in caches}
        self.inputs = [SimpleNamespace(name=name, dtype=np.dtype(kind)) for name, kind in inputs.items()]
        self.outputs = [SimpleNamespace(name=name) for name in ("logits", *(f"present.{cache}" for cache in caches))]

    def run(self, feeds: dict, state: str) -> dict:
        assert state == "the state"
        self.fed.append(feeds)
        return {"logits": np.stack([feeds["position_ids"], feeds["inputs_embeds"][..., 0]], -1).astype(np.float16)}


def opened(engine: Engine, max_context: int = 3000, layers: int = 2, attention: str = "portable") -> DecoderStep:
    return DecoderStep(bundle_of(max_context=max_context, llm=LLMInfo(layers, 1, 2, attention=attention)), engine)


def rows(batch: int, count: int) -> np.ndarray:
    """[B, S, 2] float32, each position with another first value."""
    return np.arange(2 * batch * count, dtype=np.float32).reshape(batch, count, 2)


@pytest.mark.parametrize(
    ("starts", "count", "read", "positions", "rows_read"),
    [
        ([0], 1, None, [[0]], 1),
        ([7], 3, None, [[7, 8, 9]], 10),
        ([4, 9, 0], 1, None, [[4], [9], [0]], 10),
        ([4, 9, 0], 1, 5, [[4], [9], [0]], 5),
        ([2, 5], 2, None, [[2, 3], [5, 6]], 7),
    ],
)
def test_positions_go_on_where_each_conversation_ends_and_the_mask_spans_what_is_read(starts, count, read, positions, rows_read):
    embeddings = rows(len(starts), count)
    feeds = decoder_feeds(embeddings, starts, read)
    assert feeds.keys() == {"inputs_embeds", "position_ids", "attention_mask"} and feeds["inputs_embeds"] is embeddings
    assert feeds["position_ids"].tolist() == positions and feeds["position_ids"].dtype == np.int64
    assert feeds["attention_mask"].tolist() == [[1] * rows_read] * len(starts) and feeds["attention_mask"].dtype == np.int64


def test_every_past_has_its_present():
    assert cache_pairs(Engine(layers=1).inputs) == {
        "past_key_values.0.key": "present.0.key",
        "past_key_values.0.value": "present.0.value",
    }


def test_a_run_takes_the_graph_s_dtype_and_returns_the_last_logits_in_float32():
    engine = Engine()
    logits = opened(engine).run("the state", rows(2, 3), [5, 7])
    assert logits.dtype == np.float32 and logits.tolist() == [[7, 4], [9, 10]]
    assert engine.fed[0]["inputs_embeds"].dtype == np.float16
    assert opened(Engine(dtype=np.float32)).dtype == np.float32


@pytest.mark.parametrize(
    ("device", "attention", "chunks"),
    [
        ("cpu", "portable", [256] * 4 + [1]),
        ("cpu", "flash", [256] * 4 + [1]),
        ("gpu", "portable", [256] * 4 + [1]),  # OpenVINO's
        ("cuda", "portable", [1024, 1]),
        ("cuda", "standard", [1024, 1]),
        ("cuda", "flash", [1025]),
    ],
)
def test_a_chunk_is_256_positions_and_on_cuda_1024_or_with_flash_attention_more(device, attention, chunks):
    engine = Engine(device=device)
    logits = opened(engine, attention=attention).prefill("the state", rows(1, 1025) % 512, 3)
    assert [feeds["position_ids"].shape[1] for feeds in engine.fed] == chunks and logits.tolist() == [1027, 0]
    assert [feeds["position_ids"][0, 0] for feeds in engine.fed] == list(np.cumsum([3, *chunks[:-1]]))


def test_flash_attention_on_cuda_takes_8192_positions_at_a_time():
    engine = Engine(device="cuda")
    opened(engine, 9000, attention="flash").prefill("the state", np.zeros((1, 8193, 2), np.float32), 0)
    assert [feeds["position_ids"].shape[1] for feeds in engine.fed] == [8192, 1]


def test_a_prompt_that_does_not_fit_is_refused_before_it_is_run():
    engine = Engine()
    with pytest.raises(ContextError, match=r"9 .* 8"):
        opened(engine, max_context=8).prefill("the state", rows(1, 5), 4)
    assert not engine.fed
    check_context(4, 4)
    with pytest.raises(ContextError, match=r"5 .* 4"):
        check_context(5, 4)


@pytest.mark.parametrize(("layers", "lost"), [(1, ()), (3, ()), (2**31, ()), (2, ("inputs", -1)), (2, ("outputs", -1))])
def test_a_graph_has_the_caches_of_the_manifest_s_layers(layers, lost):
    engine = Engine()
    if lost:
        getattr(engine, lost[0])[lost[1]].name = "present.9.key"
    with pytest.raises(BundleError, match=f"{layers} layers"):
        opened(engine, layers=layers)


def test_logits_that_are_finite_are_returned():
    assert finite(fine := np.array([1.0, -3e38], np.float32)) is fine
    for value in (np.nan, np.inf, -np.inf):
        with pytest.raises(NonFiniteError):
            finite(np.array([1.0, value]))
