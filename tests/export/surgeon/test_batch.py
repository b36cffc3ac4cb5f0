"""The batched decoder graph computes, for ragged rows and both variants of attention, what transformers computes for each alone."""

from __future__ import annotations

import copy

import numpy as np
import onnx
import pytest
import torch
from surgeon_graphs import model_from_text, normal, run
from transformers import Qwen2Config, Qwen2ForCausalLM

from export.decoder import Decoder
from export.surgeon import run_passes
from export.trace import trace_decoder
from runtime.bundle import BATCH
from runtime.engine.onnx import OnnxEngine

LAYERS, CAPACITY, LENGTHS = 2, 40, (9, 4, 13)


@pytest.fixture(scope="module")
def llm():
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=97, hidden_size=48, intermediate_size=80, num_hidden_layers=LAYERS, num_attention_heads=6, num_key_value_heads=2,
        max_position_embeddings=128, tie_word_embeddings=False,
    )  # fmt: skip
    return Qwen2ForCausalLM(config).eval().requires_grad_(False)


@pytest.fixture(scope="module", params=["portable", "standard"])
def batched(request, llm, tmp_path_factory):
    path = tmp_path_factory.mktemp("decoder") / "decoder.onnx"
    model = trace_decoder(Decoder(copy.deepcopy(llm), CAPACITY, request.param), path, request.param)
    model, _ = run_passes(model, graph="llm/decoder", directory=path.parent)
    return run_passes(model, ["batch"], graph="llm/decoder.batch", directory=path.parent)


def test_every_input_and_output_begins_with_the_batch(batched):
    model, (report,) = batched
    assert report.rewrites > 0
    for value in [*model.graph.input, *model.graph.output]:
        assert value.type.tensor_type.shape.dim[0].dim_param == BATCH, value.name
    onnx.checker.check_model(model)


def test_ragged_rows_have_the_logits_that_transformers_computes(batched, llm):
    engine = OnnxEngine.load(batched[0].SerializeToString())
    pairs = {f"past_key_values.{n}.{h}": f"present.{n}.{h}" for n in range(LAYERS) for h in ("key", "value")}
    state = engine.new_state(pairs, batch=len(LENGTHS))
    rows = [torch.randn(length + 1, 48) for length in LENGTHS]
    for slot, row in enumerate(rows):
        _run(engine, state.batch_slice(slot, slot + 1), row[None, :-1].numpy(), np.arange(LENGTHS[slot])[None])
    last = torch.stack([row[-1:] for row in rows]).numpy()
    got = _run(engine, state, last, np.array(LENGTHS)[:, None])
    for row, logits in zip(rows, got, strict=True):
        np.testing.assert_allclose(logits[0], llm(inputs_embeds=row[None]).logits[0, -1].numpy(), atol=1e-4)


def test_only_a_leading_1_is_the_batch():
    """A shape that leaves its first dimension open, or counts something else there, is right for any batch as it is."""
    model = model_from_text(
        """
    g (float[1, 2, 8] x) => (float[1, 2, 3] y)
    <float[8, 3] w, int64[2] rows = {-1, 8}, int64[3] again = {-1, 2, 3}, int64[3] one = {1, 2, 3}> {
        table = Reshape(x, rows)
        product = MatMul(table, w)
        clips = Reshape(product, again)
        y = Reshape(clips, one)
    }""",
        w=normal(8, 3),
    )
    x = normal(3, 2, 8, seed=1)
    alone = np.concatenate([run(model, {"x": row[None]})[0] for row in x])
    after, (report,) = run_passes(model, ["batch"], graph="llm/decoder.batch")
    assert report.rewrites == 1
    np.testing.assert_allclose(run(after, {"x": x})[0], alone, rtol=1e-6)


def test_a_second_run_changes_nothing(batched):
    _, (report,) = run_passes(copy.deepcopy(batched[0]), ["batch"], graph="llm/decoder.batch")
    assert report.rewrites == 0


def _run(engine, state, embeddings, positions):
    mask = np.ones((len(positions), int(positions.max()) + 1), np.int64)
    return engine.run({"inputs_embeds": embeddings, "position_ids": positions, "attention_mask": mask}, state)["logits"]
