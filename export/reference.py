"""What torch computes for a fixed input, stage by stage, with the libraries' own modules; a bundle is compared with it.

Written to `reference/` in Polygraphy's formats, so that the stock command checks a bundle too:
    polygraphy run vision.onnx --onnxrt --load-inputs reference/inputs.json --load-outputs reference/torch.json

T frames, h, w pixels, H, W patch rows and columns, C encoder width, D hidden, N visual tokens.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from export.families import VisionModel
from export.stages import Vision, run_parts
from runtime.media.preprocess import Preprocessor
from runtime.prompt import PromptIds
from runtime.tools.reference import LLMReference
from runtime.tools.stages import VISUAL_TOKENS

if TYPE_CHECKING:
    from polygraphy.comparator import RunResults

    from export.frames import FrameInput

LLM_VISUAL_TOKENS = 1024  # most visual tokens of the LLM's reference prompt: parity needs no longer one
GREEDY = 16
_ROUNDING_PATCHES = 729  # at least as many, if the clip has them, to measure what float32 does to the features
_STAGE_VALUES = 1 << 22  # values of a stage kept in stages.json; larger stages are thinned to every k-th value


@dataclass(frozen=True)
class VisionReference:
    """inputs: what the graph takes; outputs: {stage: torch's}, in order; rounding: what float32 alone does to the features."""

    inputs: np.ndarray
    outputs: dict[str, np.ndarray]
    rounding: float


def make_clip(source: VisionModel, frames: int, frame_input: FrameInput | None) -> tuple[np.ndarray, np.ndarray]:
    """(what the graph takes, pixel values [T, 3, h, w]) of T seeded frames.

    frame_input: where the graph takes uint8 frames [T, h, w, 3], which Pillow turns into pixel values here; None for pixel values.
    """
    if frame_input is None:
        pixels = pixel_values(frames, source.preprocessing.size)
        return pixels, pixels
    processor = Preprocessor(source.preprocessing)
    scaled = (pixel_values(frames, frame_input.source) + 1) * 127.5
    shown = np.ascontiguousarray(scaled.round().astype(np.uint8).transpose(0, 2, 3, 1))
    return shown, processor.normalise(np.stack([processor.resize(frame) for frame in shown]))


def pixel_values(frames: int, size: Sequence[int]) -> np.ndarray:
    """A seeded clip [T, 3, h, w] float32 from -1 to 1: drifting waves under noise, so that frames and patches differ."""
    rng = np.random.default_rng(0)
    height, width = size
    y, x = np.mgrid[0 : 1 : height * 1j, 0 : 1 : width * 1j].astype(np.float32)
    clip = np.empty((frames, 3, height, width), np.float32)
    waves = rng.uniform(2, 24, (3, 4)).astype(np.float32)
    for frame in range(frames):
        for channel, (fx, fy, drift, phase) in enumerate(waves):
            clip[frame, channel] = np.sin(fx * x + fy * y * y + 0.11 * drift * frame + phase)
    noise = rng.standard_normal(clip.shape, np.float32)
    return np.clip(0.7 * clip + 0.3 * noise, -1, 1)


def stages(vision: Vision, source: VisionModel, pixels: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
    """(name, output) of every stage in order for pixels [T, 3, h, w]: the encoder by the library's own forward, 4 frames at a time."""

    def encode(frames: torch.Tensor) -> torch.Tensor:
        return torch.cat([source.reference_encoder(frames[at : at + 4]) for at in range(0, len(frames), 4)])

    def project(tokens: torch.Tensor) -> torch.Tensor:
        return torch.cat([source.projector(frame[None]) for frame in tokens]) if tokens.dim() == 3 else source.projector(tokens)

    with torch.inference_mode():
        parts = vision.parts(prepare=lambda frames: frames, encode=encode, project=project)
        for name, output in run_parts(parts, torch.from_numpy(pixels)):
            yield name, output.numpy()


def vision_rounding(source: VisionModel, pixels: np.ndarray) -> float:
    """What float32 alone does to the features of a few of `pixels` [T, 3, h, w], relative to the largest: torch against float64.

    The worst of the library's encoder and the one that is exported, each against itself, and of the projector behind them.
    """
    frames = torch.from_numpy(pixels[: -(-_ROUNDING_PATCHES // (source.grid[0] * source.grid[1]))])
    errors = []
    for encoder in (source.reference_encoder, source.encoder):
        with torch.inference_mode():
            features = encoder(frames)
            rounded = [features, source.projector(features)]
        with in_float64(encoder), in_float64(source.projector):
            features = encoder(frames.double())
            exact = [features, source.projector(features)]
        errors += [_error(*pair) for pair in zip(rounded, exact, strict=True)]
    return max(errors)


def llm(causal_lm: nn.Module, ids: PromptIds, visual_tokens: np.ndarray) -> LLMReference:
    """transformers' own prefill logits and greedy ids for a prompt around visual tokens [n, D].

    The ids are those of its float32; logits and margins come from one forward in float64 over the prompt and these ids, and the
    rounding is what its float32 logits differ from that by, the worst of all ids.
    """
    embed = causal_lm.get_input_embeddings()

    def embedded(part: list[int]) -> torch.Tensor:
        return embed(torch.tensor(part, dtype=torch.long))

    with torch.inference_mode():
        prompt = torch.cat([embedded(ids.before), torch.from_numpy(visual_tokens), embedded(ids.after)])[None]  # [1, S, D]
        output = causal_lm(inputs_embeds=prompt, use_cache=True, logits_to_keep=1)
        rounded = [output.logits[0, -1]]
        greedy = [int(rounded[-1].argmax())]
        while len(greedy) < GREEDY:
            output = causal_lm(torch.tensor([greedy[-1:]]), past_key_values=output.past_key_values, use_cache=True)
            rounded.append(output.logits[0, -1])
            greedy.append(int(rounded[-1].argmax()))
        forced = torch.cat([prompt, embedded(greedy[:-1])[None]], dim=1)
    with in_float64(causal_lm):
        exact = causal_lm(inputs_embeds=forced.double(), use_cache=False, logits_to_keep=GREEDY).logits[0]  # [GREEDY, V]
    margins = [_margin(logits, token) for logits, token in zip(exact, greedy, strict=True)]
    rounding = max(_error(*pair) for pair in zip(rounded, exact, strict=True))
    return LLMReference(ids, visual_tokens, exact[0].float().numpy(), greedy, margins, rounding)


def _margin(logits: torch.Tensor, token: int) -> float:
    """How far the logit of `token` is above the best other one; 0 where another is above it."""
    other = torch.cat([logits[:token], logits[token + 1 :]]).max()
    return max(0.0, float(logits[token] - other))


def _error(rounded: torch.Tensor, exact: torch.Tensor) -> float:
    return float((rounded - exact).abs().max() / exact.abs().max())


@contextmanager
def in_float64(module: nn.Module) -> Iterator[None]:
    """Let every submodule that owns parameters compute in float64; afterwards they are as before. Inputs must be float64.

    There is no float64 copy of the module: parameters are widened where they are used, one submodule at a time, which takes twice
    the memory of the largest. Gradients are off. A library's own float32 islands (the RMSNorm of transformers computes in float32
    whatever its input is) stay; for Qwen2 they are 1e-7 of the logits.
    """
    kept: dict[nn.Module, dict[str, torch.Tensor]] = {}

    def widen(owner: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        kept[owner] = {name: parameter.data for name, parameter in owner.named_parameters(recurse=False)}
        for parameter in owner.parameters(recurse=False):
            parameter.data = parameter.data.double()
        return tuple(map(_double, args)), {name: _double(value) for name, value in kwargs.items()}

    def restore(owner: nn.Module, *_: Any) -> None:
        for name, data in kept.pop(owner).items():
            owner.get_parameter(name).data = data

    owners = [part for part in module.modules() if any(True for _ in part.parameters(recurse=False))]
    handles = [owner.register_forward_pre_hook(widen, with_kwargs=True) for owner in owners]
    handles += [owner.register_forward_hook(restore, always_call=True) for owner in owners]
    try:
        with torch.no_grad():
            yield
    finally:
        for handle in handles:
            handle.remove()


def _double(value: Any) -> Any:
    return value.double() if isinstance(value, torch.Tensor) and value.is_floating_point() else value


def save_vision(directory: Path, expected: VisionReference, input_name: str) -> dict[str, int]:
    """Write inputs.json, torch.json and stages.json; return {stage: k}, every k-th value of its flattened output was kept."""
    from polygraphy.json import save_json
    from polygraphy.logger import G_LOGGER

    directory.mkdir(parents=True, exist_ok=True)
    every = {name: -(-array.size // _STAGE_VALUES) for name, array in expected.outputs.items()}
    thinned = {name: array.reshape(-1)[:: every[name]].copy() for name, array in expected.outputs.items()}
    with G_LOGGER.verbosity(G_LOGGER.WARNING):  # it reports every file on stdout
        save_json([{input_name: expected.inputs}], str(directory / "inputs.json"))
        _results({VISUAL_TOKENS: expected.outputs[VISUAL_TOKENS]}).save(str(directory / "torch.json"))
        _results(thinned).save(str(directory / "stages.json"))
    return every


def save_llm(directory: Path, expected: LLMReference) -> None:
    """Write llm.json (prompt ids, greedy ids, margins, rounding), llm_logits.npy [V] and llm_visual_tokens.npy [n, D]."""
    directory.mkdir(parents=True, exist_ok=True)
    values = {
        "before": expected.ids.before,
        "after": expected.ids.after,
        "greedy": expected.greedy,
        "margins": expected.margins,
        "rounding": expected.rounding,
    }
    (directory / "llm.json").write_text(json.dumps(values))
    np.save(directory / "llm_logits.npy", expected.logits)
    np.save(directory / "llm_visual_tokens.npy", expected.visual_tokens)


def _results(arrays: dict[str, np.ndarray]) -> RunResults:
    from polygraphy.comparator import IterationResult, RunResults

    return RunResults([("torch", [IterationResult(outputs=arrays, runtime=0.0, runner_name="torch")])])
