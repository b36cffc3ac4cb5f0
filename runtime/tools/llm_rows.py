"""The LLM's rows of the parity table: logits after the reference prompt, and the greedy ids that follow."""

from __future__ import annotations

import numpy as np

from runtime.core.errors import NonFiniteError
from runtime.llm.decoder import LocalDecoder
from runtime.prompt import Prompt
from runtime.tools.compare import NOT_FINITE, Row, not_finite, row_of, tolerance
from runtime.tools.reference import LLMReference

PREFILL, GREEDY = "llm/prefill", "llm/greedy_ids"


def compare_llm(decoder: LocalDecoder, prompt: Prompt, expected: LLMReference, precision: str) -> list[Row]:
    """The decoder's prefill logits, and its greedy ids, each after transformers' ids before it.

    An id may differ where transformers' best two were closer than the tolerance: that is a tie.
    """
    backend = decoder.engine.backend
    conversation = decoder.conversation()
    slack = tolerance(precision, expected.rounding) * float(np.abs(expected.logits).max())
    rows: list[Row] = []
    wrong: list[str] = []
    ties = 0
    try:
        logits = conversation.extend(prompt.embed(expected.ids, expected.visual_tokens))
        rows.append(row_of(PREFILL, backend, logits, expected.logits, precision, rounding=expected.rounding))
        for index, (token, margin) in enumerate(zip(expected.greedy, expected.margins, strict=True)):
            if index:
                logits = conversation.extend(prompt.embeddings[[expected.greedy[index - 1]]][None])
            chosen = int(logits.argmax())
            if chosen != token and margin > slack:
                wrong.append(f"id {index} is {chosen}, torch chose {token} by {margin:.3g}")
            ties += chosen != token and margin <= slack
    except NonFiniteError:
        rows = rows or [not_finite(PREFILL, backend, expected.logits.shape, precision, expected.rounding)]
        wrong.append(NOT_FINITE)
    count = len(expected.greedy)
    note = wrong[0] if wrong else f"{count - ties} of {count} equal" + (f", {ties} ties" if ties else "")
    share = len(wrong) / max(1, count)
    return [*rows, Row(GREEDY, backend, (count,), float(len(wrong)), share, 0.0, not wrong, note)]
