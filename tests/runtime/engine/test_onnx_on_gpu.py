"""ONNX Runtime's CUDA provider computes what torch computed, and keeps the state of a conversation on the GPU."""

from __future__ import annotations

import numpy as np
import pytest
from on_gpu import NEEDS_GPU

from runtime.bundle import DECODER_BATCH
from runtime.engine import EngineOptions, open_engine
from runtime.engine.onnx import OnnxEngine
from runtime.llm.decoder import LocalDecoder
from runtime.llm.slots import SlotDecoder
from runtime.tools.parity import parity

DEVICE = "cuda"
_REASON = OnnxEngine.unavailable(DEVICE)
pytestmark = [*NEEDS_GPU, pytest.mark.skipif(_REASON is not None, reason=str(_REASON))]


@pytest.fixture(scope="module")
def fp16_bundle(tmp_path_factory):
    from export.options import ExportOptions
    from export.pipeline import export_bundle

    return export_bundle(ExportOptions(out=str(tmp_path_factory.mktemp("gpu") / "fp16"), precision="fp16")).bundle


@pytest.fixture(scope="module")
def flash_bundle(tmp_path_factory):
    from export.options import ExportOptions
    from export.pipeline import export_bundle

    out = tmp_path_factory.mktemp("gpu") / "fp16-flash"
    return export_bundle(ExportOptions(out=str(out), precision="fp16", attention="flash")).bundle


@pytest.mark.parametrize("which", ["bundle", "fp16_bundle", "flash_bundle"])
def test_both_components_compute_what_torch_computed(request, which):
    report = parity(request.getfixturevalue(which), ["onnx"], EngineOptions(device=DEVICE))
    assert report.ok, report.rows
    assert {row.stage for row in report.rows} >= {"visual_tokens", "llm/prefill", "llm/greedy_ids"}


def test_rows_of_a_batch_with_flash_attention_see_the_positions_that_each_has_filled(flash_bundle):
    """Two conversations of different lengths, one step together: the logits that each has alone."""
    options = EngineOptions(device=DEVICE)
    slots = SlotDecoder(flash_bundle, open_engine(flash_bundle, DECODER_BATCH, "onnx", options), 3)
    decoder = LocalDecoder.open(flash_bundle, "onnx", options)
    rows = np.random.default_rng(2).normal(0, 0.1, (2, 7, flash_bundle.manifest.hidden_size)).astype(np.float32)
    lengths = (6, 3)
    for slot, length in enumerate(lengths):
        slots.extend(slot, rows[slot, :length])
    got = slots.step([0, 1], np.stack([row[length] for row, length in zip(rows, lengths, strict=True)]))
    alone = [decoder.conversation().extend(row[None, : length + 1]) for row, length in zip(rows, lengths, strict=True)]
    np.testing.assert_allclose(got, alone, rtol=0, atol=1e-2 * np.abs(alone).max())


def test_conversations_take_turns(bundle):
    prompts = np.random.default_rng(1).standard_normal((2, 1, 9, bundle.manifest.hidden_size)).astype(np.float32)
    expected = [LocalDecoder.open(bundle, "onnx").conversation().extend(prompt) for prompt in prompts]
    decoder = LocalDecoder.open(bundle, "onnx", EngineOptions(device=DEVICE))
    turns = [decoder.conversation(), decoder.conversation()]
    for part in (slice(0, 4), slice(4, 9)):
        got = [turn.extend(prompt[:, part]) for turn, prompt in zip(turns, prompts, strict=True)]
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-4)


def test_rows_of_a_batch_are_updated_where_they_lie_in_device_memory(bundle):
    """Two conversations of different lengths in a batch have the logits that each has alone."""
    engine = open_engine(bundle, DECODER_BATCH, "onnx", EngineOptions(device=DEVICE))
    pairs = {
        f"past_key_values.{layer}.{part}": f"present.{layer}.{part}"
        for layer in range(bundle.llm.layers)
        for part in ("key", "value")
    }
    state = engine.new_state(pairs, batch=3)
    rows = np.random.default_rng(2).standard_normal((2, 7, bundle.manifest.hidden_size)).astype(np.float32)
    lengths, alone = (6, 3), []
    for slot, (row, length) in enumerate(zip(rows, lengths, strict=True)):
        _step(engine, state.batch_slice(slot, slot + 1), row[None, :length], np.arange(length)[None])
        alone.append(LocalDecoder.open(bundle, "onnx").conversation().extend(row[None, : length + 1]))
    last = np.stack([row[length : length + 1] for row, length in zip(rows, lengths, strict=True)])
    got = _step(engine, state.batch_slice(0, 2), last, np.array(lengths)[:, None])[:, -1]
    np.testing.assert_allclose(got, alone, rtol=1e-4, atol=1e-4)


def _step(engine, state, embeddings, positions):
    feeds = {
        "inputs_embeds": embeddings,
        "position_ids": positions.astype(np.int64),
        "attention_mask": np.ones((len(positions), int(positions.max()) + 1), np.int64),
    }
    return engine.run(feeds, state)["logits"]
