"""torch against ONNX Runtime, stage by stage, before anything is called exported.

Encoder and projector are compared with the libraries' own modules, each compression stage with torch's on the graph's own
patches, the LLM by its prefill logits and by greedy ids under teacher forcing. The first stage that differs is named.

ONNX Runtime's CPU provider computes float16 graphs in float32, so those are computed once more with arithmetic that rounds
where the graph says float16 (`runtime.tools.float16`). Where a checkpoint is sensitive to rounding, the torch reference's own
float32 error, measured against float64, widens the tolerance.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch

from export.trace import Vision
from runtime.bundle import Bundle
from runtime.core.errors import ExportError
from runtime.engine import EngineOptions
from runtime.engine.onnx import OnnxEngine
from runtime.llm.decoder import LocalDecoder
from runtime.llm.slots import SlotDecoder
from runtime.prompt import Prompt
from runtime.tools.compare import compare
from runtime.tools.parity import Row, compare_llm
from runtime.tools.reference import LLMReference
from runtime.vision.engine import VisionEngine


@dataclass(frozen=True)
class StageResult:
    """One row of the table: error as in runtime.tools.compare."""

    stage: str
    error: float
    ok: bool

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def verify_vision(
    engine: OnnxEngine, vision: Vision, reference: Mapping[str, np.ndarray], pixels: np.ndarray, precision: str, rounding: float
) -> tuple[list[StageResult], np.ndarray]:
    """Compare a vision graph whose stages are outputs (`<stage>/output`) with torch; return the table and the graph's tokens.

    vision: the float32 module that the graph was traced from; pixels: what the graph takes, frames too. reference: `export.reference.stages` by name;
    rounding: `export.reference.vision_rounding`, which counts for encoder and projector.
    ExportError names the first stage that differs.
    """
    (spec,) = engine.inputs
    got = engine.run({spec.name: pixels.astype(spec.dtype)})
    results = []

    def judge(name: str, expected: np.ndarray, selected: bool = False) -> np.ndarray:
        by = 0.0 if selected or name.startswith("compress/") else rounding
        results.append(_judge(name, got[f"{name}/output"], expected, precision, selected, by))
        return got[f"{name}/output"]

    if vision.input is not None:
        judge("vision/input", reference["vision/input"])
    tokens = judge("vision/encoder", reference["vision/encoder"])
    if vision.place == "after-projector":
        tokens = judge("vision/projector", reference["vision/projector"])
    selected = False
    with torch.inference_mode():
        # what torch makes of the graph's own patches, so that a stage is judged by its rule and not by the rounding before it
        patches = torch.from_numpy(tokens.astype(np.float32)).unflatten(1, vision.grid)
        for name, expected in vision.compress.outputs(patches):
            selected |= getattr(vision.compress, name).select
            tokens = judge(f"compress/{name}", expected.numpy(), selected)
        tokens = tokens.reshape(-1, tokens.shape[-1])
        if vision.place == "before-projector":
            tokens = judge("vision/projector", vision.projector(torch.from_numpy(tokens.astype(np.float32))).numpy())
    tokens = np.concatenate([tokens, reference["visual_tokens"][-1:]])
    results.append(_judge("visual_tokens", got["visual_tokens"], tokens, precision))
    return results, got["visual_tokens"]


def verify_frame_by_frame(
    engine: VisionEngine, vision: Vision, tokens: np.ndarray, pixels: np.ndarray, precision: str, rounding: float
) -> StageResult:
    """What runs frame by frame, in a Loop or split, against the tokens of the graph that was compared stage by stage."""
    features = engine.encode_clip(pixels.astype(engine.pixel_values.dtype))
    got = engine.compress(features)["visual_tokens"]
    selected = any(stage.select for _, stage in vision.compress.stages)
    name = "visual_tokens (split)" if engine.encodes_frames else "visual_tokens (loop)"
    return _judge(name, got, tokens, precision, selected, rounding)


def verify_float16(rows: Sequence[Row], option: str) -> list[StageResult]:
    """The rows of runtime.tools.float16_rows; ExportError where float16 arithmetic loses more than is allowed. option: what to change."""
    for row in rows:
        if not row:
            raise ExportError(
                f"{row.stage}: with arithmetic in float16 the relative error is {row.error:.2e}, allowed {row.tolerance:.0e}"
                f"{'; ' + row.note if row.note else ''}; this checkpoint needs {option}; nothing was written"
            )
    return [StageResult(row.stage, row.error, row.ok) for row in rows]


def verify_llm(bundle: Bundle, expected: LLMReference) -> list[StageResult]:
    """Prefill logits and greedy ids of the bundle's decoder against transformers'."""
    rows = compare_llm(
        LocalDecoder.open(bundle, "onnx", EngineOptions("cpu")), Prompt(bundle), expected, bundle.manifest.llm_precision
    )
    for row in rows:
        if not row:
            raise ExportError(
                f"{row.stage} differs between transformers and ONNX Runtime: relative error {row.error:.2e}, allowed {row.tolerance:.0e}"
                f"{'; ' + row.note if row.note else ''}; nothing was written"
            )
    return [StageResult(row.stage, row.error, row.ok) for row in rows]


def verify_batch(bundle: Bundle, rounding: float) -> StageResult:
    """Logits of three conversations of different lengths decoded as one batch, against each of them alone.

    rounding: of the LLM's reference, as in runtime.tools.reference.
    """
    rng, precision = np.random.default_rng(0), bundle.manifest.llm_precision
    embeddings = Prompt(bundle).embeddings
    scale = float(np.std(embeddings[range(min(512, len(embeddings)))]))
    lengths = [min(length, bundle.manifest.limits["max_context"] - 1) for length in (5, 17, 9)]
    prompts = [rng.normal(0, scale, (length + 1, bundle.manifest.hidden_size)).astype(np.float32) for length in lengths]
    together = SlotDecoder.open(bundle, len(prompts), "onnx", EngineOptions("cpu"))
    for slot, prompt in enumerate(prompts):
        together.extend(slot, prompt[:-1])
    got = together.step(range(len(prompts)), np.stack([prompt[-1] for prompt in prompts]))
    together.close()
    alone = LocalDecoder.open(bundle, "onnx", EngineOptions("cpu"))
    expected = np.stack([alone.conversation().extend(prompt[None]) for prompt in prompts])
    return _judge("llm/batch", got, expected, precision, rounding=rounding)


def _judge(
    name: str, got: np.ndarray, expected: np.ndarray, precision: str, selected: bool = False, rounding: float = 0.0
) -> StageResult:
    difference = compare(got, expected, precision, selected, rounding=rounding)
    if not difference.ok:
        raise ExportError(
            f"{name} differs between torch and ONNX Runtime: relative error {difference.error:.2e}, allowed {difference.allowed:.0e} "
            f"in {precision}; stages before it agree, nothing was written"
        )
    return StageResult(name, difference.error, True)
