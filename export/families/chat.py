"""What a Hugging Face checkpoint says besides its weights: chat template, special tokens, preprocessing.

The files differ between releases of transformers; each is looked for where any of them wrote it.
"""

from __future__ import annotations

from typing import Any

from export.checkpoint import Checkpoint
from runtime.errors import CheckpointError

_RESAMPLE = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic", 4: "box", 5: "hamming"}  # PIL's numbers


def read_chat(checkpoint: Checkpoint, video_token_id: int) -> dict[str, Any]:
    """{"chat_template": its text, "video_token", "video_token_id", "eos_token_ids"} of a checkpoint."""
    tokenizer = checkpoint.json("tokenizer.json")
    if tokenizer is None:
        raise CheckpointError(f"{checkpoint.path} has no tokenizer.json; save it with transformers' tokenizer.save_pretrained")
    tokens = {entry["id"]: entry["content"] for entry in tokenizer.get("added_tokens", [])}
    if video_token_id not in tokens:
        raise CheckpointError(f"{checkpoint.path}: config's video token id {video_token_id} is no special token of tokenizer.json")
    config = checkpoint.config()
    eos = (checkpoint.json("generation_config.json") or {}).get("eos_token_id", config.get("text_config", {}).get("eos_token_id"))
    if eos is None:
        raise CheckpointError(f"{checkpoint.path} names no eos_token_id, neither in generation_config.json nor in config.json")
    return {
        "chat_template": _chat_template(checkpoint),
        "video_token": tokens[video_token_id],
        "video_token_id": video_token_id,
        "eos_token_ids": eos if isinstance(eos, list) else [eos],
    }


def read_preprocessing(checkpoint: Checkpoint) -> tuple[dict[str, Any], int | None]:
    """(preprocessing for the manifest, the checkpoint's own number of frames or None)."""
    nested = checkpoint.json("processor_config.json") or {}
    candidates = [
        checkpoint.json("video_preprocessor_config.json"),
        nested.get("video_processor"),
        checkpoint.json("preprocessor_config.json"),
        nested.get("image_processor"),
    ]
    values = next((c for c in candidates if c and "size" in c and "image_mean" in c), None)
    if values is None:
        raise CheckpointError(
            f"{checkpoint.path} has no preprocessor_config.json with size and image_mean; copy the checkpoint's own"
        )
    size = values["size"]
    if not {"height", "width"} <= size.keys():
        raise CheckpointError(f'{checkpoint.path}: preprocessor size is {size}; expected {{"height": h, "width": w}}')
    return {
        "size": [size["height"], size["width"]],
        "resample": _RESAMPLE[values.get("resample", 3)],
        "rescale_factor": values.get("rescale_factor", 1 / 255),
        "image_mean": values["image_mean"],
        "image_std": values["image_std"],
    }, values.get("num_frames")


def _chat_template(checkpoint: Checkpoint) -> str:
    file = checkpoint.path / "chat_template.jinja"
    if file.exists():
        return file.read_text(encoding="utf-8")
    for name in ("chat_template.json", "processor_config.json", "tokenizer_config.json"):
        template = (checkpoint.json(name) or {}).get("chat_template")
        if isinstance(template, str):
            return template
    raise CheckpointError(f"{checkpoint.path} has no chat template; expected chat_template.jinja or chat_template.json")
