"""LLaVA-OneVision: a SigLIP encoder, a two-layer projector, a Qwen2 LLM, one `image_newline` token after a clip.

Facts of the family: the encoder's features are `hidden_states[vision_feature_layer]`, and -1 there is *before* SigLIP's
post_layernorm; its own token compression is bilinear to half the grid, rounded up; video frames are resized without
keeping the aspect ratio. Both key layouts are read, today's transformers' and that of the published llava-hf files.

T frames, H, W patch rows and columns, C encoder width, D hidden.
"""

from __future__ import annotations

import re
from typing import Any

import torch
from torch import nn

from export.checkpoint import Checkpoint, check_weights, load_weights
from export.families import LLMHalf, VisionHalf, check_model_type, reading_config
from export.families.chat import read_chat, read_preprocessing
from export.families.siglip import SiglipEncoder
from runtime.errors import CheckpointError

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
_PARTS = ("vision_tower.", "multi_modal_projector.", "image_newline", "language_model.", "lm_head.")
# Buffers that old files hold, and SigLIP's pooling head, which LLaVA-OneVision has no use for.
_UNUSED = re.compile(r"rotary_emb\.inv_freq$|position_ids$|^vision_tower\.head\.")


def load_vision(checkpoint: Checkpoint) -> VisionHalf:
    """SigLIP, projector and newline of a checkpoint. CheckpointError says what does not fit."""
    config = _config(checkpoint)
    if config.vision_feature_select_strategy != "full":
        raise CheckpointError(
            f'{checkpoint.path}: vision_feature_select_strategy is "{config.vision_feature_select_strategy}"; '
            'SigLIP has no class token to drop: expected "full"'
        )
    size = config.vision_config.image_size
    preprocessing, frames = read_preprocessing(checkpoint)
    if preprocessing["size"] != [size, size]:
        raise CheckpointError(f"{checkpoint.path}: frames are resized to {preprocessing['size']}, the encoder takes {[size, size]}")

    with reading_config(checkpoint):
        parts = _VisionParts(config)
    load_weights(checkpoint, parts, lambda key: _canonical(key, ("vision_tower.", "multi_modal_projector.", "image_newline")))
    layers = config.vision_feature_layer
    layers = [layers] if isinstance(layers, int) else list(layers)
    depth = config.vision_config.num_hidden_layers
    if not layers or not all(-depth - 1 <= layer <= depth for layer in layers):
        raise CheckpointError(f"{checkpoint.path}: vision_feature_layer is {layers}, the encoder has {depth} layers")
    side = size // config.vision_config.patch_size
    return VisionHalf(
        grid=(side, side),
        frames=frames or FRAMES,
        hidden_size=config.text_config.hidden_size,
        encoder=SiglipEncoder(parts.vision_tower, layers),
        reference_encoder=_ReferenceEncoder(parts.vision_tower, layers),
        projector=parts.multi_modal_projector,
        newline=parts.image_newline[None],
        preprocessing=preprocessing,
    )


def load_llm(checkpoint: Checkpoint) -> LLMHalf:
    """Qwen2 and the prompt's facts of a checkpoint. CheckpointError says what does not fit."""
    config = _config(checkpoint)
    prompt = read_chat(checkpoint, config.video_token_id)
    with reading_config(checkpoint):
        parts = _LLMParts(config)
    load_weights(checkpoint, parts, _llm_name, _tied(config))
    return LLMHalf(parts.causal_lm[0], prompt)


def check_llm(checkpoint: Checkpoint) -> None:
    """What `load_llm` would refuse, without reading weights: it is to be known before the vision half is exported."""
    config = _config(checkpoint)
    read_chat(checkpoint, config.video_token_id)
    with reading_config(checkpoint), torch.device("meta"):
        parts = _LLMParts(config)
    check_weights(checkpoint, parts, _llm_name, _tied(config))


def max_positions(checkpoint: Checkpoint) -> int:
    """Positions that the LLM was made for."""
    return _config(checkpoint).text_config.max_position_embeddings


def _config(checkpoint: Checkpoint) -> Any:
    from transformers import LlavaOnevisionConfig

    raw = check_model_type(checkpoint, MODEL_TYPE)
    with reading_config(checkpoint):
        for part, expected in (("vision_config", "siglip_vision_model"), ("text_config", "qwen2")):
            got = (raw.get(part) or {}).get("model_type", expected)
            if got != expected:
                raise CheckpointError(f'{checkpoint.path}: {part} is of model_type "{got}"; {NAME} knows "{expected}"')
        config = LlavaOnevisionConfig(**raw)
    config.vision_config._attn_implementation = config.text_config._attn_implementation = "sdpa"
    # Published configs tie the head at the top, in text_config, or nowhere; a head in the file is used whatever they say.
    config.tie_word_embeddings = bool(config.tie_word_embeddings or (raw.get("text_config") or {}).get("tie_word_embeddings"))
    config.text_config.tie_word_embeddings = config.tie_word_embeddings
    return config


class _VisionParts(nn.Module):
    """The vision half under the checkpoint's own names; parameters are not initialised, `load_weights` brings them."""

    def __init__(self, config: Any):
        from transformers import SiglipVisionModel
        from transformers.initialization import no_init_weights
        from transformers.models.llava_onevision.modeling_llava_onevision import LlavaOnevisionMultiModalProjector

        super().__init__()
        with no_init_weights():
            self.vision_tower = SiglipVisionModel(config.vision_config).eval()
            self.multi_modal_projector = LlavaOnevisionMultiModalProjector(config).eval()
        self.image_newline = nn.Parameter(torch.empty(config.text_config.hidden_size))


class _LLMParts(nn.Module):
    """The LLM half, likewise."""

    def __init__(self, config: Any):
        from transformers import Qwen2ForCausalLM
        from transformers.initialization import no_init_weights

        super().__init__()
        with no_init_weights():
            causal_lm = Qwen2ForCausalLM(config.text_config).eval()
        self.language_model, self.lm_head = causal_lm.model, causal_lm.lm_head
        self.causal_lm = (causal_lm,)  # a tuple, so that its parameters are not registered twice


class _ReferenceEncoder(nn.Module):
    """transformers' own SigLIP forward, the features picked as LLaVA-OneVision picks them."""

    def __init__(self, tower: nn.Module, layers: list[int]):
        super().__init__()
        self.tower, self.layers = tower, layers

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        states = self.tower(pixel_values, output_hidden_states=True).hidden_states
        return torch.cat([states[layer] for layer in self.layers], dim=-1)  # [T, H*W, C]


def _llm_name(key: str) -> str | None:
    return _canonical(key, ("language_model.", "lm_head."))


def _tied(config: Any) -> dict[str, str]:
    return {"lm_head.weight": "language_model.embed_tokens.weight"} if config.tie_word_embeddings else {}


def _canonical(key: str, halves: tuple[str, ...]) -> str | None:
    """Today's name of a weight, None for what no model uses and for the known parts that `halves` leaves out."""
    for pattern, replacement in _RENAMES:
        key = pattern.sub(replacement, key)
    if _UNUSED.search(key) or (key.startswith(_PARTS) and not key.startswith(halves)):
        return None
    return key
