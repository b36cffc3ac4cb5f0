"""What a Hugging Face checkpoint says besides its weights: chat template, special tokens, generation, preprocessing.

Releases of transformers differ in which file holds what; each value is looked for wherever some release wrote it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from export.checkpoint import Checkpoint
from runtime.bundle import REPETITION_PENALTIES
from runtime.bundle.manifest import RESAMPLING, Preprocessing, read
from runtime.bundle.schema import check
from runtime.core.errors import BundleError, CheckpointError


@dataclass(frozen=True)
class Chat:
    """What the manifest's `prompt` is made of, and the chat template's file for messages about it."""

    template: str
    template_file: str
    video_token: str
    video_token_id: int
    eos_token_ids: list[int]
    repetition_penalty: float | None  # None where answers need none


def read_chat(checkpoint: Checkpoint, video_token_id: Any, vocabulary: int, published: str) -> Chat:
    """Template, tokens and generation settings of a checkpoint whose embeddings have `vocabulary` rows.

    published: a checkpoint whose tokenizer works, to name in the message.
    """
    tokens = _added_tokens(checkpoint)
    if video_token_id not in tokens:
        raise CheckpointError(
            f"{checkpoint.path}: config's video token id {video_token_id} is not a special token of tokenizer.json; "
            f"copy the tokenizer of a checkpoint for video, such as {published}"
        )
    template, file = _chat_template(checkpoint)
    eos = _eos_token_ids(checkpoint)
    if not any(0 <= one < vocabulary for one in eos):
        raise CheckpointError(
            f"{checkpoint.path}: eos_token_id is {eos}, none of them a token of the LLM (its vocab_size is {vocabulary}), so no answer "
            "would end; copy the checkpoint's own generation_config.json"
        )
    return Chat(template, file, tokens[video_token_id], video_token_id, eos, _repetition_penalty(checkpoint))


# Settings of generation_config.json that change which token is the best one, and the values that change nothing.
_NOT_APPLIED: dict[str, tuple[Any, ...]] = {
    "no_repeat_ngram_size": (0,),
    "encoder_no_repeat_ngram_size": (0,),
    "encoder_repetition_penalty": (1,),
    "suppress_tokens": ([],),
    "begin_suppress_tokens": ([],),
    "bad_words_ids": ([],),
    "sequence_bias": ({}, []),
    "min_length": (0,),
    "min_new_tokens": (0,),
    "forced_bos_token_id": (),
    "forced_eos_token_id": (),
    "exponential_decay_length_penalty": (),
    "guidance_scale": (1,),
    "num_beams": (1,),
    "penalty_alpha": (0,),
    "dola_layers": (),
    "stop_strings": ([],),
    "watermarking_config": (),
}


def settings_not_applied(checkpoint: Checkpoint) -> list[str]:
    """Names of settings in generation_config.json under which transformers' greedy answers can differ from the runtime's."""
    generation = checkpoint.json("generation_config.json") or {}
    return [
        name
        for name, neutral in _NOT_APPLIED.items()
        if (value := generation.get(name)) is not None and not any(value == one for one in neutral)
    ]


def read_preprocessing(checkpoint: Checkpoint) -> tuple[Preprocessing, int | None]:
    """(preprocessing for the manifest, the checkpoint's own number of frames or None)."""
    name, values = _frame_processor(checkpoint)
    where = checkpoint.path / name
    size, resample, frames = values["size"], values.get("resample", 3), values.get("num_frames")
    if not isinstance(size, dict) or not {"height", "width"} <= size.keys():
        raise CheckpointError(f'{where}: preprocessor size is {size}; expected {{"height": h, "width": w}}')
    if frames is not None and (type(frames) is not int or frames < 1):
        raise CheckpointError(f"{where}: preprocessor num_frames is {frames!r}; expected a positive number")
    if values.get("do_resize") is False:
        raise CheckpointError(f"{where}: do_resize is false; the encoder takes frames of one size, expected true")
    if values.get("do_center_crop") and values.get("crop_size") not in (None, size):
        raise CheckpointError(
            f"{where}: do_center_crop with crop_size {values['crop_size']} after a resize to {size} is not supported; expected false"
        )
    rescaled, normalised = values.get("do_rescale") is not False, values.get("do_normalize") is not False
    preprocessing = {
        "size": [size["height"], size["width"]],
        "resample": RESAMPLING[resample] if type(resample) is int and 0 <= resample < len(RESAMPLING) else resample,
        "rescale_factor": values.get("rescale_factor", 1 / 255) if rescaled else 1.0,
        "image_mean": values["image_mean"] if normalised else 0.0,
        "image_std": values.get("image_std") if normalised else 1.0,
    }
    try:
        check(preprocessing, f"{where} describes no usable preprocessing", "preprocessing", "copy the checkpoint's own file")
    except BundleError as error:
        raise CheckpointError(str(error)) from None
    return read(Preprocessing, preprocessing), frames


def _frame_processor(checkpoint: Checkpoint) -> tuple[str, dict[str, Any]]:
    """(file, values) of the processor for a video's frames, else of that for images."""
    nested = checkpoint.json("processor_config.json") or {}
    candidates = [
        ("video_preprocessor_config.json", checkpoint.json("video_preprocessor_config.json")),
        ("processor_config.json", nested.get("video_processor")),
        ("preprocessor_config.json", checkpoint.json("preprocessor_config.json")),
        ("processor_config.json", nested.get("image_processor")),
    ]
    for name, values in candidates:
        if isinstance(values, dict) and "size" in values and "image_mean" in values:
            return name, values
    raise CheckpointError(f"{checkpoint.path} has no preprocessor_config.json with size and image_mean; copy the checkpoint's own")


def _added_tokens(checkpoint: Checkpoint) -> dict[int, str]:
    """{id: text} of the tokens that tokenizer.json adds to its vocabulary."""
    tokenizer = checkpoint.json("tokenizer.json")
    if tokenizer is None:
        raise CheckpointError(f"{checkpoint.path} has no tokenizer.json; save it with transformers' tokenizer.save_pretrained")
    added = tokenizer.get("added_tokens") or []
    if not isinstance(added, list) or not all(
        isinstance(entry, dict) and type(entry.get("id")) is int and isinstance(entry.get("content"), str) for entry in added
    ):
        raise CheckpointError(
            f"{checkpoint.path}: tokenizer.json lists no added_tokens with id and content; copy the checkpoint's own"
        )
    return {entry["id"]: entry["content"] for entry in added}


def _eos_token_ids(checkpoint: Checkpoint) -> list[int]:
    eos = (checkpoint.json("generation_config.json") or {}).get(
        "eos_token_id", (checkpoint.config().get("text_config") or {}).get("eos_token_id")
    )
    ids: list[Any] = eos if isinstance(eos, list) else [eos]
    if not ids or not all(type(one) is int for one in ids):
        raise CheckpointError(
            f"{checkpoint.path} names no eos_token_id, neither in generation_config.json nor in config.json (it is {eos!r})"
        )
    return ids


def _repetition_penalty(checkpoint: Checkpoint) -> float | None:
    """That of generation_config.json; None where it has none, or 1."""
    penalty = (checkpoint.json("generation_config.json") or {}).get("repetition_penalty")
    if penalty is None:
        return None
    least, most = REPETITION_PENALTIES
    if type(penalty) not in (int, float) or not least <= penalty <= most:
        raise CheckpointError(
            f"{checkpoint.path / 'generation_config.json'}: repetition_penalty is {penalty!r}; "
            f"expected a number from {least:g} to {most:g}, 1 for none"
        )
    return float(penalty) if penalty != 1 else None


def _chat_template(checkpoint: Checkpoint) -> tuple[str, str]:
    """(the template, its file)."""
    file = checkpoint.path / "chat_template.jinja"
    if file.exists():
        try:
            return file.read_text(encoding="utf-8"), file.name
        except (OSError, ValueError) as error:
            raise CheckpointError(f"{file} can't be read ({error}); copy the checkpoint's own") from None
    for name in ("chat_template.json", "processor_config.json", "tokenizer_config.json"):
        template = _default_template((checkpoint.json(name) or {}).get("chat_template"))
        if template is not None:
            return template, name
    raise CheckpointError(f"{checkpoint.path} has no chat template; expected chat_template.jinja or chat_template.json")


def _default_template(value: Any) -> str | None:
    """The template in a config's entry: its text, or the one named "default" in {name: text} or [{"name": …, "template": text}]."""
    if isinstance(value, list):
        entries = [entry for entry in value if isinstance(entry, dict) and entry.get("name") == "default"]
        value = entries[0].get("template") if entries else None
    elif isinstance(value, dict):
        value = value.get("default")
    return value if isinstance(value, str) else None
