"""What torch computes for a fixed input, stage by stage, with the libraries' own modules: the truth of a bundle.

Written to `reference/` in Polygraphy's formats, so that the stock command checks a bundle too:
    polygraphy run vision.onnx --onnxrt --load-inputs reference/inputs.json --load-outputs reference/torch.json

T frames, h, w pixels, H, W patch rows and columns, C encoder width, D hidden, N visual tokens.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from export.families import LLMHalf, VisionHalf
from export.float64 import in_float64
from export.trace import Vision
from runtime.prompt import PromptIds
from runtime.tools.reference import LLMReference

if TYPE_CHECKING:
    from polygraphy.comparator import RunResults

LLM_VISUAL_TOKENS = 1024  # visual tokens of the LLM's reference prompt at most: parity needs no longer one
GREEDY = 16
_ROUNDING_PATCHES = 729  # at least as many, where the clip has them, show what float32 does to the features
_STAGE_VALUES = 1 << 22  # values of a stage kept in stages.json; larger stages are thinned to every k-th value


def pixel_values(half: VisionHalf, frames: int, size: tuple[int, int] | None = None) -> np.ndarray:
    """A seeded clip [T, 3, h, w] float32 in the encoder's range: drifting waves under noise, so that frames and patches differ."""
    rng = np.random.default_rng(0)
    height, width = size or half.preprocessing["size"]
    y, x = np.mgrid[0 : 1 : height * 1j, 0 : 1 : width * 1j].astype(np.float32)
    clip = np.empty((frames, 3, height, width), np.float32)
    waves = rng.uniform(2, 24, (3, 4)).astype(np.float32)
    for frame in range(frames):
        for channel, (fx, fy, drift, phase) in enumerate(waves):
            clip[frame, channel] = np.sin(fx * x + fy * y * y + 0.11 * drift * frame + phase)
    noise = rng.standard_normal(clip.shape, np.float32)
    return np.clip(0.7 * clip + 0.3 * noise, -1, 1)


def frames(half: VisionHalf, count: int, size: tuple[int, int]) -> np.ndarray:
    """The same kind of clip as uint8 frames [T, h, w, 3] of `size`, for a graph that takes those."""
    scaled = (pixel_values(half, count, size) + 1) * 127.5
    return np.ascontiguousarray(scaled.round().astype(np.uint8).transpose(0, 2, 3, 1))


def stages(vision: Vision, half: VisionHalf, pixels: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
    """(name, output) of every stage in order, then ("visual_tokens", [N, D]); encoder by the library's own forward, 4 frames a time."""
    if vision.input is not None:
        yield "vision/input", pixels
    with torch.inference_mode():
        parts = [half.reference_encoder(torch.from_numpy(pixels[at : at + 4])) for at in range(0, len(pixels), 4)]
        tokens = torch.cat(parts)  # [T, H*W, C]
        yield "vision/encoder", tokens.numpy()
        if vision.place == "after-projector":
            tokens = torch.cat([half.projector(frame[None]) for frame in tokens])
            yield "vision/projector", tokens.numpy()
        for name, output in vision.compress.outputs(tokens.unflatten(1, half.grid)):
            yield f"compress/{name}", output.numpy()
            tokens = output
        tokens = tokens.reshape(-1, tokens.shape[-1])
        if vision.place == "before-projector":
            tokens = half.projector(tokens)
            yield "vision/projector", tokens.numpy()
        yield "visual_tokens", torch.cat([tokens, half.newline]).numpy()


def vision_rounding(half: VisionHalf, pixels: np.ndarray) -> float:
    """What float32 alone does to the features of a few of `pixels` [T, 3, h, w], relative to the largest: torch against float64.

    The worst of the library's encoder and the one that is exported, each against itself, and of the projector behind them.
    """
    frames = torch.from_numpy(pixels[: -(-_ROUNDING_PATCHES // (half.grid[0] * half.grid[1]))])
    errors = []
    for encoder in (half.reference_encoder, half.encoder):
        with torch.inference_mode():
            features = encoder(frames)
            rounded = [features, half.projector(features)]
        with in_float64(encoder), in_float64(half.projector):
            features = encoder(frames.double())
            exact = [features, half.projector(features)]
        errors += [_error(*pair) for pair in zip(rounded, exact, strict=True)]
    return max(errors)


def llm(half: LLMHalf, ids: PromptIds, visual_tokens: np.ndarray) -> LLMReference:
    """transformers' own prefill logits and greedy ids for a prompt around visual tokens [n, D].

    The ids are those of its float32; logits and margins come from one forward in float64 over the prompt and these ids, and the
    rounding is what its float32 logits differ from that by, the worst of all ids.
    """
    embed = half.causal_lm.get_input_embeddings()

    def embedded(part: list[int]) -> torch.Tensor:
        return embed(torch.tensor(part, dtype=torch.long))

    with torch.inference_mode():
        prompt = torch.cat([embedded(ids.before), torch.from_numpy(visual_tokens), embedded(ids.after)])[None]  # [1, S, D]
        output = half.causal_lm(inputs_embeds=prompt, use_cache=True, logits_to_keep=1)
        rounded = [output.logits[0, -1]]
        greedy = [int(rounded[-1].argmax())]
        while len(greedy) < GREEDY:
            output = half.causal_lm(torch.tensor([greedy[-1:]]), past_key_values=output.past_key_values, use_cache=True)
            rounded.append(output.logits[0, -1])
            greedy.append(int(rounded[-1].argmax()))
        forced = torch.cat([prompt, embedded(greedy[:-1])[None]], dim=1)
    with in_float64(half.causal_lm):
        exact = half.causal_lm(inputs_embeds=forced.double(), use_cache=False, logits_to_keep=GREEDY).logits[0]  # [GREEDY, V]
    margins = [_margin(logits, token) for logits, token in zip(exact, greedy, strict=True)]
    rounding = max(_error(*pair) for pair in zip(rounded, exact, strict=True))
    return LLMReference(ids, visual_tokens, exact[0].float().numpy(), greedy, margins, rounding)


def _margin(logits: torch.Tensor, token: int) -> float:
    """How far the logit of `token` is above the best other one; 0 where another is above it."""
    other = torch.cat([logits[:token], logits[token + 1 :]]).max()
    return max(0.0, float(logits[token] - other))


def _error(rounded: torch.Tensor, exact: torch.Tensor) -> float:
    return float((rounded - exact).abs().max() / exact.abs().max())


def save_vision(directory: Path, feed: dict[str, np.ndarray], outputs: dict[str, np.ndarray]) -> dict[str, int]:
    """Write inputs.json, torch.json and stages.json; return {stage: k}, every k-th value of its flattened output was kept."""
    from polygraphy.json import save_json
    from polygraphy.logger import G_LOGGER

    directory.mkdir(parents=True, exist_ok=True)
    every = {name: -(-array.size // _STAGE_VALUES) for name, array in outputs.items()}
    thinned = {name: array.reshape(-1)[:: every[name]].copy() for name, array in outputs.items()}
    with G_LOGGER.verbosity(G_LOGGER.WARNING):  # it reports every file on stdout
        save_json([feed], str(directory / "inputs.json"))
        _results({"visual_tokens": outputs["visual_tokens"]}).save(str(directory / "torch.json"))
        _results(thinned).save(str(directory / "stages.json"))
    return every


def save_llm(directory: Path, expected: LLMReference) -> None:
    """Write llm.json (prompt ids, greedy ids, margins, rounding), llm_logits.npy [V] and llm_visual_tokens.npy [n, D]."""
    directory.mkdir(parents=True, exist_ok=True)
    facts = {
        "before": expected.ids.before,
        "after": expected.ids.after,
        "greedy": expected.greedy,
        "margins": expected.margins,
        "rounding": expected.rounding,
    }
    (directory / "llm.json").write_text(json.dumps(facts))
    np.save(directory / "llm_logits.npy", expected.logits)
    np.save(directory / "llm_visual_tokens.npy", expected.visual_tokens)


def _results(arrays: dict[str, np.ndarray]) -> RunResults:
    from polygraphy.comparator import IterationResult, RunResults

    return RunResults([("torch", [IterationResult(outputs=arrays, runtime=0.0, runner_name="torch")])])
