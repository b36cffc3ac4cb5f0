"""The small LLaVA-OneVision of the demo before training: its tokenizer, its sizes, its initial weights, and how it is saved.

A Hugging Face model of the library's classes, so that the checkpoint has the published layout. T frames, M patch tokens of a
frame, C width of the tower, D hidden.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from export.scenes.scene import COLORS, CORNERS, DIRECTIONS, GRID, LETTERS, NUMBERS, PATCH, SHAPES, SIZE

if TYPE_CHECKING:
    from transformers import LlavaOnevisionForConditionalGeneration, PreTrainedTokenizerFast

SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<image>", "<video>", "<unk>")
_WORDS = (
    "system user assistant ? . what which how many is are the does way move become color shape letter object objects there "
    "appears first last shown flash you a helpful vanishes where camera"
)
VOCABULARY = tuple(
    dict.fromkeys(
        [*SPECIAL, *_WORDS.split(), *COLORS, *SHAPES, *LETTERS, *DIRECTIONS, *CORNERS.values(), *NUMBERS]  # each word once
    )
)
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + ' ' }}"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] %}{% if part['type'] == 'video' %}{{ '<video> ' }}"
    "{% elif part['type'] == 'image' %}{{ '<image> ' }}{% endif %}{% endfor %}"
    "{% for part in message['content'] %}{% if part['type'] == 'text' %}{{ part['text'] }}{% endif %}{% endfor %}"
    "{% endif %}{{ '<|im_end|>' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant ' }}{% endif %}"
)
VISION = {"hidden_size": 96, "intermediate_size": 288, "num_hidden_layers": 3, "num_attention_heads": 3}
TEXT = {
    "hidden_size": 128,
    "intermediate_size": 384,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 4096,
}


def make_tokenizer() -> PreTrainedTokenizerFast:
    """One token a word, lower case."""
    from tokenizers import AddedToken, Tokenizer, models, normalizers, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.WordLevel({word: n for n, word in enumerate(VOCABULARY)}, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in SPECIAL])
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token="<unk>",
        pad_token="<|endoftext|>",
        eos_token="<|im_end|>",
        additional_special_tokens=["<|im_start|>", "<image>", "<video>"],
        padding_side="left",
    )
    fast.chat_template = CHAT_TEMPLATE
    return fast


def make_model(seed: int) -> LlavaOnevisionForConditionalGeneration:
    """Untrained weights drawn from `seed`: matrices of the LLM and projector with deviation 1/sqrt(inputs), a third of it where they
    write to the residual stream; the tower as the library draws it."""
    from transformers import LlavaOnevisionConfig, LlavaOnevisionForConditionalGeneration, Qwen2Config, SiglipVisionConfig

    torch.manual_seed(seed)
    index = VOCABULARY.index
    config = LlavaOnevisionConfig(
        vision_config=SiglipVisionConfig(image_size=SIZE, patch_size=PATCH, vision_use_head=False, **VISION),
        text_config=Qwen2Config(
            vocab_size=len(VOCABULARY),
            tie_word_embeddings=True,
            rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
            bos_token_id=None,
            eos_token_id=index("<|im_end|>"),
            pad_token_id=index("<|endoftext|>"),
            **TEXT,
        ),
        image_token_index=index("<image>"),
        video_token_index=index("<video>"),
        image_grid_pinpoints=[[SIZE, SIZE]],
        tie_word_embeddings=True,
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
    )
    model = LlavaOnevisionForConditionalGeneration(config)
    for name, weight in model.named_parameters():
        if "embed_tokens" in name:
            torch.nn.init.normal_(weight, 0, 0.08)
        elif weight.dim() == 2 and ("language_model.layers" in name or "projector" in name):
            residual = "o_proj" in name or "down_proj" in name
            torch.nn.init.normal_(weight, 0, weight.shape[1] ** -0.5 * (0.35 if residual else 1))
    model.tie_weights()
    return model


def save_checkpoint(model: LlavaOnevisionForConditionalGeneration, path: Path, frames: int) -> None:
    """Write the Hugging Face directory: weights, configs, tokenizer, chat template, preprocessing (`frames` of a clip)."""
    model.save_pretrained(path)
    (path / "model.safetensors").chmod(0o644)  # safetensors writes for its owner alone
    make_tokenizer().save_pretrained(path)
    image = {
        "do_convert_rgb": True,
        "do_resize": True,
        "size": {"height": SIZE, "width": SIZE},
        "resample": 3,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
    }
    files: dict[str, dict[str, Any]] = {
        "preprocessor_config.json": {
            "image_processor_type": "LlavaOnevisionImageProcessor",
            **image,
            "do_pad": True,
            "image_grid_pinpoints": [[SIZE, SIZE]],
        },
        "video_preprocessor_config.json": {
            "video_processor_type": "LlavaOnevisionVideoProcessor",
            **image,
            "num_frames": frames,
        },
        "processor_config.json": {
            "processor_class": "LlavaOnevisionProcessor",
            "image_token": "<image>",
            "video_token": "<video>",
            "num_image_tokens": GRID * GRID,
            "vision_feature_select_strategy": "full",
            "vision_aspect_ratio": "anyres_max_9",
        },
    }
    for name, values in files.items():
        (path / name).write_text(json.dumps(values, indent=2) + "\n")


def encoded(model: LlavaOnevisionForConditionalGeneration, frames: torch.Tensor) -> torch.Tensor:
    """The tower's patch tokens: uint8 RGB [..., T, S, S, 3] -> [..., T, GRID, GRID, C]."""
    pixels = frames.flatten(0, -4).permute(0, 3, 1, 2).float().div(127.5).sub(1)
    hidden = model.model.vision_tower(pixels, output_hidden_states=True).hidden_states[model.config.vision_feature_layer]
    return hidden.unflatten(1, (GRID, GRID)).unflatten(0, frames.shape[:-3])


def project(model: LlavaOnevisionForConditionalGeneration, tokens: torch.Tensor) -> torch.Tensor:
    """[..., C] -> [..., D]: the tokens as the LLM takes them."""
    return model.model.multi_modal_projector(tokens)
