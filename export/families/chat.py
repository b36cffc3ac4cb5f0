"""What a Hugging Face checkpoint says besides its weights: chat template, special tokens, preprocessing.

The files differ between releases of transformers; each is looked for where any of them wrote it.
"""

from __future__ import annotations

from typing import Any

from export.checkpoint import Checkpoint
from runtime.errors import BundleError, CheckpointError
from runtime.preprocess import Preprocessor

_RESAMPLE = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic", 4: "box", 5: "hamming"}  # PIL's numbers


def read_chat(checkpoint: Checkpoint, video_token_id: int) -> dict[str, Any]:
    """{"chat_template": its text, "video_token", "video_token_id", "eos_token_ids"} of a checkpoint."""
    tokenizer = checkpoint.json("tokenizer.json")
    if tokenizer is None:
        raise CheckpointError(f"{checkpoint.path} has no tokenizer.json; save it with transformers' tokenizer.save_pretrained")
    added = tokenizer.get("added_tokens") or []
    if not isinstance(added, list) or not all(
        isinstance(entry, dict) and type(entry.get("id")) is int and "content" in entry for entry in added
    ):
        raise CheckpointError(
            f"{checkpoint.path}: tokenizer.json lists no added_tokens with id and content; copy the checkpoint's own"
        )
    tokens = {entry["id"]: entry["content"] for entry in added}
    if video_token_id not in tokens:
        raise CheckpointError(f"{checkpoint.path}: config's video token id {video_token_id} is no special token of tokenizer.json")
    config = checkpoint.config()
    eos = (checkpoint.json("generation_config.json") or {}).get(
        "eos_token_id", (config.get("text_config") or {}).get("eos_token_id")
    )
    eos_ids = eos if isinstance(eos, list) else [eos]
    if not eos_ids or not all(type(one) is int for one in eos_ids):
        raise CheckpointError(
            f"{checkpoint.path} names no eos_token_id, neither in generation_config.json nor in config.json (it is {eos!r})"
        )
    return {
        "chat_template": _chat_template(checkpoint),
        "video_token": tokens[video_token_id],
        "video_token_id": video_token_id,
        "eos_token_ids": eos_ids,
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
    values = next((c for c in candidates if isinstance(c, dict) and "size" in c and "image_mean" in c), None)
    if values is None:
        raise CheckpointError(
            f"{checkpoint.path} has no preprocessor_config.json with size and image_mean; copy the checkpoint's own"
        )
    size, resample, frames = values["size"], values.get("resample", 3), values.get("num_frames")
    if not isinstance(size, dict) or not {"height", "width"} <= size.keys():
        raise CheckpointError(f'{checkpoint.path}: preprocessor size is {size}; expected {{"height": h, "width": w}}')
    if frames is not None and (type(frames) is not int or frames < 1):
        raise CheckpointError(f"{checkpoint.path}: preprocessor num_frames is {frames!r}; expected a positive number")
    preprocessing = {
        "size": [size["height"], size["width"]],
        "resample": _RESAMPLE.get(resample) if type(resample) is int else resample,
        "rescale_factor": values.get("rescale_factor", 1 / 255),
        "image_mean": values["image_mean"],
        "image_std": values.get("image_std"),
    }
    try:
        Preprocessor(preprocessing)
    except BundleError as error:  # it is the checkpoint's fault here
        raise CheckpointError(
            f"{checkpoint.path}: its preprocessor config would make a bundle that does not work: {error}"
        ) from None
    return preprocessing, frames


def _chat_template(checkpoint: Checkpoint) -> str:
    file = checkpoint.path / "chat_template.jinja"
    if file.exists():
        try:
            return file.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise CheckpointError(f"{file} can't be read as text ({error}); copy the checkpoint's own") from None
    for name in ("chat_template.json", "processor_config.json", "tokenizer_config.json"):
        template = (checkpoint.json(name) or {}).get("chat_template")
        if isinstance(template, str):
            return template
    raise CheckpointError(f"{checkpoint.path} has no chat template; expected chat_template.jinja or chat_template.json")
