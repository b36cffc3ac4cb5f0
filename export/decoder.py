"""The LLM, written for export: one graph for prefill, chunked prefill and decode, with a KV cache of fixed capacity.

| input                    | shape            | dtype   |                                                            |
|--------------------------|------------------|---------|------------------------------------------------------------|
| inputs_embeds            | [1, S, D]        | float   | token embeddings and visual tokens, spliced by the runtime |
| position_ids             | [1, S]           | int64   | absolute positions of the S entries, also their cache rows |
| past_key_values.L.key    | [1, K, M, d]     | float   | and .value; all of the cache, M = max_context              |
| attention_mask           | [1, P]           | int64   | its length P says how much of the cache is read            |
| output                   |                  |         |                                                            |
| logits                   | [1, 1, V]        | float   | of the last position                                       |
| present.L.key            | [1, K, M, d]     | float   | and .value; bind the buffer of the past for an in-place update |

Three variants of the same maths. `portable` (ScatterElements, grouped MatMul and Softmax; opset 20 and below) runs in
ONNX Runtime, OpenVINO and TensorRT from 10.3. `standard` (TensorScatter, Attention, RotaryEmbedding,
RMSNormalization; opset 24) is what newer TensorRT fuses. The cache is sliced to P before it is read, because ONNX
Runtime does not skip masked rows, and the mask is an explicit bool, because TensorRT ignores `nonpad_kv_seqlen`.
`flash` has the operators of `standard`, in float16, with a causal Attention over all of the cache, of which `nonpad_kv_seqlen`
rows are filled: the form that ONNX Runtime's flash kernel takes, on CUDA alone. There a mask can't hide a row between others.

In float16 the rotation of query and key, the attention scores and their softmax are computed in float32, as fused attention
kernels do: with the biases of published Qwen2 checkpoints q·k reaches 7e4, where float16 has steps of 32. ONNX Runtime's CPU
provider has the scores of a float16 Attention in float16, so `standard` then writes it out like `portable`, and `flash` does not
run there. Projections, cache, and the weighted sum of the values stay float16. A float32 graph has no Cast for this.

S prompt positions, P positions read, M cache capacity, D hidden, V vocabulary, A heads, K KV heads, d head width.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn
from torch.nn import functional

from runtime.bundle.manifest import LLMInfo
from runtime.core.errors import ExportError

OPSET = {"portable": 20, "standard": 24, "flash": 24}
_MASKED = -1e30  # added to a float32 score: no real score is as low, and a row without any position stays finite


class Decoder(nn.Module):
    """A transformers Qwen2ForCausalLM written for export; parameters are shared, not copied."""

    def __init__(self, llm: nn.Module, max_context: int, attention: str = "portable"):
        super().__init__()
        config = llm.config
        if getattr(config, "use_sliding_window", False):
            raise ExportError(
                "the LLM uses sliding-window attention, which the decoder export does not support; expected full attention"
            )
        self.heads, self.kv_heads = config.num_attention_heads, config.num_key_value_heads
        self.head_dim = getattr(config, "head_dim", None) or config.hidden_size // self.heads
        self.flash = attention == "flash"
        self.max_context, self.hidden_size, self.vocab_size = max_context, config.hidden_size, config.vocab_size
        self.rotary = _Rotary(llm.model.rotary_emb, max_context, attention)
        self.layers = nn.ModuleList(_Layer(layer, self, attention) for layer in llm.model.layers)
        self.norm = _Norm(llm.model.norm, attention)
        self.lm_head = llm.lm_head

    def forward(
        self, inputs_embeds: torch.Tensor, position_ids: torch.Tensor, past: list[torch.Tensor], attention_mask: torch.Tensor
    ) -> tuple[torch.Tensor, ...]:
        if self.flash:
            seen = torch.minimum(position_ids[:, -1] + 1, attention_mask.sum(1))  # [1], rows of the cache that are filled
        else:
            read = attention_mask.shape[1]
            causal = torch.arange(read, device=position_ids.device)[None, None] <= position_ids[..., None]  # [1, S, P]
            seen = (causal & (attention_mask[:, None] != 0)).unsqueeze(1)  # [1, 1, S, P]
        rotate = self.rotary(position_ids)
        hidden, present = inputs_embeds, []
        for index, layer in enumerate(self.layers):
            kept = 1 if index + 1 == len(self.layers) else None  # of the last layer only the last position is needed
            hidden, key, value = layer(hidden, position_ids, rotate, past[2 * index], past[2 * index + 1], seen, kept)
            present += [key, value]
        return (self.lm_head(self.norm(hidden)), *present)

    def empty_cache(self) -> list[torch.Tensor]:
        """Zeroed past tensors, two a layer, in the parameters' dtype."""
        shape = (1, self.kv_heads, self.max_context, self.head_dim)
        return [torch.zeros(shape, dtype=self.lm_head.weight.dtype) for _ in range(2 * len(self.layers))]

    def info(self, attention: str, precision: str) -> LLMInfo:
        """The manifest's `llm`."""
        return LLMInfo(len(self.layers), self.kv_heads, self.head_dim, self.vocab_size, attention, precision)


class _Layer(nn.Module):
    def __init__(self, source: nn.Module, decoder: Decoder, attention: str):
        super().__init__()
        self.input_layernorm = _Norm(source.input_layernorm, attention)
        self.self_attn = _Attention(source.self_attn, decoder, attention)
        self.post_attention_layernorm = _Norm(source.post_attention_layernorm, attention)
        self.mlp = source.mlp

    def forward(self, x, position_ids, rotate, past_key, past_value, seen, kept):
        """seen: a mask [1, 1, S, P], in `flash` the number of filled rows [1].
        kept: how many of the S positions, from the end, go on; all write their keys and values."""
        mixed, key, value = self.self_attn(self.input_layernorm(x), position_ids, rotate, past_key, past_value, seen, kept)
        x = (x if kept is None else x[:, -kept:]) + mixed
        return x + self.mlp(self.post_attention_layernorm(x)), key, value


class _Attention(nn.Module):
    def __init__(self, source: nn.Module, decoder: Decoder, attention: str):
        super().__init__()
        self.q_proj, self.k_proj, self.v_proj, self.o_proj = source.q_proj, source.k_proj, source.v_proj, source.o_proj
        self.heads, self.kv_heads, self.head_dim = decoder.heads, decoder.kv_heads, decoder.head_dim
        self.scale = source.scaling
        self.standard, self.flash = attention != "portable", attention == "flash"

    def forward(self, x, position_ids, rotate, past_key, past_value, seen, kept):
        length = x.shape[1]

        def split(projected: torch.Tensor, heads: int) -> torch.Tensor:
            return projected.view(1, length, heads, self.head_dim).transpose(1, 2)  # [1, heads, S, d]

        # Query and key are rotated as one: at a decode step the cost of a rotation is the number of its nodes.
        both = torch.cat([self.q_proj(x), self.k_proj(x)], dim=-1).float()
        query, key = rotate(split(both, self.heads + self.kv_heads)).split([self.heads, self.kv_heads], dim=1)
        key = self._write(past_key, key.to(x.dtype), position_ids)
        value = self._write(past_value, split(self.v_proj(x), self.kv_heads), position_ids)
        if kept is not None:
            query = query[:, :, -kept:]
        if self.flash:
            mixed = self._mix_flash(query.to(value.dtype), key, value, seen)  # [1, A, S or kept, d]
        else:
            read, mask = seen.shape[-1], seen if kept is None else seen[:, :, -kept:]
            # Attention in float16 rounds its scores by definition, and TensorRT-RTX 1.7.1 can't build one in float32 between Casts.
            mix = self._mix_standard if self.standard and x.dtype == torch.float32 else self._mix_portable
            mixed = mix(query, key[:, :, :read], value[:, :, :read], mask)
        return self.o_proj(mixed.transpose(1, 2).flatten(2)), key, value

    def _write(self, past: torch.Tensor, new: torch.Tensor, position_ids: torch.Tensor) -> torch.Tensor:
        """The cache with rows `position_ids` replaced by `new`."""
        if self.standard:
            start = position_ids[:, 0]
            return torch.onnx.ops.symbolic(
                "TensorScatter", (past, new, start), attrs={"axis": 2}, dtype=past.dtype, shape=past.shape, version=24
            )
        rows = position_ids[:, None, :, None].expand(1, self.kv_heads, new.shape[2], self.head_dim)
        return past.scatter(2, rows, new)

    def _mix_standard(self, query, key, value, mask):
        return functional.scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=self.scale, enable_gqa=True)

    def _mix_flash(self, query, key, value, filled):
        # The last query sees all rows that are filled, each one before it a row less: causal from the lower right.
        attrs = {"is_causal": 1, "scale": float(self.scale)}
        inputs = (query, key, value, None, None, None, filled)
        return torch.onnx.ops.symbolic("Attention", inputs, attrs=attrs, dtype=query.dtype, shape=query.shape, version=24)

    def _mix_portable(self, query, key, value, mask):
        length, read, group = query.shape[2], key.shape[2], self.heads // self.kv_heads
        # The heads of a group share a KV head: one matmul of [group * S] rows instead of `group` copies of the cache.
        grouped = (query * self.scale).reshape(1, self.kv_heads, group * length, self.head_dim)
        scores = (grouped @ key.float().transpose(2, 3)).view(1, self.kv_heads, group, length, read)
        bias = torch.where(mask, 0.0, _MASKED)
        weights = (scores + bias.unsqueeze(1)).softmax(-1).view(1, self.kv_heads, group * length, read)
        return (weights.to(value.dtype) @ value).view(1, self.heads, length, self.head_dim)


class _Rotary(nn.Module):
    """Rotary position embedding (Su et al. 2021, "half-split" layout of GPT-NeoX) from a float32 table of `max_context` rows."""

    def __init__(self, source: nn.Module, max_context: int, attention: str):
        super().__init__()
        cos, sin = source(torch.zeros(1, 1), torch.arange(max_context)[None])  # [1, M, d], each row twice
        width = cos.shape[-1] // 2
        self.register_buffer("cos", cos[0, :, :width].contiguous())
        self.register_buffer("sin", sin[0, :, :width].contiguous())
        self.standard = attention != "portable"

    def _apply(self, fn, recurse=True):
        return self  # decoder.half() converts the weights and leaves the tables in float32

    def forward(self, position_ids: torch.Tensor) -> Callable[[torch.Tensor], torch.Tensor]:
        """The rotation [1, heads, S, d] float32 -> same shape at these positions; the table is read once for all layers."""
        if self.standard:
            return lambda x: torch.onnx.ops.rotary_embedding(x, self.cos, self.sin, position_ids)
        cos = functional.embedding(position_ids, self.cos)[:, None]  # [1, 1, S, d/2]
        sin = functional.embedding(position_ids, self.sin)[:, None]

        def rotate(x: torch.Tensor) -> torch.Tensor:
            first, second = x.chunk(2, dim=-1)
            return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)

        return rotate


class _Norm(nn.Module):
    """RMSNorm (Zhang and Sennrich 2019); statistics in float32 whatever the weights are."""

    def __init__(self, source: nn.Module, attention: str):
        super().__init__()
        self.weight, self.eps = source.weight, source.variance_epsilon
        self.standard = attention != "portable"

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.standard:
            return functional.rms_norm(x, (x.shape[-1],), self.weight, self.eps)
        wide = x.float()
        scaled = wide / torch.sqrt(wide.pow(2).mean(-1, keepdim=True) + self.eps)
        return self.weight * scaled.to(x.dtype)
