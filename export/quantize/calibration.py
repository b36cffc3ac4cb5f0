"""Prompts about calibration clips, for the LLM.

S prompt positions, N visual tokens, D hidden.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from export.quantize.clips import QUESTIONS, Clips
from runtime.bundle import Bundle
from runtime.engine import EngineOptions
from runtime.prompt import Prompt
from runtime.vision.encoder import VisionEncoder

_CLIPS, _QUESTIONS = 4, 2  # of each clip


def calibration_prompts(bundle: Bundle, clips: Clips, visual_tokens: np.ndarray | None = None) -> Iterator[np.ndarray]:
    """Embeddings [1, S, D] of questions about clips, as the bundle's vision encoder sees them.

    visual_tokens: [N, D] to use instead of all clips, where the bundle has no vision encoder.
    """
    prompt = Prompt(bundle)
    if visual_tokens is not None:
        yield from (prompt.embed(prompt.ids(question), visual_tokens) for question in QUESTIONS)
        return
    vision = VisionEncoder.open(bundle, "onnx", EngineOptions("cpu"))
    for pixels, questions in clips.clips(_CLIPS, bundle.manifest.frames):
        tokens = vision.tokens(pixels)
        yield from (prompt.embed(prompt.ids(question), tokens) for question in questions[:_QUESTIONS])
    vision.engine.close()
