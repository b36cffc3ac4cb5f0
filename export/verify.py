"""torch against ONNX Runtime, stage by stage: an export that differs fails.

Encoder and projector are compared with the libraries' own modules, each compression stage with torch's on the graph's own
patches, the LLM by its prefill logits and by greedy ids under teacher forcing. The first stage that differs is named.

ONNX Runtime's CPU provider computes float16 graphs in float32, so those are computed once more with arithmetic that rounds
where the graph says float16 (`runtime.tools.float16`). Where a checkpoint is sensitive to rounding, the torch reference's own
float32 error, measured against float64, widens the tolerance.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from export.reference import VisionReference
from export.stages import ENCODER, INPUT, PROJECTOR, Vision, tensor_of
from runtime.bundle import Bundle
from runtime.core.errors import ExportError
from runtime.engine import EngineOptions
from runtime.engine.onnx import OnnxEngine
from runtime.llm.decoder import LocalDecoder
from runtime.llm.slots import SlotDecoder
from runtime.prompt import Prompt
from runtime.tools.compare import Row, row_of
from runtime.tools.llm_rows import compare_llm
from runtime.tools.reference import LLMReference
from runtime.tools.stages import VISUAL_TOKENS
from runtime.vision.engine import VisionEngine


def verify_vision(
    engine: OnnxEngine, vision: Vision, expected: VisionReference, precision: str, remedy: str = ""
) -> tuple[list[Row], np.ndarray]:
    """Compare a vision graph whose stages are outputs with torch; return the table and the graph's tokens.

    vision: the float32 module that the graph was traced from; the rounding of the reference counts for encoder and projector.
    ExportError names the first stage that differs, and the remedy.
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
            tokens = got[tensor_of(name)]
            rounding = expected.rounding if name in (INPUT, ENCODER, PROJECTOR) else 0.0
            results.append(_judge(name, tokens, values, precision, name in vision.selected, rounding, remedy))
        if part.flatten:
            tokens = tokens.reshape(-1, tokens.shape[-1])
    return results, tokens


def verify_frame_by_frame(
    engine: VisionEngine, vision: Vision, tokens: np.ndarray, expected: VisionReference, precision: str
) -> Row:
    """What runs frame by frame, in a Loop or split, against the tokens of the graph that was compared stage by stage."""
    features = engine.encode_clip(expected.inputs.astype(engine.pixel_values.dtype))
    got = engine.compress(features)[VISUAL_TOKENS]
    name = "visual_tokens (split)" if engine.encodes_frames else "visual_tokens (loop)"
    return _judge(name, got, tokens, precision, bool(vision.selected), expected.rounding)


def verify_float16(rows: Sequence[Row], option: str) -> list[Row]:
    """The rows of runtime.tools.float16_rows; ExportError where float16 arithmetic loses more than is allowed. option: what to change."""
    return _accepted(rows, "differs between torch and float16 arithmetic", f"this checkpoint needs {option}; ")


def verify_llm(bundle: Bundle, expected: LLMReference) -> list[Row]:
    """Prefill logits and greedy ids of the bundle's decoder against transformers'."""
    decoder = LocalDecoder.open(bundle, "onnx", EngineOptions("cpu"))
    rows = compare_llm(decoder, Prompt(bundle), expected, bundle.manifest.llm_precision)
    return _accepted(rows, "differs between transformers and ONNX Runtime")


def verify_batch(bundle: Bundle, rounding: float) -> Row:
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
    name: str,
    got: np.ndarray,
    expected: np.ndarray,
    precision: str,
    selected: bool = False,
    rounding: float = 0.0,
    remedy: str = "",
) -> Row:
    row = row_of(name, "onnx", got, expected, precision, selected=selected, rounding=rounding)
    return _accepted([row], "differs between torch and ONNX Runtime", f"stages before it agree in {precision}; {remedy}")[0]


def _accepted(rows: Sequence[Row], differs: str, more: str = "") -> list[Row]:
    """The rows, all within tolerance; ExportError for the first that is not, with `more` about it."""
    for row in rows:
        if not row:
            note = f"{row.note}; " if row.note else ""
            error = f"relative error {row.error:.2e}, allowed {row.tolerance:.0e}"
            raise ExportError(f"{row.stage} {differs}: {error}; {note}{more}nothing was written")
    return list(rows)
