"""torch against ONNX Runtime, stage by stage, before anything is called exported.

Encoder and projector are compared with the libraries' own modules, each compression stage with torch's on the graph's own
patches, the LLM by its prefill logits and by greedy ids under teacher forcing. The first stage that differs is named.

ONNX Runtime's CPU provider computes float16 graphs in float32, so those are computed once more with arithmetic that rounds
where the graph says float16 (`runtime.tools.float16`). Where a checkpoint is sensitive to rounding, the torch reference's own
float32 error, measured against float64, widens the tolerance.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch

from export.reference import VisionReference
from export.stages import ENCODER, INPUT, PROJECTOR, Vision
from runtime.bundle import Bundle
from runtime.core.errors import ExportError
from runtime.engine import EngineOptions
from runtime.engine.onnx import OnnxEngine
from runtime.llm.decoder import LocalDecoder
from runtime.llm.slots import SlotDecoder
from runtime.prompt import Prompt
from runtime.tools.compare import Row, compare
from runtime.tools.llm_rows import compare_llm
from runtime.tools.reference import LLMReference
from runtime.tools.stages import VISUAL_TOKENS
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
    engine: OnnxEngine, vision: Vision, expected: VisionReference, precision: str
) -> tuple[list[StageResult], np.ndarray]:
    """Compare a vision graph whose stages are outputs (`<stage>/output`) with torch; return the table and the graph's tokens.

    vision: the float32 module that the graph was traced from; the rounding of the reference counts for encoder and projector.
    ExportError names the first stage that differs.
    """
    (spec,) = engine.inputs
    got = engine.run({spec.name: expected.inputs.astype(spec.dtype)})
    tokens: np.ndarray = np.empty(0)
    results = []
    for part in vision.parts():
        if part.framewise:
            torch_made = [expected.outputs[name] for name in part.names]
        else:  # torch on what the graph made before: a stage is judged by its rule, not by the rounding before it
            with torch.inference_mode():
                torch_made = [output.numpy() for output in part.run(torch.from_numpy(tokens.astype(np.float32)))]
        for name, values in zip(part.names, torch_made, strict=True):
            tokens = got[name if name == VISUAL_TOKENS else f"{name}/output"]
            rounding = expected.rounding if name in (INPUT, ENCODER, PROJECTOR) else 0.0
            results.append(_judge(name, tokens, values, precision, name in vision.selected, rounding))
        if part.flatten:
            tokens = tokens.reshape(-1, tokens.shape[-1])
    return results, tokens


def verify_frame_by_frame(
    engine: VisionEngine, vision: Vision, tokens: np.ndarray, expected: VisionReference, precision: str
) -> StageResult:
    """What runs frame by frame, in a Loop or split, against the tokens of the graph that was compared stage by stage."""
    features = engine.encode_clip(expected.inputs.astype(engine.pixel_values.dtype))
    got = engine.compress(features)[VISUAL_TOKENS]
    name = "visual_tokens (split)" if engine.encodes_frames else "visual_tokens (loop)"
    return _judge(name, got, tokens, precision, bool(vision.selected), expected.rounding)


def verify_float16(rows: Sequence[Row], option: str) -> list[StageResult]:
    """The rows of runtime.tools.float16_rows; ExportError where float16 arithmetic loses more than is allowed. option: what to change."""
    return _accepted(rows, "differs between torch and float16 arithmetic", f"this checkpoint needs {option}; ")


def verify_llm(bundle: Bundle, expected: LLMReference) -> list[StageResult]:
    """Prefill logits and greedy ids of the bundle's decoder against transformers'."""
    decoder = LocalDecoder.open(bundle, "onnx", EngineOptions("cpu"))
    rows = compare_llm(decoder, Prompt(bundle), expected, bundle.manifest.llm_precision)
    return _accepted(rows, "differs between transformers and ONNX Runtime")


def verify_batch(bundle: Bundle, rounding: float) -> StageResult:
    """Logits of three conversations of different lengths decoded as one batch, against each of them alone.

    rounding: of the LLM's reference, as in runtime.tools.reference.
    """
    rng = np.random.default_rng(0)
    embeddings = Prompt(bundle).embeddings
    scale = float(np.std(embeddings[range(min(512, len(embeddings)))]))
    lengths = [min(length, bundle.max_context - 1) for length in (5, 17, 9)]
    prompts = [rng.normal(0, scale, (length + 1, bundle.manifest.hidden_size)).astype(np.float32) for length in lengths]
    together = SlotDecoder.open(bundle, len(prompts), "onnx", EngineOptions("cpu"))
    for slot, prompt in enumerate(prompts):
        together.extend(slot, prompt[:-1])
    got = together.step(range(len(prompts)), np.stack([prompt[-1] for prompt in prompts]))
    together.close()
    alone = LocalDecoder.open(bundle, "onnx", EngineOptions("cpu"))
    expected = np.stack([alone.conversation().extend(prompt[None]) for prompt in prompts])
    return _judge("llm/batch", got, expected, bundle.manifest.llm_precision, rounding=rounding)


def _judge(
    name: str, got: np.ndarray, expected: np.ndarray, precision: str, selected: bool = False, rounding: float = 0.0
) -> StageResult:
    difference = compare(got, expected, precision, selected, rounding=rounding)
    if not difference.ok:
        raise _differs(
            f"{name} differs between torch and ONNX Runtime", difference.error, f"{difference.allowed:.0e} in {precision}"
        )
    return StageResult(name, difference.error, True)


def _accepted(rows: Sequence[Row], differs: str, remedy: str = "") -> list[StageResult]:
    """The results of rows that are all within tolerance; ExportError for the first that is not."""
    for row in rows:
        if not row:
            note = f"; {row.note}" if row.note else ""
            raise _differs(f"{row.stage} {differs}", row.error, f"{row.tolerance:.0e}{note}", remedy)
    return [StageResult(row.stage, row.error, row.ok) for row in rows]


def _differs(what: str, error: float, allowed: str, remedy: str = "stages before it agree, ") -> ExportError:
    return ExportError(f"{what}: relative error {error:.2e}, allowed {allowed}; {remedy}nothing was written")
