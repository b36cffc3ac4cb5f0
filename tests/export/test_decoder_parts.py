"""The decoder's parts by themselves against NumPy, and the settings of a config that it is made from."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from export.decoder import OPSET, Decoder, _Attention, _Norm, _Rotary
from runtime.bundle.manifest import LLMInfo
from runtime.core.errors import ExportError

HEADS, KV_HEADS, WIDTH, HIDDEN, CAPACITY = 4, 2, 6, 10, 8
FREQUENCIES = np.array([1.0, 0.3, 0.01])


class Doubled(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 2 * x


def angles(_: torch.Tensor, positions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(cos, sin), as the rotary embeddings of transformers give them."""
    half = positions[..., None] * torch.from_numpy(FREQUENCIES).float()
    both = torch.cat([half, half], dim=-1)
    return both.cos(), both.sin()


def plain(*shape: int) -> np.ndarray:
    return np.random.default_rng(sum(shape)).standard_normal(shape).astype(np.float32)


def layer(seed: int = 0) -> SimpleNamespace:
    torch.manual_seed(seed)
    norm = SimpleNamespace(weight=torch.ones(HIDDEN), variance_epsilon=1e-6)
    attention = SimpleNamespace(
        q_proj=nn.Linear(HIDDEN, HEADS * WIDTH), k_proj=nn.Linear(HIDDEN, KV_HEADS * WIDTH),
        v_proj=nn.Linear(HIDDEN, KV_HEADS * WIDTH), o_proj=nn.Linear(HEADS * WIDTH, HIDDEN), scaling=0.7,
    )  # fmt: skip
    return SimpleNamespace(input_layernorm=norm, self_attn=attention, post_attention_layernorm=norm, mlp=Doubled())


def decoder(layers: int = 2, attention: str = "portable", **config) -> Decoder:
    values = {
        "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS,
        "hidden_size": HIDDEN,
        "head_dim": WIDTH,
        "vocab_size": 9,
    }
    parts = [layer(seed) for seed in range(layers)]
    model = SimpleNamespace(rotary_emb=angles, layers=parts, norm=layer().input_layernorm)
    llm = SimpleNamespace(config=SimpleNamespace(**(values | config)), model=model, lm_head=nn.Linear(HIDDEN, 9))
    return Decoder(llm, CAPACITY, attention)


def attend(query: np.ndarray, key: np.ndarray, value: np.ndarray, mask: np.ndarray, scale: float) -> np.ndarray:
    """query [A, S, d], key and value [K, P, d], mask [S, P] -> [A, S, d], head by head."""
    out = np.zeros_like(query)
    for head in range(len(query)):
        shared = head // (len(query) // len(key))
        scores = np.where(mask, scale * query[head] @ key[shared].T, -np.inf)
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        out[head] = weights / weights.sum(-1, keepdims=True) @ value[shared]
    return out


def normed(x: np.ndarray) -> np.ndarray:
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-6)


def rotated(x: np.ndarray, positions: np.ndarray) -> np.ndarray:
    """[heads, S, d]: the halves as real and imaginary parts, turned by position times frequency."""
    half = x.shape[-1] // 2
    turned = (x[..., :half] + 1j * x[..., half:]) * np.exp(1j * positions[:, None] * FREQUENCIES)
    return np.concatenate([turned.real, turned.imag], axis=-1)


def test_opsets_are_those_that_the_targets_take():
    assert OPSET == {"portable": 20, "standard": 24, "flash": 24}


@pytest.mark.parametrize("attention", ["portable", "standard"])
def test_a_rotation_turns_each_pair_of_channels_by_its_position(attention):
    x, positions = plain(3, 4, WIDTH), np.array([0, 1, 5, CAPACITY - 1])
    rotate = _Rotary(angles, CAPACITY, attention)(torch.from_numpy(positions)[None])
    np.testing.assert_allclose(rotate(torch.from_numpy(x)[None])[0].numpy(), rotated(x, positions), atol=1e-5)


def test_the_tables_of_a_rotation_stay_in_float32():
    rotary = _Rotary(angles, CAPACITY, "portable")
    assert rotary.half() is rotary
    assert rotary.cos.dtype == rotary.sin.dtype == torch.float32 and rotary.cos.shape == (CAPACITY, WIDTH // 2)


@pytest.mark.parametrize("attention", ["portable", "standard"])
@pytest.mark.parametrize("size", [1e-3, 1.0, 1e3])
def test_a_norm_divides_by_the_root_of_the_mean_square_and_epsilon(attention, size):
    x, weight, epsilon = plain(1, 3, HIDDEN) * size, plain(HIDDEN), 1e-6
    norm = _Norm(SimpleNamespace(weight=torch.from_numpy(weight), variance_epsilon=epsilon), attention)
    expected = weight * x / np.sqrt((x.astype(np.float64) ** 2).mean(-1, keepdims=True) + epsilon)
    np.testing.assert_allclose(norm(torch.from_numpy(x)).numpy(), expected, rtol=1e-5)


def test_the_portable_norm_is_written_out_with_float32_statistics(monkeypatch):
    monkeypatch.setattr(functional, "rms_norm", None)
    norm = _Norm(SimpleNamespace(weight=torch.ones(4).half(), variance_epsilon=1e-6), "portable")
    result = norm(torch.full((1, 1, 4), 3e4).half())  # the squares alone overflow float16
    assert result.dtype == torch.float16 and result.tolist() == [[[1, 1, 1, 1]]]


@pytest.mark.parametrize("mix", ["_mix_portable", "_mix_standard"])
@pytest.mark.parametrize("length", [1, 3])
def test_scores_are_scaled_masked_and_shared_by_a_group_of_heads(mix, length):
    query, key, value = plain(HEADS, length, WIDTH), plain(KV_HEADS, 5, WIDTH), plain(KV_HEADS, 5, WIDTH) + 1
    mask = np.tril(np.ones((length, 5), bool), 5 - length)
    mask[:, 1] = False
    attention = _Attention(layer().self_attn, decoder(1), "portable")
    given = (torch.from_numpy(array)[None] for array in (query, key, value))
    result = getattr(attention, mix)(*given, torch.from_numpy(mask)[None, None])
    np.testing.assert_allclose(result[0].numpy(), attend(query, key, value, mask, 0.7), rtol=1e-4, atol=1e-5)


def test_a_row_that_sees_nothing_stays_finite():
    attention = _Attention(layer().self_attn, decoder(1), "portable")
    query, key = torch.ones(1, HEADS, 1, WIDTH), torch.ones(1, KV_HEADS, 3, WIDTH)
    assert attention._mix_portable(query, key, key, torch.zeros(1, 1, 1, 3, dtype=torch.bool)).isfinite().all()


@pytest.mark.parametrize("kept", [None, 1, 2])
def test_attention_reads_the_cache_that_it_has_just_written(kept):
    source, positions, read = layer().self_attn, np.array([2, 3, 4]), 5
    x, past_key, past_value = plain(3, HIDDEN), plain(KV_HEADS, CAPACITY, WIDTH), plain(KV_HEADS, CAPACITY, WIDTH) + 1
    mask = np.arange(read) <= positions[:, None]
    attention, rotate = _Attention(source, decoder(1), "portable"), _Rotary(angles, CAPACITY, "portable")
    ids = torch.from_numpy(positions)[None]
    given = (torch.from_numpy(x)[None], ids, rotate(ids), *(torch.from_numpy(past)[None] for past in (past_key, past_value)))
    with torch.no_grad():
        mixed, key, value = attention(*given, torch.from_numpy(mask)[None, None], kept)

        def projected(linear: nn.Linear, heads: int) -> np.ndarray:
            return linear(torch.from_numpy(x)).numpy().reshape(3, heads, WIDTH).transpose(1, 0, 2)

        query, past_key, past_value = projected(source.q_proj, HEADS), past_key.copy(), past_value.copy()
        past_key[:, positions] = rotated(projected(source.k_proj, KV_HEADS), positions)
        past_value[:, positions] = projected(source.v_proj, KV_HEADS)
        heads = attend(rotated(query, positions), past_key[:, :read], past_value[:, :read], mask, 0.7)[:, -(kept or 3) :]
        expected = source.o_proj(torch.from_numpy(heads.transpose(1, 0, 2).reshape(kept or 3, -1)).float()).numpy()
    np.testing.assert_allclose(key[0].numpy(), past_key, atol=1e-5)
    np.testing.assert_allclose(value[0].numpy(), past_value, atol=1e-5)
    np.testing.assert_allclose(mixed[0].numpy(), expected, rtol=1e-4, atol=1e-5)


def test_a_prompt_in_two_pieces_goes_through_every_layer_with_its_own_cache():
    x, ignored = plain(5, HIDDEN), 1  # the prompt's position 1 is masked
    made, seen = decoder(3), np.tril(np.ones((5, 5), bool))
    seen[:, ignored] = False
    expected = x.astype(np.float64)
    keys = []
    with torch.no_grad():
        for part in made.layers:
            source, positions = part.self_attn, np.arange(5)

            def heads(linear: nn.Linear, count: int, given: np.ndarray = normed(expected)) -> np.ndarray:
                return linear(torch.from_numpy(given).float()).numpy().reshape(5, count, WIDTH).transpose(1, 0, 2)

            query, key = (rotated(heads(*pair), positions) for pair in ((source.q_proj, HEADS), (source.k_proj, KV_HEADS)))
            keys.append(key)
            mixed = attend(query, key, heads(source.v_proj, KV_HEADS), seen, 0.7).transpose(1, 0, 2).reshape(5, -1)
            expected = expected + source.o_proj(torch.from_numpy(mixed).float()).numpy()
            expected = expected + 2 * normed(expected)
        logits = made.lm_head(torch.from_numpy(normed(expected)).float()).numpy()

        cache, mask = made.empty_cache(), torch.tensor([[1, 0, 1, 1, 1]])
        for start, end in ((0, 3), (3, 5)):
            given = torch.from_numpy(x[None, start:end])
            got, *cache = made(given, torch.arange(start, end)[None], cache, mask[:, :end])
            assert got.shape == (1, 1, 9)
            np.testing.assert_allclose(got[0, 0].numpy(), logits[end - 1], rtol=1e-3, atol=1e-4)
    for layer_keys, written in zip(keys, cache[::2], strict=True):
        np.testing.assert_allclose(written[0, :, :5].numpy(), layer_keys, atol=1e-4)
        assert not written[0, :, 5:].any()


@pytest.mark.parametrize("attention", ["portable", "standard", "flash"])
def test_the_portable_spelling_alone_calls_no_standard_operators(monkeypatch, attention):
    called = []
    monkeypatch.setattr(torch.onnx.ops, "rotary_embedding", lambda x, *tables: called.append("rotary_embedding") or x)
    monkeypatch.setattr(functional, "rms_norm", lambda x, *rest: called.append("rms_norm") or x)
    made = decoder(1, attention)
    made.norm(torch.ones(1, 1, HIDDEN))
    made.rotary(torch.tensor([[0]]))(torch.ones(1, 1, 1, WIDTH))
    assert called == ([] if attention == "portable" else ["rms_norm", "rotary_embedding"])


def test_the_standard_cache_is_written_by_tensor_scatter_from_the_first_position(monkeypatch):
    calls = []
    monkeypatch.setattr(torch.onnx.ops, "symbolic", lambda *args, **named: calls.append((args, named)) or "cache")
    attention = _Attention(layer().self_attn, decoder(1), "standard")
    past, new = torch.zeros(1, KV_HEADS, CAPACITY, WIDTH), torch.ones(1, KV_HEADS, 2, WIDTH)
    assert attention._write(past, new, torch.tensor([[3, 4]])) == "cache"
    ((name, (first, second, start)), named) = calls[0]
    assert (name, start.tolist()) == ("TensorScatter", [3]) and first is past and second is new
    assert named == {"attrs": {"axis": 2}, "dtype": torch.float32, "shape": past.shape, "version": 24}


@pytest.mark.parametrize(
    ("attention", "dtype", "mix"),
    [
        ("portable", torch.float32, "_mix_portable"),
        ("portable", torch.float16, "_mix_portable"),
        ("standard", torch.float32, "_mix_standard"),
        ("standard", torch.float16, "_mix_portable"),  # scores in float32 are written out
    ],
)
def test_the_standard_attention_is_for_float32(monkeypatch, attention, dtype, mix):
    called = []
    for name in ("_mix_portable", "_mix_standard"):
        monkeypatch.setattr(
            _Attention, name, lambda self, query, *_, name=name: called.append((name, query.dtype)) or query.to(dtype)
        )
    monkeypatch.setattr(_Attention, "_write", lambda self, past, new, ids: past)
    module = _Attention(layer().self_attn, decoder(1), attention).to(dtype)
    for part in (module.q_proj, module.k_proj, module.v_proj, module.o_proj):
        part.to(dtype)
    past = torch.zeros(1, KV_HEADS, CAPACITY, WIDTH, dtype=dtype)
    mask = torch.ones(1, 1, 2, 2, dtype=torch.bool)
    module(torch.zeros(1, 2, HIDDEN, dtype=dtype), torch.tensor([[0, 1]]), lambda both: both, past, past, mask, None)
    assert called == [(mix, torch.float32)]


@pytest.mark.parametrize(("positions", "read", "filled"), [([2, 3, 4], 5, 5), ([2, 3, 4], 9, 5), ([7], 5, 5)])
def test_flash_attention_sees_the_rows_up_to_the_last_position_that_are_read(monkeypatch, positions, read, filled):
    asked = []

    def symbolic(name, inputs, *, attrs, dtype, shape, version):
        asked.append((name, inputs[6:], attrs, version))
        return torch.zeros(shape, dtype=dtype)

    monkeypatch.setattr(torch.onnx.ops, "symbolic", symbolic)
    monkeypatch.setattr(_Attention, "_write", lambda self, past, new, ids: past)
    made = decoder(2, "flash")
    length = len(positions)
    made(torch.zeros(1, length, HIDDEN), torch.tensor([positions]), made.empty_cache(), torch.ones(1, read, dtype=torch.long))
    assert [(name, rows.tolist(), version) for name, (rows,), _, version in asked] == [("Attention", [filled], 24)] * 2
    assert asked[0][2] == {"is_causal": 1, "scale": pytest.approx(0.7)}


def test_the_manifests_entry_and_the_empty_cache():
    made = decoder(3).half()
    assert made.info("standard", "fp16") == LLMInfo(3, KV_HEADS, WIDTH, 9, "standard", "fp16")
    cache = made.empty_cache()
    assert [(part.shape, part.dtype) for part in cache] == [((1, KV_HEADS, CAPACITY, WIDTH), torch.float16)] * 6
    assert not any(part.any() for part in cache)


def test_the_width_of_a_head_is_the_configs_or_its_share_of_hidden():
    assert decoder(0, head_dim=5).head_dim == 5
    without = decoder(0, head_dim=None, hidden_size=13)
    assert without.head_dim == 3 and type(without.head_dim) is int
    assert (without.max_context, without.hidden_size, without.vocab_size) == (CAPACITY, 13, 9)


@pytest.mark.parametrize(
    ("config", "refused"), [({}, False), ({"use_sliding_window": False}, False), ({"use_sliding_window": True}, True)]
)
def test_only_a_config_that_says_so_slides(config, refused):
    if refused:
        with pytest.raises(ExportError, match="the LLM uses sliding-window attention"):
            decoder(0, **config)
    else:
        decoder(0, **config)
