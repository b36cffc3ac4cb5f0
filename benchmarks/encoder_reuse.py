"""A SigLIP tower that computes few patches of most frames: batch form, packed rows, every size a constant. Torch, for GPUs.

    encoder = ReuseEncoder(tower)                        transformers' SiglipVisionModel; its weights are shared
    encoder(pixels)                                      [T, 3, h, w] -> [T, P, C]: every patch of every frame
    rows, newest = encoder.reuse(pixels, whole, keep)    [N, C], [T, P]: rows[newest] are features [T, P, C]

One frame in `whole` is a full frame: the first, and those that differ most from the frame before. Every other frame computes
K = floor(keep * P) patches: those whose pixels, as means of cells of half a patch, differ most from the frame before. In a layer,
queries, MLP and residual exist for computed rows only; keys, values and final features of the other patches are those of the newest
frame that computed them. Which row that is depends on the pixels alone, so it is worked out once a clip, on the device, and a layer
does one gather for its keys and one for its values. A projector works row by row: give it the rows, not the features.

Features are the last layer's, without post_layernorm, as LLaVA-OneVision takes them (vision_feature_layer -1).

T frames, h pixels a side, P patches a frame, C width, A heads, W full frames, R = T - W others, K patches kept in each of those,
N = W*P + R*K computed rows: the full frames', then the others', each in order.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn import functional as F


class Chosen(NamedTuple):
    """rows [N] int64: computed patches, as positions in [T * P]; newest [T, P]: the row of each patch; others [R]: the frames that
    are not full."""

    rows: torch.Tensor
    newest: torch.Tensor
    others: torch.Tensor


def counts(frames: int, patches: int, whole: int, keep: float) -> tuple[int, int, int]:
    """(W, K, N) of a clip where one in `whole` frames is a full one."""
    full, kept = max(1, frames // whole), int(keep * patches)
    return full, kept, full * patches + (frames - full) * kept


def change(pixels: torch.Tensor, patch: int) -> torch.Tensor:
    """[T, 3, h, h] -> [T, P] float32: mean square difference of half-patch cells from the frame before; zeros for the first."""
    side = pixels.shape[-1] // patch
    cells = F.avg_pool2d(pixels[..., : side * patch, : side * patch].float(), patch // 2)  # [T, 3, 2 side, 2 side]
    square = (cells[1:] - cells[:-1]).square().mean(1, keepdim=True)
    return F.pad(F.avg_pool2d(square, 2).flatten(1), (0, 0, 1, 0))


def choose(changed: torch.Tensor, whole: int, keep: float) -> Chosen:
    """What is computed, from how much each patch changed [T, P]. Sizes depend on the arguments alone: nothing waits for the
    device."""
    frames, patches = changed.shape
    full, kept, count = counts(frames, patches, whole, keep)
    device = changed.device
    by_frame = changed.mean(1)
    by_frame[0] = torch.inf
    order = by_frame.argsort(descending=True, stable=True)
    fulls, others = order[:full].sort().values, order[full:].sort().values
    picked = changed[others].topk(kept, dim=1).indices.sort(1).values  # [R, K]
    all_patches = torch.arange(patches, device=device)
    rows = torch.cat([(fulls[:, None] * patches + all_patches).flatten(), (others[:, None] * patches + picked).flatten()])
    row_of = (
        torch.full((frames * patches,), -1, device=device)
        .scatter(0, rows, torch.arange(count, device=device))
        .view(frames, patches)
    )
    time = torch.arange(frames, device=device)[:, None]
    newest_frame = torch.where(row_of >= 0, time, -1).cummax(0).values  # [T, P]
    return Chosen(rows, row_of.gather(0, newest_frame), others)


class ReuseEncoder(nn.Module):
    """tower: transformers' SiglipVisionModel. compile_layers: one compiled layer serves all layers and all frame counts."""

    def __init__(self, tower: Any, compile_layers: bool = False):
        super().__init__()
        self.embeddings, self.patch = tower.embeddings, tower.config.patch_size
        self.layers = nn.ModuleList(_Layer(layer) for layer in tower.encoder.layers)
        if compile_layers:
            for layer in self.layers:
                layer.compile()

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        x = self.embeddings(pixels)  # [T, P, C]
        torch._dynamo.maybe_mark_dynamic(x, 0)
        for layer in self.layers:
            x = layer(x)
        return x

    def reuse(self, pixels: torch.Tensor, whole: int = 8, keep: float = 0.25) -> tuple[torch.Tensor, torch.Tensor]:
        chosen = choose(change(pixels, self.patch), whole, keep)
        frames, patches = chosen.newest.shape
        kept = counts(frames, patches, whole, keep)[1]
        x = self.embeddings(pixels).flatten(0, 1)[chosen.rows]  # [N, C]
        context = chosen.newest[chosen.others]  # [R, P]: where a frame that is not full finds its keys and values
        torch._dynamo.maybe_mark_dynamic(x, 0)
        torch._dynamo.maybe_mark_dynamic(context, 0)
        for layer in self.layers:
            x = layer(x, context, kept)
        return x, chosen.newest


class _Layer(nn.Module):
    """x [T, P, C], or rows [N, C] with the context [R, P] of the frames that are not full."""

    def __init__(self, source: Any):
        super().__init__()
        self.layer_norm1, self.layer_norm2, self.mlp = source.layer_norm1, source.layer_norm2, source.mlp
        attention = source.self_attn
        self.q_proj, self.k_proj, self.v_proj, self.out_proj = (
            attention.q_proj,
            attention.k_proj,
            attention.v_proj,
            attention.out_proj,
        )
        self.heads, self.scale = attention.num_heads, attention.scale

    def forward(self, x: torch.Tensor, context: torch.Tensor | None = None, kept: int = 0) -> torch.Tensor:
        normal = self.layer_norm1(x)
        q, k, v = self.q_proj(normal), self.k_proj(normal), self.v_proj(normal)
        mixed = self._mix(q, k, v) if context is None else self._mix_rows(q, k, v, context, kept)
        x = x + self.out_proj(mixed)
        return x + self.mlp(self.layer_norm2(x))

    def _mix_rows(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, context: torch.Tensor, kept: int) -> torch.Tensor:
        others, patches = context.shape
        width = q.shape[-1]
        full = q.shape[0] - others * kept
        frames = [rows[:full].view(-1, patches, width) for rows in (q, k, v)]
        # The gather runs over complete rows, before they are split into heads: one long copy for each.
        sparse = self._mix(q[full:].view(others, kept, width), k[context], v[context])
        return torch.cat([self._mix(*frames).view(-1, width), sparse.view(-1, width)])

    def _mix(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        """[B, Q, C] queries over [B, P, C] keys and values -> [B, Q, C]."""
        split = [rows.unflatten(-1, (self.heads, -1)).transpose(1, 2) for rows in (q, k, v)]  # [B, A, Q or P, C / A]
        return F.scaled_dot_product_attention(*split, scale=self.scale).transpose(1, 2).reshape(q.shape)
