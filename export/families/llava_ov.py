"""LLaVA-OneVision: a SigLIP encoder, a two-layer projector, a Qwen2 LLM, one `image_newline` token after a clip.

The encoder's features are `hidden_states[vision_feature_layer]`, and -1 there is *before* SigLIP's
post_layernorm; its own token compression is bilinear to half the grid, rounded up; video frames are resized without
keeping the aspect ratio. Both key layouts are read, today's transformers' and that of the published llava-hf files.

T frames, H, W patch rows and columns, C encoder width, D hidden.
"""

from __future__ import annotations

import math
import re
from functools import partial
from typing import Any

import torch
from torch import nn

from export.checkpoint import Checkpoint
from export.families import LLMInfo, VisionInfo, VisionModel, check_model_type, reading_config
from export.families.chat import read_chat, read_preprocessing
from export.families.siglip import SiglipEncoder
from export.weights import check_finite, check_weights, load_weights
from runtime.core.errors import CheckpointError

NAME = "llava-ov"
MODEL_TYPE = "llava_onevision"
HUB_ID = "llava-hf/llava-onevision-qwen2-0.5b-ov-hf"
FRAMES = 32
COMPRESS = "st-gridpool"
_MOST_LAYERS = 1000
_COPY = "copy the checkpoint's own config.json"

_RENAMES = [
    (re.compile(r"^model\.(?=language_model|vision_tower|multi_modal_projector|image_newline)"), ""),
    (re.compile(r"^language_model\.lm_head\."), "lm_head."),
    (re.compile(r"^language_model\.model\."), "language_model."),
    (re.compile(r"^vision_tower\.vision_model\."), "vision_tower."),
]
_VISION_KEYS = ("vision_tower.", "multi_modal_projector.", "image_newline")
_LLM_KEYS = ("language_model.", "lm_head.")
# Buffers in old files, and SigLIP's pooling head, which LLaVA-OneVision does not use.
_UNUSED = re.compile(r"rotary_emb\.inv_freq$|position_ids$|^vision_tower\.head\.")


def describe_vision(checkpoint: Checkpoint) -> VisionInfo:
    """What the configs say of SigLIP, projector and frames; CheckpointError names what can't be exported."""
    config = _config(checkpoint)
    vision = config.vision_config
    if (strategy := config.vision_feature_select_strategy) != "full":
        remedy = 'SigLIP has no class token to drop: expected "full"'
        raise _config_error(checkpoint, f'vision_feature_select_strategy is "{strategy}"', remedy)
    _feature_layers(checkpoint, config)
    if vision.num_channels != 3:
        raise _config_error(checkpoint, f"the encoder takes {vision.num_channels} channels", "expected 3, for RGB frames")
    if vision.num_attention_heads < 1:
        raise _config_error(
            checkpoint, f"the encoder has {vision.num_attention_heads} attention heads", f"expected at least 1, {_COPY}"
        )
    _refuse_epsilon(checkpoint, "layer_norm_eps", vision.layer_norm_eps)
    size, patch = vision.image_size, vision.patch_size
    preprocessing, frames = read_preprocessing(checkpoint)
    if preprocessing.size != (size, size):
        raise CheckpointError(
            f"{checkpoint.path}: frames are resized to {list(preprocessing.size)}, the encoder takes {[size, size]}"
        )
    with reading_config(checkpoint), torch.device("meta"):
        _VisionParts(config)
    return VisionInfo(
        (size // patch, size // patch), frames or FRAMES, config.text_config.hidden_size, preprocessing, closing_tokens=1
    )


def describe_llm(checkpoint: Checkpoint) -> LLMInfo:
    """What the configs say of Qwen2 and its prompt; CheckpointError names what can't be exported."""
    config = _config(checkpoint)
    _refuse_sliding_window(checkpoint, config.text_config)
    _refuse_rotation(checkpoint, config.text_config)
    _refuse_epsilon(checkpoint, "rms_norm_eps", config.text_config.rms_norm_eps)
    with reading_config(checkpoint), torch.device("meta"):
        _LLMParts(config)
    text = config.text_config
    if text.num_attention_heads % text.num_key_value_heads:
        heads = f"the LLM's {text.num_attention_heads} attention heads"
        raise _config_error(checkpoint, f"{heads} can't share {text.num_key_value_heads} KV heads evenly")
    chat = read_chat(checkpoint, config.video_token_id, text.vocab_size, HUB_ID)
    return LLMInfo(chat, text.max_position_embeddings, text.vocab_size)


def check_vision_weights(checkpoint: Checkpoint) -> None:
    """CheckpointError for weights that do not belong to the config; only headers are read."""
    with torch.device("meta"):
        parts = _VisionParts(_config(checkpoint))
    check_weights(checkpoint, parts, _vision_name)


def check_llm_weights(checkpoint: Checkpoint, values: bool = False) -> None:
    """The same for the LLM; values: also for NaN and infinite values, which reads its weights."""
    config = _config(checkpoint)
    with torch.device("meta"):
        parts = _LLMParts(config)
    check_weights(checkpoint, parts, _llm_name, _tied(config))
    if values:
        check_finite(checkpoint, _llm_name)


def load_vision(checkpoint: Checkpoint, attention: str = "portable") -> VisionModel:
    """SigLIP, projector and newline of a checkpoint. CheckpointError says what does not fit."""
    info, config = describe_vision(checkpoint), _config(checkpoint)
    layers = _feature_layers(checkpoint, config)
    parts = _VisionParts(config)
    load_weights(checkpoint, parts, _vision_name)
    return VisionModel(
        grid=info.grid,
        encoder=SiglipEncoder(parts.vision_tower, layers, attention),
        reference_encoder=_ReferenceEncoder(parts.vision_tower, layers),
        projector=parts.multi_modal_projector,
        newline=parts.image_newline[None],
        preprocessing=info.preprocessing,
    )


def load_llm(checkpoint: Checkpoint) -> nn.Module:
    """Qwen2 of a checkpoint. CheckpointError says what does not fit."""
    describe_llm(checkpoint)
    config = _config(checkpoint)
    config.text_config.use_sliding_window = False  # no layer slides, whatever the config would allow
    parts = _LLMParts(config)
    load_weights(checkpoint, parts, _llm_name, _tied(config))
    return parts.causal_lm[0]


def _feature_layers(checkpoint: Checkpoint, config: Any) -> list[int]:
    """vision_feature_layer as a list, refused where the encoder has no such layer."""
    layers, depth = config.vision_feature_layer, config.vision_config.num_hidden_layers
    layers = [layers] if isinstance(layers, int) else list(layers)
    if not layers or not all(-depth - 1 <= layer <= depth for layer in layers):
        raise _config_error(checkpoint, f"vision_feature_layer is {layers}, the encoder has {depth} layers")
    return layers


def _refuse_sliding_window(checkpoint: Checkpoint, text: Any) -> None:
    """A layer slides where `layer_types` says so, which follows from use_sliding_window and max_window_layers if it is absent."""
    full = {"full_attention"}
    if (text.sliding_window or 0) >= text.max_position_embeddings:  # a window that is never full
        full.add("sliding_attention")
    other = [kind for kind in text.layer_types if kind not in full]
    if not other:
        return
    first = other[0]
    window = f" (sliding_window {text.sliding_window})" if first == "sliding_attention" else ""
    layers = f"{len(other)} of the LLM's {text.num_hidden_layers} layers are of type {first}{window}"
    remedy = "choose a checkpoint with full attention, such as one with use_sliding_window false"
    raise _config_error(checkpoint, f"{layers}, the export supports full attention only", remedy)


def _refuse_rotation(checkpoint: Checkpoint, text: Any) -> None:
    """longrope has two tables of positions, the decoder one; a rope_theta or factor that is not above 0 makes no logit finite."""
    from transformers.models.qwen2.modeling_qwen2 import Qwen2RotaryEmbedding

    if (text.rope_parameters or {}).get("rope_type") == "longrope":
        remedy = "the export needs one that does not: default, linear, dynamic, yarn or llama3"
        raise _config_error(checkpoint, "the LLM's rope_type is longrope, which rotates by the prompt's length", remedy)
    with reading_config(checkpoint):
        rotary = Qwen2RotaryEmbedding(text)
    if not (rotary.inv_freq.isfinite().all() and math.isfinite(rotary.attention_scaling)):
        raise _config_error(checkpoint, f"rope_parameters {text.rope_parameters} of the LLM give rotations that are not finite")


def _refuse_epsilon(checkpoint: Checkpoint, name: str, value: float) -> None:
    if not 0 <= value < math.inf:
        raise _config_error(checkpoint, f"{name} is {value}", f"expected a small number from 0 on, {_COPY}")


def _config_error(checkpoint: Checkpoint, problem: str, remedy: str = _COPY) -> CheckpointError:
    return CheckpointError(f"{checkpoint.path / 'config.json'}: {problem}; {remedy}")


def _config(checkpoint: Checkpoint) -> Any:
    from transformers import LlavaOnevisionConfig

    raw = check_model_type(checkpoint, MODEL_TYPE)
    with reading_config(checkpoint):
        for part, expected in (("vision_config", "siglip_vision_model"), ("text_config", "qwen2")):
            values = raw.get(part) or {}
            if not isinstance(values, dict):
                raise _config_error(checkpoint, f"{part} is {values!r}", "expected a JSON object")
            got = values.get("model_type", expected)
            if got != expected:
                raise _config_error(checkpoint, f'{part} is of model_type "{got}"', f'{NAME} knows "{expected}"')
            layers = values.get("num_hidden_layers")
            if isinstance(layers, int) and layers > _MOST_LAYERS:  # modules are made for all of them before a weight is read
                remedy = f"expected at most {_MOST_LAYERS}, {_COPY}"
                raise _config_error(checkpoint, f"{part} has num_hidden_layers {layers}", remedy)
        config = LlavaOnevisionConfig(**raw)
    config.vision_config._attn_implementation = config.text_config._attn_implementation = "sdpa"
    # Published configs tie the head at the top, in text_config, or nowhere; a head in the file is used whatever they say.
    config.tie_word_embeddings = bool(config.tie_word_embeddings or (raw.get("text_config") or {}).get("tie_word_embeddings"))
    config.text_config.tie_word_embeddings = config.tie_word_embeddings
    return config


class _VisionParts(nn.Module):
    """The vision encoder under the checkpoint's names; parameters are not initialised, `load_weights` fills them."""

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
    """The LLM, likewise."""

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


def _tied(config: Any) -> dict[str, str]:
    return {"lm_head.weight": "language_model.embed_tokens.weight"} if config.tie_word_embeddings else {}


def _canonical(key: str, wanted: tuple[str, ...]) -> str | None:
    """Today's name of a weight, None for what no model uses and for known parts that are not `wanted`."""
    for pattern, replacement in _RENAMES:
        key = pattern.sub(replacement, key)
    if _UNUSED.search(key) or (key.startswith(_VISION_KEYS + _LLM_KEYS) and not key.startswith(wanted)):
        return None
    return key


_vision_name, _llm_name = partial(_canonical, wanted=_VISION_KEYS), partial(_canonical, wanted=_LLM_KEYS)
