"""A random LLaVA-OneVision of any size in Hugging Face layout, so that cost can be measured without a download.

    python benchmarks/random_checkpoint.py --size tiny|0.5b|7b-vision --out DIR [--layout hf|published] [--shard-size 1GB]

Out: config.json, generation_config.json, model-*.safetensors with their index, preprocessor_config.json, chat template, tokenizer.
Layout `hf` is today's transformers' (`model.language_model.*`), `published` that of the llava-hf files (`language_model.model.*`,
`vision_tower.vision_model.*`); both have the same numbers. `7b-vision` has the 7B model's config and no LLM weights: export it with
`--only vision`.

Weights are seeded by name and scaled by fan-in, and those that write to a residual stream by its depth too, so activations and
logits stay near one whatever the size. The LLM's matrices have 16 levels in every 32 inputs of an output, so that int4 in such blocks
loses nothing: on matrices without structure it would lose more than an export allows, so that their bundles would be of other
precisions. Shards are made one at a time, in float32, with NumPy alone: memory is twice a shard.

C encoder width, D hidden of the LLM, V vocabulary.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from random_tokenizer import SPECIAL_TOKENS, tokenizer_json

SEED = 0
LAYOUTS = ("hf", "published")


@dataclass(frozen=True)
class Tower:
    """Width, depth, heads, KV heads and MLP width of one transformer."""

    width: int
    layers: int
    heads: int
    kv_heads: int
    mlp: int


@dataclass(frozen=True)
class Size:
    """image: pixels a side; vocabulary: rows of the embedding; first_special_id: of <|endoftext|>; llm_weights: written at all."""

    vision: Tower
    llm: Tower
    image: int = 384
    vocabulary: int = 152_000
    first_special_id: int = 151_643
    max_positions: int = 32_768
    tied: bool = True
    llm_weights: bool = True


SIGLIP_SO400M = Tower(width=1152, layers=26, heads=16, kv_heads=16, mlp=4304)
SIZES = {
    "tiny": Size(
        vision=Tower(width=64, layers=2, heads=4, kv_heads=4, mlp=128),
        llm=Tower(width=64, layers=2, heads=4, kv_heads=2, mlp=128),
        image=112,
        vocabulary=512,
        first_special_id=500,
    ),
    "0.5b": Size(SIGLIP_SO400M, Tower(width=896, layers=24, heads=14, kv_heads=2, mlp=4864)),
    "7b-vision": Size(
        SIGLIP_SO400M,
        Tower(width=3584, layers=28, heads=28, kv_heads=4, mlp=18_944),
        vocabulary=152_128,
        tied=False,
        llm_weights=False,
    ),
}
PATCH = 14
_BLOCK, _STEP = 32, 0.375  # inputs with one scale; a level in standard deviations

# Layout `published` <- `hf`, as prefixes of the keys.
_PUBLISHED = (
    (re.compile(r"^model\.language_model\."), "language_model.model."),
    (re.compile(r"^lm_head\."), "language_model.lm_head."),
    (re.compile(r"^model\.vision_tower\.(?:vision_model\.)?"), "vision_tower.vision_model."),
    (re.compile(r"^model\."), ""),
)

CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' }}"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}{{ '<image>\n' }}{% elif part['type'] == 'video' %}{{ '<video>\n' }}{% endif %}"
    "{% endfor %}"
    "{% for part in message['content'] %}{% if part['type'] == 'text' %}{{ part['text'] }}{% endif %}{% endfor %}"
    "{% endif %}{{ '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def write_checkpoint(size: Size, out: Path, layout: str = "hf", shard_bytes: int = 5 * 10**8) -> None:
    """Write a whole checkpoint directory; an existing one is overwritten file by file."""
    if layout not in LAYOUTS:
        raise ValueError(f'layout is "{layout}", expected one of {", ".join(LAYOUTS)}')
    out.mkdir(parents=True, exist_ok=True)
    special = {token: size.first_special_id + index for index, token in enumerate(SPECIAL_TOKENS)}
    _write_json(out / "config.json", config(size, layout))
    _write_json(
        out / "generation_config.json",
        {"bos_token_id": special["<|endoftext|>"], "eos_token_id": special["<|im_end|>"], "pad_token_id": special["<|endoftext|>"]},
    )
    _write_json(out / "preprocessor_config.json", _preprocessor(size, "LlavaOnevisionImageProcessor"))
    _write_json(out / "processor_config.json", _processor(size))
    if layout == "hf":
        _write_json(
            out / "video_preprocessor_config.json", {"video_processor_type": "LlavaOnevisionVideoProcessor"} | _frames(size)
        )
        (out / "chat_template.jinja").write_text(CHAT_TEMPLATE, encoding="utf-8")
    else:
        _write_json(out / "chat_template.json", {"chat_template": CHAT_TEMPLATE})
    (out / "tokenizer.json").write_text(json.dumps(tokenizer_json(size.first_special_id), ensure_ascii=False), encoding="utf-8")
    _write_json(
        out / "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "eos_token": "<|im_end|>",
            "pad_token": "<|endoftext|>",
            "model_max_length": size.max_positions,
        },
    )
    _write_weights(size, out, layout, shard_bytes)


def config(size: Size, layout: str = "hf") -> dict:
    """`config.json`; rope_theta is written as it was when each layout was current."""
    special = {token: size.first_special_id + index for index, token in enumerate(SPECIAL_TOKENS)}
    rope = {"rope_parameters": {"rope_type": "default", "rope_theta": 1e6}} if layout == "hf" else {"rope_theta": 1e6}
    return {
        "architectures": ["LlavaOnevisionForConditionalGeneration"],
        "model_type": "llava_onevision",
        "dtype" if layout == "hf" else "torch_dtype": "float32",
        "image_token_index": special["<image>"],
        "video_token_index": special["<video>"],
        "image_grid_pinpoints": _pinpoints(size),
        "projector_hidden_act": "gelu",
        "vision_aspect_ratio": "anyres_max_9",
        "vision_feature_layer": -1,
        "vision_feature_select_strategy": "full",
        "tie_word_embeddings": size.tied,
        "text_config": {
            "model_type": "qwen2",
            "hidden_size": size.llm.width,
            "intermediate_size": size.llm.mlp,
            "num_hidden_layers": size.llm.layers,
            "num_attention_heads": size.llm.heads,
            "num_key_value_heads": size.llm.kv_heads,
            "vocab_size": size.vocabulary,
            "max_position_embeddings": size.max_positions,
            "rms_norm_eps": 1e-6,
            "use_sliding_window": False,
            "tie_word_embeddings": size.tied,
            "bos_token_id": special["<|endoftext|>"],
            "eos_token_id": special["<|im_end|>"],
            **rope,
        },
        "vision_config": {
            "model_type": "siglip_vision_model",
            "hidden_size": size.vision.width,
            "intermediate_size": size.vision.mlp,
            "num_hidden_layers": size.vision.layers,
            "num_attention_heads": size.vision.heads,
            "image_size": size.image,
            "patch_size": PATCH,
            "vision_use_head": False,
        },
    }


def weights(size: Size) -> Iterator[tuple[str, tuple[int, ...], float, float]]:
    """(key in layout `hf`, shape, mean, standard deviation) of every tensor."""
    yield from _vision_weights(size)
    hidden = size.llm.width
    yield from _linear("model.multi_modal_projector.linear_1", size.vision.width, hidden)
    yield from _linear("model.multi_modal_projector.linear_2", hidden, hidden)
    yield "model.image_newline", (hidden,), 0.0, hidden**-0.5
    if size.llm_weights:
        yield from _llm_weights(size)


def _vision_weights(size: Size) -> Iterator[tuple[str, tuple[int, ...], float, float]]:
    tower, prefix = size.vision, "model.vision_tower"
    width, patches = tower.width, (size.image // PATCH) ** 2
    yield f"{prefix}.embeddings.patch_embedding.weight", (width, 3, PATCH, PATCH), 0.0, (3 * PATCH * PATCH) ** -0.5
    yield f"{prefix}.embeddings.patch_embedding.bias", (width,), 0.0, 0.02
    yield f"{prefix}.embeddings.position_embedding.weight", (patches, width), 0.0, 0.5
    into_stream = (2 * tower.layers) ** -0.5
    for index in range(tower.layers):
        layer = f"{prefix}.encoder.layers.{index}"
        yield from _layer_norm(f"{layer}.layer_norm1", width)
        for name in ("q_proj", "k_proj", "v_proj"):
            yield from _linear(f"{layer}.self_attn.{name}", width, width)
        yield from _linear(f"{layer}.self_attn.out_proj", width, width, into_stream)
        yield from _layer_norm(f"{layer}.layer_norm2", width)
        yield from _linear(f"{layer}.mlp.fc1", width, tower.mlp)
        yield from _linear(f"{layer}.mlp.fc2", tower.mlp, width, into_stream)
    yield from _layer_norm(f"{prefix}.post_layernorm", width)


def _llm_weights(size: Size) -> Iterator[tuple[str, tuple[int, ...], float, float]]:
    tower, prefix = size.llm, "model.language_model"
    width, kv_width = tower.width, tower.width // tower.heads * tower.kv_heads
    yield f"{prefix}.embed_tokens.weight", (size.vocabulary, width), 0.0, width**-0.5
    into_stream = (2 * tower.layers) ** -0.5
    for index in range(tower.layers):
        layer = f"{prefix}.layers.{index}"
        yield f"{layer}.input_layernorm.weight", (width,), 1.0, 0.02
        for name, out in (("q_proj", width), ("k_proj", kv_width), ("v_proj", kv_width)):
            yield from _linear(f"{layer}.self_attn.{name}", width, out)
        yield f"{layer}.self_attn.o_proj.weight", (width, width), 0.0, into_stream * width**-0.5
        yield f"{layer}.post_attention_layernorm.weight", (width,), 1.0, 0.02
        yield f"{layer}.mlp.gate_proj.weight", (tower.mlp, width), 0.0, width**-0.5
        yield f"{layer}.mlp.up_proj.weight", (tower.mlp, width), 0.0, width**-0.5
        yield f"{layer}.mlp.down_proj.weight", (width, tower.mlp), 0.0, into_stream * tower.mlp**-0.5
    yield f"{prefix}.norm.weight", (width,), 1.0, 0.02
    if not size.tied:
        yield "lm_head.weight", (size.vocabulary, width), 0.0, width**-0.5


def _linear(name: str, fan_in: int, fan_out: int, gain: float = 1.0) -> Iterator[tuple[str, tuple[int, ...], float, float]]:
    yield f"{name}.weight", (fan_out, fan_in), 0.0, gain * fan_in**-0.5
    yield f"{name}.bias", (fan_out,), 0.0, 0.02


def _layer_norm(name: str, width: int) -> Iterator[tuple[str, tuple[int, ...], float, float]]:
    yield f"{name}.weight", (width,), 1.0, 0.02
    yield f"{name}.bias", (width,), 0.0, 0.02


def _write_weights(size: Size, out: Path, layout: str, shard_bytes: int) -> None:
    from safetensors.numpy import save_file

    shards = _shards(list(weights(size)), shard_bytes)
    for stale in [*out.glob("*.safetensors"), *out.glob("*.safetensors.index.json")]:
        stale.unlink()
    index: dict[str, str] = {}
    for number, shard in enumerate(shards, start=1):
        file = "model.safetensors" if len(shards) == 1 else f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        with ThreadPoolExecutor() as pool:  # NumPy lets go of the interpreter, and no tensor depends on another
            made = pool.map(lambda entry: (_key(entry[0], layout), _tensor(*entry)), shard)
            tensors = dict(made)
        save_file(tensors, out / file, metadata={"format": "pt"})
        index |= dict.fromkeys(tensors, file)
    if len(shards) > 1:
        total = sum(4 * int(np.prod(shape)) for shard in shards for _, shape, _, _ in shard)
        _write_json(out / "model.safetensors.index.json", {"metadata": {"total_size": total}, "weight_map": index})


def _shards(plan: list, shard_bytes: int) -> list[list]:
    """The plan cut into lists of at most `shard_bytes` (one tensor may be larger)."""
    shards, room = [[]], shard_bytes
    for entry in plan:
        size = 4 * int(np.prod(entry[1]))
        if size > room and shards[-1]:
            shards.append([])
            room = shard_bytes
        shards[-1].append(entry)
        room -= size
    return shards


def _tensor(name: str, shape: tuple[int, ...], mean: float, deviation: float) -> np.ndarray:
    rng = np.random.default_rng([SEED, zlib.crc32(name.encode())])  # by name: neither layout nor shards change a number
    values = rng.standard_normal(shape, np.float32)
    if "language_model" in name and len(shape) == 2:
        values = _levels(values)
    values *= np.float32(deviation)
    values += np.float32(mean)
    return values


def _levels(values: np.ndarray) -> np.ndarray:
    """Normal values [outputs, inputs] on a grid of -8 to 8 steps, the largest of each 32 inputs moved to its end."""
    steps = np.clip(np.rint(values / _STEP), -7, 7).reshape(-1, _BLOCK)
    outermost = np.abs(steps).argmax(1)[:, None]
    np.put_along_axis(steps, outermost, np.copysign(8, np.take_along_axis(steps, outermost, 1)), 1)
    return (steps * np.float32(_STEP)).reshape(values.shape)


def _key(name: str, layout: str) -> str:
    if layout == "published":
        for pattern, prefix in _PUBLISHED:
            if pattern.search(name):
                return pattern.sub(prefix, name)
    return name


def _frames(size: Size) -> dict:
    return {
        "do_convert_rgb": True,
        "do_resize": True,
        "size": {"height": size.image, "width": size.image},
        "resample": 3,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
    }


def _preprocessor(size: Size, kind: str) -> dict:
    return {"image_processor_type": kind, **_frames(size), "do_pad": True, "image_grid_pinpoints": _pinpoints(size)}


def _processor(size: Size) -> dict:
    return {
        "processor_class": "LlavaOnevisionProcessor",
        "image_token": "<image>",
        "video_token": "<video>",
        "num_image_tokens": (size.image // PATCH) ** 2,
        "vision_feature_select_strategy": "full",
        "vision_aspect_ratio": "anyres_max_9",
    }


def _pinpoints(size: Size) -> list[list[int]]:
    return [[size.image * rows, size.image * columns] for rows in range(1, 7) for columns in range(1, 7)]


def _write_json(path: Path, values: dict) -> None:
    path.write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")


def _bytes(text: str) -> int:
    match = re.fullmatch(r"(\d+)(KB|MB|GB)", text)
    if not match or not int(match[1]):
        raise argparse.ArgumentTypeError(f'"{text}" is not a size; expected a number and KB, MB or GB, e.g. 500MB')
    return int(match[1]) * {"KB": 10**3, "MB": 10**6, "GB": 10**9}[match[2]]


def main() -> int:
    parser = argparse.ArgumentParser(description="Write a random LLaVA-OneVision checkpoint in Hugging Face layout.")
    parser.add_argument("--size", choices=sorted(SIZES), required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--layout", choices=LAYOUTS, default="hf")
    parser.add_argument("--shard-size", type=_bytes, default=5 * 10**8, metavar="N(KB|MB|GB)")
    args = parser.parse_args()
    write_checkpoint(SIZES[args.size], args.out, args.layout, args.shard_size)
    files = list(args.out.glob("*.safetensors"))
    print(f"{args.out}: {sum(file.stat().st_size for file in files) / 1e9:.2f} GB in {len(files)} shard(s)")
    return 0


if __name__ == "__main__":
    sys.exit(main())
