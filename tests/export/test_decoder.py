"""The decoder graph against transformers: prefill, chunked prefill and decode, both spellings, both precisions."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import onnx
import pytest
import torch
from transformers import Qwen2Config, Qwen2ForCausalLM

from export.decoder import OPSET, Decoder
from export.trace import trace_decoder
from runtime.core.errors import ExportError
from runtime.engine.onnx import OnnxEngine

LAYERS, CAPACITY = 2, 48


def _llm(**changes) -> Qwen2ForCausalLM:
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=97, hidden_size=48, intermediate_size=80, num_hidden_layers=LAYERS, num_attention_heads=6, num_key_value_heads=2,
        max_position_embeddings=128, tie_word_embeddings=False, **changes,
    )  # fmt: skip
    return Qwen2ForCausalLM(config).eval().requires_grad_(False)


@pytest.fixture(scope="module")
def llm():
    return _llm()


VARIANTS = [("portable", "fp32"), ("standard", "fp32"), ("portable", "fp16"), ("flash", "fp16")]


@pytest.fixture(scope="module", params=VARIANTS, ids="-".join)
def graph(request, llm, tmp_path_factory):
    import copy

    attention, precision = request.param
    decoder = Decoder(copy.deepcopy(llm), CAPACITY, attention)
    path = tmp_path_factory.mktemp("decoder") / "decoder.onnx"
    model = trace_decoder(decoder.half() if precision == "fp16" else decoder, path, attention)
    return attention, precision, path, model


def _run(engine: OnnxEngine, state, embeddings: np.ndarray, start: int, end: int) -> np.ndarray:
    feeds = {
        "inputs_embeds": embeddings[:, start:end],
        "position_ids": np.arange(start, end)[None],
        "attention_mask": np.ones((1, end), np.int64),
    }
    return engine.run(feeds, state)["logits"][0, 0]


def _state(engine: OnnxEngine):
    return engine.new_state({f"past_key_values.{n}.{h}": f"present.{n}.{h}" for n in range(LAYERS) for h in ("key", "value")})


@pytest.mark.parametrize("cuts", [[0, 40], [0, 17, 40], [0, 1, 2, 30, 39, 40]], ids=["whole", "two chunks", "chunks and steps"])
def test_logits_equal_transformers_however_the_prompt_is_cut(graph, llm, cuts):
    _, precision, path, _ = graph
    embeddings = torch.randn(1, 40, 48, generator=torch.Generator().manual_seed(1))
    expected = llm(inputs_embeds=embeddings).logits[0].numpy()
    engine = OnnxEngine.load(path)
    state = _state(engine)
    given = embeddings.numpy().astype(np.float16 if precision == "fp16" else np.float32)
    for start, end in pairwise(cuts):
        logits = _run(engine, state, given, start, end)
        np.testing.assert_allclose(logits, expected[end - 1], atol=2e-5 if precision == "fp32" else 2e-2)


def test_of_the_last_layer_only_the_last_position_is_computed(llm):
    decoder, rows = Decoder(llm, CAPACITY), []
    hooks = [layer.mlp.register_forward_pre_hook(lambda _, inputs: rows.append(inputs[0].shape[1])) for layer in decoder.layers]
    decoder(torch.zeros(1, 7, 48), torch.arange(7)[None], decoder.empty_cache(), torch.ones(1, 7, dtype=torch.int64))
    for hook in hooks:
        hook.remove()
    assert rows == [7] * (LAYERS - 1) + [1]


def test_the_cache_is_updated_in_place(graph):
    _, precision, path, _ = graph
    engine = OnnxEngine.load(path)
    state = _state(engine)
    key = state.values["past_key_values.0.key"]
    where = key.data_ptr()
    given = np.random.default_rng(0).standard_normal((1, 5, 48)).astype(np.float16 if precision == "fp16" else np.float32)
    _run(engine, state, given, 0, 5)
    written = np.abs(key.numpy()).sum(axis=(0, 1, 3)) > 0
    assert key.data_ptr() == where
    assert written.tolist() == [True] * 5 + [False] * (CAPACITY - 5)


def test_masked_positions_do_not_count(graph, llm):
    attention, precision, path, _ = graph
    if attention == "flash":
        pytest.skip("flash attention has no mask, but a number of filled rows")
    embeddings = torch.randn(1, 12, 48, generator=torch.Generator().manual_seed(2))
    mask = torch.ones(1, 12, dtype=torch.long)
    mask[0, 3:6] = 0
    positions = torch.arange(12)[None]
    expected = llm(inputs_embeds=embeddings, attention_mask=mask, position_ids=positions).logits[0, -1].numpy()
    engine = OnnxEngine.load(path)
    feeds = {
        "inputs_embeds": embeddings.numpy().astype(np.float16 if precision == "fp16" else np.float32),
        "position_ids": positions.numpy(),
        "attention_mask": mask.numpy(),
    }
    np.testing.assert_allclose(
        engine.run(feeds, _state(engine))["logits"][0, 0], expected, atol=2e-5 if precision == "fp32" else 2e-2
    )


@pytest.mark.parametrize("spread", [200, 1e6])
def test_masked_positions_do_not_count_however_high_their_scores_are(spread):
    loud = _llm()
    for layer in loud.model.layers:  # scores of q·k up to about `spread`
        layer.self_attn.q_proj.weight.mul_((spread / 0.02) ** 0.5)
        layer.self_attn.k_proj.weight.mul_((spread / 0.02) ** 0.5)
    embeddings = torch.randn(1, 12, 48, generator=torch.Generator().manual_seed(3))
    mask = torch.ones(1, 12, dtype=torch.long)
    mask[0, 3:6] = 0
    positions = torch.arange(12)[None]
    expected = loud(inputs_embeds=embeddings, attention_mask=mask, position_ids=positions).logits[0, -1].numpy()
    decoder = Decoder(loud, CAPACITY)
    with torch.inference_mode():
        got = decoder(embeddings, positions, decoder.empty_cache(), mask)[0][0, 0].numpy()
    np.testing.assert_allclose(got, expected, atol=1e-3 * np.abs(expected).max())


def test_only_a_float16_graph_has_casts_for_the_scores(graph):
    attention, precision, _, model = graph
    casts = sum(node.op_type == "Cast" for node in model.graph.node)
    norms = 2 * LAYERS + 1
    if precision == "fp32":
        assert casts <= 4 + norms * (attention == "portable")  # of the mask and the shapes, and the exporter's own in norms
    scores = next(node for node in model.graph.node if node.op_type in ("Softmax", "Attention"))
    kinds = {value.name: value.type.tensor_type.elem_type for value in model.graph.value_info}
    assert kinds[scores.input[0]] == (onnx.TensorProto.FLOAT16 if attention == "flash" else onnx.TensorProto.FLOAT)


def test_flash_attention_is_causal_over_the_whole_cache(graph):
    attention, _, _, model = graph
    nodes = [node for node in model.graph.node if node.op_type == "Attention"]
    if attention != "flash":
        assert not any(len(node.input) > 6 for node in nodes), "TensorRT ignores the number of filled rows"
        return
    assert len(nodes) == LAYERS and not any(node.op_type in ("MatMul", "Slice") and "scores" in node.name for node in nodes)
    for index, node in enumerate(nodes):
        assert list(node.input[1:6]) == [f"present.{index}.key", f"present.{index}.value", "", "", ""]
        assert node.input[6] == nodes[0].input[6] and {a.name: a.i for a in node.attribute}["is_causal"] == 1


def test_opset_and_shapes_are_the_contract(graph):
    attention, precision, _, model = graph
    assert {opset.version for opset in model.opset_import if not opset.domain} == {OPSET[attention]}
    assert not any(opset.domain == "com.microsoft" for opset in model.opset_import)
    shapes = {}
    for value in [*model.graph.input, *model.graph.output]:
        shapes[value.name] = [d.dim_value or d.dim_param for d in value.type.tensor_type.shape.dim]
    assert shapes["past_key_values.1.value"] == shapes["present.1.value"] == [1, 2, CAPACITY, 8]
    assert shapes["logits"] == [1, 1, 97]
    assert isinstance(shapes["inputs_embeds"][1], str) and isinstance(shapes["attention_mask"][1], str)
    kind = onnx.TensorProto.FLOAT16 if precision == "fp16" else onnx.TensorProto.FLOAT
    assert next(v for v in model.graph.input if v.name == "inputs_embeds").type.tensor_type.elem_type == kind


def test_portable_spelling_uses_no_new_or_data_dependent_operator(graph):
    attention, _, _, model = graph
    used = {node.op_type for node in model.graph.node}
    if attention == "portable":
        assert not used & {
            "Attention",
            "RotaryEmbedding",
            "RMSNormalization",
            "TensorScatter",
            "GatherND",
            "ScatterND",
            "NonZero",
            "If",
            "Loop",
        }
    else:
        assert {"Attention", "RotaryEmbedding", "RMSNormalization", "TensorScatter"} <= used


def test_sliding_window_is_refused():
    llm = _llm(use_sliding_window=True, sliding_window=8)
    with pytest.raises(ExportError, match="sliding-window"):
        Decoder(llm, CAPACITY)
