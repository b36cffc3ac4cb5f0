"""A batch of conversations of different lengths computes what each computes alone, and leaves the others' caches as they were."""

from __future__ import annotations

import numpy as np
import pytest

from runtime.bundle import DECODER
from runtime.core.errors import ContextError, EngineError
from runtime.engine import open_engine
from runtime.llm.decoder import LocalDecoder
from runtime.llm.slots import SlotDecoder

RNG = np.random.default_rng(0)


@pytest.fixture(scope="module")
def alone(bundle):
    return LocalDecoder.open(bundle, "onnx")


@pytest.fixture(params=["onnx", "openvino", "one by one"])
def slots(request, bundle):
    if request.param != "one by one":
        if request.param == "openvino":
            pytest.importorskip("openvino")
        decoder = SlotDecoder.open(bundle, 4, request.param)
        assert decoder.batched and decoder.engine.backend == request.param
    else:  # the graph of older bundles, and of TensorRT
        decoder = SlotDecoder(bundle, open_engine(bundle, DECODER, "onnx"), 4)
        assert not decoder.batched
    yield decoder
    decoder.close()


def _rows(bundle, count: int) -> np.ndarray:
    return RNG.normal(0, 0.1, (count, bundle.manifest.hidden_size)).astype(np.float32)


def test_a_ragged_batch_equals_each_alone(bundle, alone, slots):
    prompts = [_rows(bundle, n) for n in (40, 3, 17)]
    conversations = [alone.conversation() for _ in prompts]
    for slot, (prompt, conversation) in enumerate(zip(prompts, conversations, strict=True)):
        np.testing.assert_allclose(slots.extend(slot, prompt), conversation.extend(prompt[None]), atol=2e-4)
    for _ in range(5):
        step = _rows(bundle, 3)
        got = slots.step([0, 1, 2], step)
        for row, conversation, logits in zip(step, conversations, got, strict=True):
            np.testing.assert_allclose(logits, conversation.extend(row[None, None]), atol=2e-4)


def test_slots_that_sit_out_keep_what_they_hold(bundle, alone, slots):
    prompts = [_rows(bundle, n) for n in (5, 9, 30, 12)]
    conversations = [alone.conversation() for _ in prompts]
    for slot, (prompt, conversation) in enumerate(zip(prompts, conversations, strict=True)):
        slots.extend(slot, prompt)
        conversation.extend(prompt[None])
    for taking in ([0, 3], [3], [1, 2], [0, 2, 3], [1]):
        step = _rows(bundle, len(taking))
        got = slots.step(taking, step)
        for slot, row, logits in zip(taking, step, got, strict=True):
            np.testing.assert_allclose(logits, conversations[slot].extend(row[None, None]), atol=2e-4)


def test_a_slot_that_forgets_goes_on_from_there(bundle, alone, slots):
    prompt, other = _rows(bundle, 20), _rows(bundle, 6)
    slots.extend(1, prompt)
    slots.lengths[1] = 12
    expected = alone.conversation().extend(np.concatenate([prompt[:12], other])[None])
    np.testing.assert_allclose(slots.extend(1, other), expected, atol=2e-4)


def test_a_full_slot_beside_a_step_does_not_break_it(bundle, alone, slots):
    full = slots.max_context
    slots.extend(1, _rows(bundle, full))
    first, last = _rows(bundle, 4), _rows(bundle, 4)
    slots.extend(0, first), slots.extend(2, last)
    step = _rows(bundle, 2)
    got = slots.step([0, 2], step)
    conversation = alone.conversation()
    conversation.extend(last[None])
    np.testing.assert_allclose(got[1], conversation.extend(step[1][None, None]), atol=2e-4)
    assert slots.lengths[1] >= full - 1
    slots.lengths[1] = full
    with pytest.raises(ContextError, match=str(full + 1)):
        slots.step([1], step[:1])


def test_no_slots_are_refused(bundle):
    with pytest.raises(EngineError, match="0 conversations"):
        SlotDecoder.open(bundle, 0, "onnx")
