"""What an engine is asked for the slots of a decoder, on a stand-in for it; and which graph of a bundle is opened."""

from __future__ import annotations

import numpy as np
import pytest
from manifests import bundle_of

from runtime.bundle import BATCH, DECODER_BATCH, Bundle
from runtime.bundle.manifest import LLMInfo
from runtime.core.errors import ContextError, EngineError
from runtime.engine import EngineOptions, TensorSpec
from runtime.llm import slots
from runtime.llm.slots import SlotDecoder

D = 3


def bundle(max_context: int = 10, files: tuple[str, ...] = ()) -> Bundle:
    return bundle_of(*files, max_context=max_context, llm=LLMInfo(2, 1, D), hidden_size=D)


class State:
    def __init__(self, number: int):
        self.number = number

    def batch_slice(self, start: int, stop: int) -> tuple[int, int, int]:
        return self.number, start, stop


class Engine:
    """Its logits of a position are that and the embedding's first value; runs: (state, embeddings' first values, positions, mask)."""

    device = "cpu"

    def __init__(self, batch: int | str):
        float16 = np.dtype(np.float16)
        caches = [f"{layer}.{part}" for layer in range(2) for part in ("key", "value")]
        self.inputs = (
            TensorSpec("other", float16, (5,)),
            TensorSpec("inputs_embeds", float16, (batch, "positions", D)),
            *(TensorSpec(f"past_key_values.{cache}", float16, (batch, 1, 10, D)) for cache in caches),
        )
        self.outputs = [TensorSpec(f"present.{cache}", float16, (batch, 1, 10, D)) for cache in caches]
        self.states: list[tuple[dict[str, str], int]] = []
        self.runs: list[tuple] = []
        self.closed = 0

    def new_state(self, pairs: dict[str, str], batch: int) -> State:
        self.states.append((pairs, batch))
        return State(len(self.states))

    def run(self, feeds: dict[str, np.ndarray], state: object) -> dict[str, np.ndarray]:
        embeddings, positions, mask = (feeds[name] for name in ("inputs_embeds", "position_ids", "attention_mask"))
        assert embeddings.dtype == np.float16 and positions.dtype == mask.dtype == np.int64 and mask.all()
        assert embeddings.shape == (*positions.shape, D) and len(mask) == len(positions)
        self.runs.append((state, embeddings[:, :, 0].tolist(), positions.tolist(), mask.shape[1]))
        return {"logits": np.stack([positions, embeddings[:, :, 0]], -1).astype(np.float16)}

    def close(self) -> None:
        self.closed += 1


def decoder(lengths: list[int], batch: int | str = BATCH, max_context: int = 10) -> SlotDecoder:
    one = SlotDecoder(bundle(max_context), Engine(batch), len(lengths))
    assert one.lengths == [0] * len(lengths) and one.batched == (batch == BATCH)
    one.lengths = list(lengths)
    return one


def rows(*firsts: float) -> np.ndarray:
    """[B, D] float32."""
    return np.array([[first, 50, 60] for first in firsts], np.float32)


def test_a_step_is_one_run_of_all_slots_from_the_first_to_the_last_that_take_part():
    one = decoder([4, 2, 7, 5, 0])
    logits = one.step([3, 1], rows(30, 10))
    assert one.engine.runs == [((1, 1, 4), [[10], [0], [30]], [[2], [7], [5]], 6)]
    assert logits.dtype == np.float32 and logits.tolist() == [[5, 30], [2, 10]]
    assert one.lengths == [4, 3, 7, 6, 0]
    assert one.step([4], rows(40)).tolist() == [[0, 40]]
    assert one.engine.runs[1:] == [((1, 4, 5), [[40]], [[0]], 1)] and one.lengths == [4, 3, 7, 6, 1]


def test_a_full_slot_that_sits_out_gives_a_row_up_and_any_other_keeps_its_own():
    one = decoder([4, 10, 9, 8, 10, 7, 10])
    one.step([0, 5], rows(1, 2))
    ((_, _, positions, _),) = one.engine.runs
    assert positions == [[4], [9], [9], [8], [9], [7]]
    assert one.lengths == [5, 9, 9, 8, 9, 8, 10]


@pytest.mark.parametrize("batch", [BATCH, 1])
def test_a_slot_takes_what_fits_and_no_more(batch):
    one = decoder([9, 10], batch)
    one.step([0], rows(1))
    assert one.lengths == [10, 10]
    for call in (lambda: one.step([0], rows(1)), lambda: one.step([1], rows(1)), lambda: one.extend(1, rows(1))):
        with pytest.raises(ContextError, match=r"11 .* 10"):
            call()
    assert len(one.engine.runs) == 1 and one.lengths == [10, 10]


def test_slots_of_a_graph_for_one_are_stepped_in_turn():
    one = decoder([4, 2, 7], 1)
    assert one.step([2, 0], rows(30, 10)).tolist() == [[7, 30], [4, 10]]
    assert [(state.number, *rest) for state, *rest in one.engine.runs] == [(3, [[30]], [[7]], 8), (1, [[10]], [[4]], 5)]
    assert one.lengths == [5, 2, 8]


def test_a_prompt_is_prefilled_in_chunks():
    one = decoder([0, 3])
    one.chunk = 2
    logits = one.extend(1, rows(1, 2, 3, 4, 5))
    state = (1, 1, 2)
    assert one.engine.runs == [(state, [[1, 2]], [[3, 4]], 5), (state, [[3, 4]], [[5, 6]], 7), (state, [[5]], [[7]], 8)]
    assert logits.dtype == np.float32 and logits.tolist() == [7, 5] and one.lengths == [0, 8]


def test_a_cache_is_one_for_all_slots_or_one_for_each():
    pairs = {f"past_key_values.{n}.{part}": f"present.{n}.{part}" for n in (0, 1) for part in ("key", "value")}
    one, each = decoder([0] * 3), decoder([0] * 3, 1)
    assert one.engine.states == [(pairs, 3)] and each.engine.states == [(pairs, 1)] * 3
    for closed in (one, each):
        closed.close()
        assert closed.engine.closed == 1 and closed._states == []


def test_there_is_at_least_one_slot():
    assert decoder([0]).slots == 1
    with pytest.raises(EngineError, match="0 conversations"):
        decoder([])


@pytest.mark.parametrize("arguments", [(), ("openvino", EngineOptions(threads=3))])
def test_the_graph_for_a_batch_is_asked_for(monkeypatch, arguments):
    asked = []
    monkeypatch.setattr(slots, "open_engine", lambda *words: asked.append(words) or Engine(BATCH))
    one = bundle()
    assert SlotDecoder.open(one, 5, *arguments).slots == 5
    assert asked == [(one, DECODER_BATCH, *(arguments or ("auto", EngineOptions())))]
