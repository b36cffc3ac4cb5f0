"""Qwen3-VL at published shapes with random weights, and its vision tower for clips whose frames are all of one size.

    Qwen3VLConfig(**config(shape))              what transformers builds the model from
    patches(pixels, shape)                      [T, 3, h, h] -> [F * P, 3 * 2 * p * p], as its processor lays them out
    tower = Tower(model.model.visual, side)     transformers' module; its weights are shared
    tower(patches)                              -> merged tokens [F, side / 2, side / 2, D], deepstack features [3 x [F * P / 4, D]]

transformers runs attention frame by frame and reads the frames' lengths back from the GPU in every layer. Here all frames have
one length, so a layer is one attention call and can be compiled; the maths is the same.

T frames, F = T / 2 pairs of frames, h pixels a side, p pixels of a patch, P = side * side patches a pair, C encoder width, D hidden.
"""

from __future__ import annotations

from typing import Any

import torch
from gpu_plan import DEEPSTACK, POSITION_SIDE, Shape
from torch import nn
from torch.nn import functional as F


def config(shape: Shape) -> dict:
    vision, llm = shape.vision, shape.llm
    # the three sections of mrope are 24, 20 and 20 of 64 frequencies; a tiny head gets the same proportions
    half = shape.head_dim // 2
    section = [half - 2 * (5 * half // 16), 5 * half // 16, 5 * half // 16]
    return {
        "tie_word_embeddings": shape.tied,
        "image_token_id": shape.vocabulary - 4,
        "video_token_id": shape.vocabulary - 3,
        "vision_start_token_id": shape.vocabulary - 2,
        "vision_end_token_id": shape.vocabulary - 1,
        "vision_config": {
            "depth": vision.layers,
            "hidden_size": vision.width,
            "num_heads": vision.heads,
            "intermediate_size": vision.mlp,
            "patch_size": shape.patch,
            "temporal_patch_size": shape.frames_a_step,
            "spatial_merge_size": shape.merge,
            "out_hidden_size": llm.width,
            "num_position_embeddings": POSITION_SIDE**2,
            "deepstack_visual_indexes": DEEPSTACK[shape.name],
        },
        "text_config": {
            "hidden_size": llm.width,
            "num_hidden_layers": llm.layers,
            "num_attention_heads": llm.heads,
            "num_key_value_heads": llm.kv_heads,
            "head_dim": shape.head_dim,
            "intermediate_size": llm.mlp,
            "vocab_size": shape.vocabulary,
            "max_position_embeddings": 262_144,
            "tie_word_embeddings": shape.tied,
            "rope_parameters": {"rope_type": "default", "rope_theta": 5e6, "mrope_section": section, "mrope_interleaved": True},
        },
    }


def patches(pixels: torch.Tensor, shape: Shape) -> torch.Tensor:
    """[T, 3, h, h] -> [F * P, 3 * 2 * p * p]; the four patches of a merged token follow each other."""
    step, merge, p = shape.frames_a_step, shape.merge, shape.patch
    blocks = shape.side // merge
    split = pixels.reshape(-1, step, 3, blocks, merge, p, blocks, merge, p)
    #        F, step, channel, block row, row, y, block column, column, x -> F, block row, block column, row, column, channel, step, y, x
    return split.permute(0, 3, 6, 4, 7, 2, 1, 5, 8).reshape(-1, 3 * step * p * p)


class Tower(nn.Module):
    """visual: transformers' Qwen3VLVisionModel; side: patches a side, the same in every frame."""

    def __init__(self, visual: Any, side: int, compile_layers: bool = False):
        super().__init__()
        from transformers.vision_utils import get_vision_interpolation_indices_and_weights, get_vision_position_ids

        self.patch_embed, self.merger, self.mergers = visual.patch_embed, visual.merger, visual.deepstack_merger_list
        self.after = list(visual.deepstack_visual_indexes)
        self.side, self.merge = side, visual.spatial_merge_size
        weight = visual.pos_embed.weight
        grid = torch.tensor([[1, side, side]], device=weight.device)
        taps, weights = get_vision_interpolation_indices_and_weights(
            grid,
            num_grid_per_side=visual.num_grid_per_side,
            mode=visual.interpolation_mode,
            align_corners=visual.interpolation_align_corners,
            spatial_merge_size=self.merge,
        )
        self.positions = (visual.pos_embed(taps) * weights[:, :, None]).sum(1).to(weight.dtype)  # [P, C]
        self.cos, self.sin = visual.rotary_pos_emb(weight, get_vision_position_ids(grid, self.merge))  # [P, C / heads]
        self.layers = nn.ModuleList(_Layer(block) for block in visual.blocks)
        if compile_layers:
            for layer in self.layers:
                layer.compile()

    def forward(self, pixel_patches: torch.Tensor) -> tuple[torch.Tensor, list[torch.Tensor]]:
        embedded = self.patch_embed(pixel_patches)
        x = embedded.view(-1, self.side * self.side, embedded.shape[-1]) + self.positions  # [F, P, C]
        torch._dynamo.maybe_mark_dynamic(x, 0)
        deep = []
        for index, layer in enumerate(self.layers):
            x = layer(x, self.cos, self.sin)
            if index in self.after:
                deep.append(self.mergers[self.after.index(index)](x.flatten(0, 1)))
        merged, across = self.merger(x.flatten(0, 1)), self.side // self.merge
        return merged.view(-1, across, across, merged.shape[-1]), deep


class _Layer(nn.Module):
    """x [F, P, C], cos and sin [P, C / heads] -> [F, P, C]."""

    def __init__(self, block: Any):
        super().__init__()
        self.norm1, self.norm2, self.mlp = block.norm1, block.norm2, block.mlp
        self.qkv, self.proj = block.attn.qkv, block.attn.proj
        self.heads, self.scale = block.attn.num_heads, block.attn.scaling

    def forward(self, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        qkv = self.qkv(self.norm1(x)).unflatten(-1, (3, self.heads, -1))  # [F, P, 3, heads, C / heads]
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        attended = F.scaled_dot_product_attention(_rotated(q, cos, sin), _rotated(k, cos, sin), v, scale=self.scale)
        x = x + self.proj(attended.transpose(1, 2).reshape(x.shape))
        return x + self.mlp(self.norm2(x))


def _rotated(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    first, second = x.float().chunk(2, -1)  # in float32, as transformers does
    return (x.float() * cos.float() + torch.cat([-second, first], -1) * sin.float()).to(x.dtype)
