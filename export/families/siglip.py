"""SigLIP's vision transformer, written for export; its weights are those of transformers' module, not copies.

pixel_values [T, 3, h, w] float -> patch features [T, P, C]

T frames, P patches a frame (H*W), C width, A heads, F MLP width. Layers after the last one that is needed, and
post_layernorm, are left out.

Attention is written out, with scores and softmax in float32 where the weights are float16, as in fused kernels. In the variant
`flash` it is one Attention operator a layer, which ONNX Runtime's CUDA provider has such kernels for.
"""

from __future__ import annotations

import torch
from torch import nn


class SiglipEncoder(nn.Module):
    """tower: transformers' SiglipVisionModel. layers: indices into its hidden states (0 is the embedding's output).

    attention: a variant of export/decoder.py.
    """

    def __init__(self, tower: nn.Module, layers: list[int], attention: str = "portable"):
        super().__init__()
        count = len(tower.encoder.layers)
        self.wanted = [layer % (count + 1) for layer in layers]
        self.embeddings = _Embeddings(tower.embeddings)
        self.layers = nn.ModuleList(_Layer(layer, attention) for layer in tower.encoder.layers[: max(self.wanted)])

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        states = [self.embeddings(pixel_values)]
        for layer in self.layers:
            states.append(layer(states[-1]))
        features = [states[index] for index in self.wanted]
        return features[0] if len(features) == 1 else torch.cat(features, dim=-1)  # [T, P, C]


class _Embeddings(nn.Module):
    def __init__(self, source: nn.Module):
        super().__init__()
        self.patch_embedding = source.patch_embedding
        self.position_embedding = source.position_embedding.weight

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        patches = self.patch_embedding(pixel_values).flatten(2).transpose(1, 2)  # [T, P, C]
        return patches + self.position_embedding


class _Layer(nn.Module):
    def __init__(self, source: nn.Module, attention: str):
        super().__init__()
        self.layer_norm1, self.layer_norm2 = source.layer_norm1, source.layer_norm2
        self.self_attn = _Attention(source.self_attn, attention)
        self.mlp = source.mlp

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.self_attn(self.layer_norm1(x))
        return x + self.mlp(self.layer_norm2(x))


class _Attention(nn.Module):
    def __init__(self, source: nn.Module, attention: str):
        super().__init__()
        self.q_proj, self.k_proj, self.v_proj, self.out_proj = source.q_proj, source.k_proj, source.v_proj, source.out_proj
        self.heads, self.head_dim, self.scale = source.num_heads, source.head_dim, source.scale
        self.mix = self._mix_flash if attention == "flash" else self._mix_portable

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.out_proj(self.mix(self.q_proj(x), self.k_proj(x), self.v_proj(x)))

    def _mix_flash(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        # [T, P, C] each: the operator divides them into heads itself, without Transposes.
        heads = {"q_num_heads": self.heads, "kv_num_heads": self.heads}
        return torch.onnx.ops.attention(query, key, value, scale=self.scale, **heads)[0]

    def _mix_portable(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        frames, patches, width = query.shape

        def heads(projected: torch.Tensor) -> torch.Tensor:
            return projected.view(frames, patches, self.heads, self.head_dim).transpose(1, 2)  # [T, A, P, C/A]

        # Written out: the exporter's decomposition of scaled_dot_product_attention adds six nodes a layer and gains nothing.
        wide = torch.promote_types(query.dtype, torch.float32)
        scores = (heads(query).to(wide) * self.scale) @ heads(key).to(wide).transpose(2, 3)
        weights = scores.softmax(-1).to(value.dtype)  # [T, A, P, P]
        return (weights @ heads(value)).transpose(1, 2).reshape(frames, patches, width)
