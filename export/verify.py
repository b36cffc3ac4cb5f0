"""torch against ONNX Runtime, stage by stage, before anything is called exported.

Encoder and projector are compared with the libraries' own modules; each compression stage with its torch module on the
very input that the graph gave it, so that a selection is judged by its rule and not by the rounding before it; the LLM by
its prefill logits and by greedy ids under teacher forcing. The first stage that differs is named.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch

from export.reference import LLMReference
from export.trace import Vision
from runtime.bundle import Bundle
from runtime.engine.onnx import OnnxEngine
from runtime.errors import ExportError
from runtime.llm.decoder import LocalDecoder
from runtime.prompt import Prompt
from runtime.tools.compare import TOLERANCE, compare


@dataclass(frozen=True)
class StageResult:
    """One row of the table: error as in runtime.tools.compare."""

    stage: str
    error: float
    ok: bool

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def verify_vision(
    engine: OnnxEngine, vision: Vision, reference: Mapping[str, np.ndarray], pixels: np.ndarray, precision: str
) -> tuple[list[StageResult], np.ndarray]:
    """Compare a vision graph whose stages are outputs (`<stage>/output`) with torch; return the table and the graph's tokens.

    vision: the float32 module that the graph was traced from. reference: `export.reference.stages` by name.
    ExportError names the first stage that differs.
    """
    (spec,) = engine.inputs
    got = engine.run({spec.name: pixels.astype(spec.dtype)})
    modules = {f"compress/{name}": stage for name, stage in vision.compress.stages}
    if vision.place == "before-projector":
        modules["vision/projector"] = vision.projector
    results, before = [], np.empty(0)
    for name in vision.stage_names():
        output = got[f"{name}/output"]
        expected = _on_graphs_input(modules[name], before) if name in modules else reference[name]
        results.append(_judge(name, output, expected, precision))
        before = output.reshape(len(output), *vision.grid, -1) if output.ndim == 3 else output  # patches [T, H*W, .] to a grid
    tokens = np.concatenate([before.reshape(-1, before.shape[-1]), reference["visual_tokens"][-1:]])
    results.append(_judge("visual_tokens", got["visual_tokens"], tokens, precision))
    return results, got["visual_tokens"]


def verify_batched(engine: OnnxEngine, vision: Vision, tokens: np.ndarray, pixels: np.ndarray, precision: str) -> StageResult:
    """The graph that takes all frames at once against the tokens of the one that was compared stage by stage."""
    (spec,) = engine.inputs
    got = engine.run({spec.name: pixels.astype(spec.dtype)})["visual_tokens"]
    selected = any(stage.select for _, stage in vision.compress.stages)
    return _judge("visual_tokens (batched)", got, tokens, precision, selected)


def verify_llm(bundle: Bundle, expected: LLMReference, visual_tokens: np.ndarray, precision: str) -> list[StageResult]:
    """Prefill logits and greedy ids (each after torch's own ids before it) of the bundle's decoder against transformers'."""
    decoder, prompt = LocalDecoder.open(bundle, "onnx"), Prompt(bundle)
    conversation = decoder.conversation()
    logits = conversation.extend(prompt.embed(expected.ids, visual_tokens))
    results = [_judge("llm/prefill", logits, expected.logits, precision)]
    slack = TOLERANCE[precision] * float(np.abs(expected.logits).max())  # closer calls than this are ties
    for index, (token, margin) in enumerate(zip(expected.greedy, expected.margins, strict=True)):
        if int(logits.argmax()) != token and margin > slack:
            raise ExportError(
                f"greedy id {index} differs: torch chose {token} by {margin:.3g}, ONNX Runtime {int(logits.argmax())}; "
                "the prompt's logits agree, so the cache update is wrong; nothing was written"
            )
        logits = conversation.extend(prompt.embeddings[[token]][None])
    return [*results, StageResult("llm/greedy_ids", 0.0, True)]


def _judge(name: str, got: np.ndarray, expected: np.ndarray, precision: str, selected: bool = False) -> StageResult:
    difference = compare(got, expected, precision, selected)
    if not difference.ok:
        raise ExportError(
            f"{name} differs between torch and ONNX Runtime: relative error {difference.error:.2e}, allowed {TOLERANCE[precision]:.0e} "
            f"in {precision}; stages before it agree, nothing was written"
        )
    return StageResult(name, difference.error, True)


def _on_graphs_input(module: torch.nn.Module, given: np.ndarray) -> np.ndarray:
    with torch.inference_mode():
        return module(torch.from_numpy(given.astype(np.float32))).numpy()
