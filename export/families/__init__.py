"""Model families: one file each, one line in FAMILIES. A family knows what is special about its models and nothing else.

A family module offers
    NAME, MODEL_TYPE, HUB_ID        registry name, the config's model_type, a published checkpoint to name in messages
    FRAMES, COMPRESS                defaults of --frames and --compress
    describe_vision(checkpoint) -> VisionInfo    from the JSON files alone; refuses what can't be exported
    describe_llm(checkpoint) -> LLMInfo          the same
    check_vision_weights(checkpoint)             from the headers of the weight files, refuses what does not belong to the config
    check_llm_weights(checkpoint, values=False)  the same; values: NaN and infinite ones too, which reads every weight
    load_vision(checkpoint, attention="portable") -> VisionModel, its encoder in that variant
    load_llm(checkpoint) -> nn.Module            the library's own causal LM (transformers), float32
Each component is read alone, so that an export never has both in memory.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import ModuleType
from typing import TYPE_CHECKING, Any

from export.checkpoint import Checkpoint
from export.families.chat import Chat
from export.weights import refuse_quantized
from runtime.bundle.manifest import Preprocessing
from runtime.core.errors import CheckpointError, ExportError, UserError, nearest

if TYPE_CHECKING:
    import torch
    from torch import nn

FAMILIES = {"llava-ov": "export.families.llava_ov"}


@dataclass(frozen=True)
class VisionInfo:
    """What the configs say of the vision encoder."""

    grid: tuple[int, int]  # (H, W) patch rows and columns of a frame
    frames: int  # of a clip: the checkpoint's number, or the family's default
    hidden_size: int  # D of the LLM
    preprocessing: Preprocessing
    closing_tokens: int  # after a clip's compressed ones


@dataclass(frozen=True)
class LLMInfo:
    """What the configs say of the LLM."""

    chat: Chat  # template, special tokens, generation settings
    max_positions: int  # that the LLM was trained for
    vocabulary: int  # rows of its embeddings


@dataclass(frozen=True)
class VisionModel:
    """The vision encoder in the parts that the export needs, float32, in eval mode.

    T frames, H, W patch rows and columns, h, w pixels, C encoder width, D hidden.
    """

    grid: tuple[int, int]  # (H, W)
    encoder: nn.Module  # pixel_values [T, 3, h, w] -> [T, H*W, C], written for export
    reference_encoder: nn.Module  # the library's encoder, same signature and storage, that verify compares with
    projector: nn.Module  # [..., C] -> [..., D]
    newline: torch.Tensor  # [1, D], the token that closes a clip
    preprocessing: Preprocessing


def family(name: str) -> ModuleType:
    """The family registered as `name`; ExportError names the nearest for a misspelt one."""
    if name not in FAMILIES:
        raise ExportError(f'no model family "{name}"{nearest(name, FAMILIES)}')
    return importlib.import_module(FAMILIES[name])


def check_model_type(checkpoint: Checkpoint, expected: str) -> dict[str, Any]:
    """The checkpoint's config, refused where its model_type is another family's or its weights are quantized."""
    config = checkpoint.config()
    got = config.get("model_type")
    if got != expected:
        known = ", ".join(f"{name} (model_type {family(name).MODEL_TYPE})" for name in sorted(FAMILIES))
        raise CheckpointError(
            f'{checkpoint.path} is of model_type "{got}", expected "{expected}"{_original(config)}; families known: {known}'
        )
    refuse_quantized(checkpoint)
    return config


def _original(config: dict[str, Any]) -> str:
    """What to use instead of a checkpoint in the layout of the LLaVA-NeXT repository, "" for any other."""
    if not {"mm_vision_tower", "mm_projector_type"} & config.keys():
        return ""
    architectures = config.get("architectures")
    layout = f"{architectures[0] if isinstance(architectures, list) and architectures else 'LLaVA'} in LLaVA-NeXT's own layout"
    if config.get("mm_newline_position", "one_token") != "one_token":  # LLaVA-Video
        return (
            f": it is {layout}, with a newline token in every row of a frame (LLaVA-Video), which no family here reads; "
            "use a LLaVA-OneVision checkpoint such as llava-hf/llava-onevision-qwen2-7b-ov-hf"
        )
    size = {"896": "0.5b", "8192": "72b"}.get(str(config.get("hidden_size")), "7b")
    return f": it is {layout}; use its conversion for transformers, llava-hf/llava-onevision-qwen2-{size}-ov-hf"


@contextmanager
def reading_config(checkpoint: Checkpoint) -> Iterator[None]:
    """Turn what the library raises while it makes a config, or an empty module of one, into a CheckpointError.

    A wrong config makes the library raise exceptions of many kinds.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise CheckpointError(
            f"{checkpoint.path / 'config.json'} does not describe a model that transformers can make ({reason}); copy the checkpoint's own"
        ) from None
