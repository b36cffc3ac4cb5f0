"""The models that benchmarks/gpu_speed.py times, with random weights made on the device, and the ways of each from frames to
tokens.

    model = make_model(shape, device)                  transformers' own class, bf16, sdpa
    contestants(model, shape, frames, device, True)    a `Way` each: encode, compress
    output = prefill(model, tokens)                    the same for all ways, as is decode(model, output, new_tokens)

Encoders are compiled layer by layer: one compiled layer serves all layers, all frame counts and both LLaVA-OneVision sizes.
Compression, transformers' own pooling too, is compiled for each shape, as the exported graph is.

T frames, H, W rows and columns of the grid, P patches a frame, D hidden, N visual tokens, S prompt positions.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from encoder_reuse import ReuseEncoder
from gpu_plan import KEEP, KERNEL, OURS, OWN, OWN_COMPILED, REUSE, TEXT_POSITIONS, WHOLE, Shape
from workload import moving_clip

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from export.compress import expand, make

COMPRESS = "st-gridpool"
DTYPE = torch.bfloat16


@dataclass
class Way:
    """encode: () -> what compress takes; compress: -> tokens [N, D], None where encode gives them; spent: seconds of each round, by
    stage."""

    name: str
    tokens: int
    encode: Callable[[], Any]
    compress: Callable[[Any], torch.Tensor] | None
    spent: dict[str, list[float]] = field(default_factory=dict)
    peak_bytes: int | None = None


@dataclass
class Contestants:
    """ways: what runs; left_out: {name: why}; names: {name in gpu_plan: here}, where a fallback renames a way."""

    ways: list[Way]
    left_out: dict[str, str]
    names: dict[str, str]


def make_model(shape: Shape, device: str) -> Any:
    """Made where it runs, under inference mode: 7B parameters take seconds on a GPU and minutes on a CPU."""
    import transformers
    from transformers.initialization import no_init_weights

    if shape.family == "qwen3-vl":
        from qwen3_vl import config

        settings, kind = transformers.Qwen3VLConfig(**config(shape)), transformers.Qwen3VLForConditionalGeneration
    else:
        from random_checkpoint import SIZES, config

        settings = transformers.LlavaOnevisionConfig(**config(SIZES[shape.size]))
        kind = transformers.LlavaOnevisionForConditionalGeneration
    with no_init_weights(), torch.device(device):
        model = kind._from_config(settings, attn_implementation="sdpa", dtype=DTYPE).eval()
    model.tie_weights()
    _fill(model)
    return model


def _fill(model: Any) -> None:
    """Matrices scaled by their fan-in, norms near one: activations stay finite. transformers' own initialisation of SigLIP
    draws from a truncated normal distribution, whose inverse error function not every torch has for bf16 on a GPU."""
    torch.manual_seed(0)
    for name, parameter in model.named_parameters():
        if parameter.ndim > 1:
            parameter.normal_(0, (parameter.numel() // len(parameter)) ** -0.5)
        elif "norm" in name and name.endswith("weight"):
            parameter.normal_(1, 0.02)
        else:  # a bias, or the newline
            parameter.normal_(0, 0.02)


def contestants(model: Any, shape: Shape, frames: int, device: str, compiled: bool) -> Contestants:
    """compiled: False leaves torch.compile out, and the names say so."""
    left_out: dict[str, str] = {}
    grid = shape.grid(frames)
    module = make(COMPRESS, *grid).to(device).eval()
    pooled = _compiled(module) if compiled else module
    kernel = _kernel(grid, shape.llm.width, device, left_out)
    fused = kernel or pooled  # a kernel that can't run costs its own row, not that of reuse
    own, ours = shape.own_tokens(frames), module.num_tokens
    pixels = torch.from_numpy(moving_clip(frames, shape.pixels)).to(device, DTYPE)
    family = _qwen3_vl if shape.family == "qwen3-vl" else _llava
    own_encode, encode, own_pool, reuse = family(model, shape, pixels, grid, compiled)
    ways = [Way(OWN, own, own_encode, None), Way(OWN_COMPILED, own, encode, own_pool), Way(OURS, ours, encode, pooled)]
    if kernel:
        ways.append(Way(KERNEL, ours, encode, kernel))
    if reuse:
        ways.append(Way(REUSE, ours, reuse, fused))
    else:
        left_out[REUSE] = "its encoder is not SigLIP"
    names = {way.name: _renamed(way.name, compiled, kernel is not None) for way in ways}
    for way in ways:
        way.name = names[way.name]
    return Contestants(ways, left_out, names)


def _compiled(run: Callable[..., Any]) -> Callable[..., Any]:
    """For the shapes of its first call; others are compiled again."""
    return torch.compile(run, dynamic=False)


def _renamed(name: str, compiled: bool, kernel: bool) -> str:
    name = name if kernel or name != REUSE else name.replace("kernel", "compiled")
    return name if compiled else name.replace("compiled", "not compiled")


def _llava(model: Any, shape: Shape, pixels: torch.Tensor, grid: tuple[int, int, int], compiled: bool) -> tuple[Any, ...]:
    inner = model.model
    encoder, projector = ReuseEncoder(inner.vision_tower, compiled), inner.multi_modal_projector

    def own_pool(features: torch.Tensor) -> torch.Tensor:
        tokens = inner.apply_pooling(features.flatten(1, 2)).flatten(0, 1)
        return torch.cat([tokens, inner.image_newline[None]])

    def reuse() -> torch.Tensor:
        rows, newest = encoder.reuse(pixels, WHOLE, KEEP)
        return projector(rows)[newest].view(*grid, -1)

    def own_encode() -> torch.Tensor:
        tokens = model.get_video_features(pixels[None]).pooler_output[0]
        # older transformers (5.17) adds the newline in `forward`, newer ones (5.23) here
        return tokens if len(tokens) == shape.own_tokens(len(pixels)) else torch.cat([tokens, inner.image_newline[None]])

    return (
        own_encode,
        lambda: projector(encoder(pixels)).view(*grid, -1),
        _compiled(own_pool) if compiled else own_pool,
        reuse,
    )


def _qwen3_vl(model: Any, shape: Shape, pixels: torch.Tensor, grid: tuple[int, int, int], compiled: bool) -> tuple[Any, ...]:
    from qwen3_vl import Tower, patches

    rows = patches(pixels, shape)
    lengths = torch.tensor([[grid[0], shape.side, shape.side]], device=pixels.device)
    tower = Tower(model.model.visual, shape.side, compiled)
    return (
        lambda: model.get_video_features(rows, lengths).pooler_output[0],
        lambda: tower(rows)[0],
        lambda merged: merged.flatten(0, 2),
        None,
    )


def _kernel(grid: tuple[int, int, int], hidden: int, device: str, left_out: dict[str, str]) -> Callable[[torch.Tensor], Any] | None:
    """The fused kernel for these shapes, called once; None, and why, where it can't run."""
    try:
        if device != "cuda":
            raise ValueError("it needs a GPU")
        from plugins import spec_from_text, st_gridpool
        from plugins.op import output_shape

        spec = spec_from_text(expand(COMPRESS))
        shape = output_shape(spec, (*grid, hidden))

        def kernel(features: torch.Tensor) -> torch.Tensor:
            return st_gridpool(features, spec, out=features.new_empty(shape)).flatten(0, 2)

        kernel(torch.zeros(*grid, hidden, device=device, dtype=DTYPE))
        torch.cuda.synchronize()
        return kernel
    except Exception as error:  # whatever it is: the other ways must still run
        left_out[KERNEL] = reason(error)
        return None


def prompt(model: Any, tokens: torch.Tensor) -> torch.Tensor:
    """[N, D] visual tokens between two parts of a prompt -> [1, S, D]."""
    weight = model.get_input_embeddings().weight
    half = TEXT_POSITIONS // 2
    return torch.cat([weight[:half], tokens, weight[half:TEXT_POSITIONS]])[None]


def prefill(model: Any, tokens: torch.Tensor) -> Any:
    return model(inputs_embeds=prompt(model, tokens), use_cache=True, logits_to_keep=1)


def decode(model: Any, output: Any, new_tokens: int) -> None:
    """Greedy steps after a prefill; nothing is read back in between."""
    for _ in range(new_tokens):
        token = output.logits[:, -1].argmax(-1, keepdim=True)
        output = model(input_ids=token, past_key_values=output.past_key_values, use_cache=True)


def compiles(device: str) -> str | None:
    """None where torch.compile works here, else why not."""
    try:
        torch.compile(lambda x: (x * 2 + 1).relu())(torch.ones(1024, device=device, dtype=DTYPE))
        return None
    except Exception as error:  # no compiler, no Triton, no ptxas
        return reason(error)


def reason(error: Exception) -> str:
    """One line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
