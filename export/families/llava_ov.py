"""LLaVA-OneVision: a SigLIP encoder, a two-layer projector, a Qwen2 LLM, one `image_newline` token after a clip.

Facts of the family: the encoder's features are `hidden_states[vision_feature_layer]`, and -1 there is *before* SigLIP's
post_layernorm; its own token compression is bilinear to half the grid, rounded up; video frames are resized without
keeping the aspect ratio. Both key layouts are read, today's transformers' and that of the published llava-hf files.

T frames, H, W patch rows and columns, C encoder width, D hidden.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import torch
from torch import nn

from export.checkpoint import Checkpoint, load_weights
from export.families import Model, check_model_type
from export.families.chat import read_chat, read_preprocessing
from export.families.siglip import SiglipEncoder
from runtime.errors import CheckpointError

if TYPE_CHECKING:
    from transformers import LlavaOnevisionConfig

NAME = "llava-ov"
MODEL_TYPE = "llava_onevision"
HUB_ID = "llava-hf/llava-onevision-qwen2-0.5b-ov-hf"
FRAMES = 32
COMPRESS = "st-gridpool"

_RENAMES = [
    (re.compile(r"^model\.(?=language_model|vision_tower|multi_modal_projector|image_newline)"), ""),
    (re.compile(r"^language_model\.lm_head\."), "lm_head."),
    (re.compile(r"^language_model\.model\."), "language_model."),
    (re.compile(r"^vision_tower\.vision_model\."), "vision_tower."),
]
# Buffers that old files hold, and SigLIP's pooling head, which LLaVA-OneVision has no use for.
_UNUSED = re.compile(r"rotary_emb\.inv_freq$|position_ids$|^vision_tower\.head\.")


def load(checkpoint: Checkpoint, llm: bool = True) -> Model:
    """Read a checkpoint; with `llm` False the language model is neither built nor read."""
    from transformers import LlavaOnevisionConfig

    raw = check_model_type(checkpoint, MODEL_TYPE)
    for part, expected in (("vision_config", "siglip_vision_model"), ("text_config", "qwen2")):
        got = raw.get(part, {}).get("model_type", expected)
        if got != expected:
            raise CheckpointError(f'{checkpoint.path}: {part} is of model_type "{got}"; {NAME} knows "{expected}"')
    try:
        config = LlavaOnevisionConfig(**raw)
    except (TypeError, ValueError, KeyError) as error:
        raise CheckpointError(f"{checkpoint.path / 'config.json'}: {error}") from None
    if config.vision_feature_select_strategy != "full":
        raise CheckpointError(
            f'{checkpoint.path}: vision_feature_select_strategy is "{config.vision_feature_select_strategy}", SigLIP has no class token: expected "full"'
        )

    parts = _Parts(config, llm)
    tied = {"lm_head.weight": "language_model.embed_tokens.weight"} if llm and config.tie_word_embeddings else {}
    load_weights(checkpoint, parts, lambda key: _canonical(key, llm), tied)
    parts.eval()

    side = config.vision_config.image_size // config.vision_config.patch_size
    preprocessing, frames = read_preprocessing(checkpoint)
    if preprocessing["size"] != [config.vision_config.image_size] * 2:
        raise CheckpointError(
            f"{checkpoint.path}: frames are resized to {preprocessing['size']}, the encoder takes {[config.vision_config.image_size] * 2}"
        )
    layers = config.vision_feature_layer
    layers = [layers] if isinstance(layers, int) else list(layers)
    return Model(
        family=NAME,
        grid=(side, side),
        image_size=(config.vision_config.image_size,) * 2,
        frames=frames or FRAMES,
        hidden_size=config.text_config.hidden_size,
        encoder=SiglipEncoder(parts.vision_tower, layers),
        projector=parts.multi_modal_projector,
        newline=parts.image_newline[None],
        reference_encoder=_ReferenceEncoder(parts.vision_tower, layers),
        llm=parts.causal_lm[0] if llm else None,
        preprocessing=preprocessing,
        prompt=read_chat(checkpoint, config.video_token_id) if llm else {},
    )


class _Parts(nn.Module):
    """The whole model with the checkpoint's own names; parameters are not initialised, `load_weights` brings them."""

    def __init__(self, config: LlavaOnevisionConfig, llm: bool):
        from transformers import Qwen2ForCausalLM, SiglipVisionModel
        from transformers.initialization import no_init_weights
        from transformers.models.llava_onevision.modeling_llava_onevision import LlavaOnevisionMultiModalProjector

        super().__init__()
        config.vision_config._attn_implementation = "sdpa"
        config.text_config._attn_implementation = "sdpa"
        config.text_config.tie_word_embeddings = config.tie_word_embeddings
        with no_init_weights():
            self.vision_tower = SiglipVisionModel(config.vision_config)
            self.multi_modal_projector = LlavaOnevisionMultiModalProjector(config)
            self.image_newline = nn.Parameter(torch.empty(config.text_config.hidden_size))
            if llm:
                causal_lm = Qwen2ForCausalLM(config.text_config)
                self.language_model = causal_lm.model
                self.lm_head = causal_lm.lm_head
                self.causal_lm = (causal_lm,)  # a tuple, so that its parameters are not registered twice


class _ReferenceEncoder(nn.Module):
    """transformers' own SigLIP forward, the features picked as LLaVA-OneVision picks them."""

    def __init__(self, tower: nn.Module, layers: list[int]):
        super().__init__()
        self.tower, self.layers = tower, layers

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        states = self.tower(pixel_values, output_hidden_states=True).hidden_states
        return torch.cat([states[layer] for layer in self.layers], dim=-1)  # [T, H*W, C]


def _canonical(key: str, llm: bool) -> str | None:
    for pattern, replacement in _RENAMES:
        key = pattern.sub(replacement, key)
    if _UNUSED.search(key) or (not llm and key.startswith(("language_model.", "lm_head."))):
        return None
    return key
