"""Does an engine compute what torch computed? A table, stage by stage, judged through Polygraphy's comparator.

In: a bundle's `reference/` (input, torch's stages and tokens, transformers' logits and greedy ids) and the backends to hold
against it. Out: one row a stage and backend. `visual_tokens` and the LLM's rows come from the engines that answer questions;
the stages before come from the same graph with those tensors as outputs, on ONNX Runtime, the only backend that can show them.
Of a split bundle every backend also shows the features that its encoder hands to its compressor.

A float16 bundle is also computed with arithmetic that rounds where the graph says float16, which ONNX Runtime's CPU provider
does not do (runtime/tools/float16.py): the rows "… (float16)".

error = max |got - expected| / max |expected|, see runtime/tools/compare.py, where the tolerances are too.

T frames, h, w pixels, N visual tokens, D hidden, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np

from runtime.bundle import DECODER, VISION, VISION_LOOP, Bundle
from runtime.core.errors import BundleError, NonFiniteError, UserError
from runtime.core.progress import log, step
from runtime.engine import BACKENDS, EngineOptions, backend_class
from runtime.engine.place import place
from runtime.llm.decoder import LocalDecoder
from runtime.prompt import Prompt
from runtime.tools import reference
from runtime.tools.compare import ABSENT_ROWS, Difference, compare, tolerance
from runtime.tools.reference import LLMReference
from runtime.tools.stages import VISUAL_TOKENS, Stages, is_compression, run_stages
from runtime.tools.table import table
from runtime.vision.engine import open_vision

PREFILL, GREEDY = "llm/prefill", "llm/greedy_ids"
NOT_FINITE = "values that are not finite"
BATCHED = f"{VISUAL_TOKENS} (batched)"  # of vision.onnx, where the engine that answers goes frame by frame through other graphs
FEATURES = "features (split)"  # what the encoder of a split bundle hands to its compressor


@dataclass(frozen=True)
class Row:
    """One stage on one backend; true where it is within tolerance.

    max_abs is in the stage's own unit, `error` relative to its largest value; both are inf for a wrong shape or values that
    are not finite. For the greedy ids `error` is the share of ids that differ by more than a tie.
    """

    stage: str
    backend: str
    shape: tuple[int, ...]
    max_abs: float
    error: float
    tolerance: float
    ok: bool
    note: str = ""

    def __bool__(self) -> bool:
        return self.ok

    def as_dict(self) -> dict[str, Any]:
        values = asdict(self) | {"shape": list(self.shape)}
        return {key: None if isinstance(value, float) and not math.isfinite(value) else value for key, value in values.items()}


@dataclass(frozen=True)
class ParityReport:
    """rows in the order of the data's way, backend by backend; not_run: {backend: why it can't run here}."""

    bundle: str
    precision: str
    rows: tuple[Row, ...]
    not_run: dict[str, str] = field(default_factory=dict)

    @property
    def ok(self) -> bool:
        """Whether something was compared and all of it was within tolerance."""
        return bool(self.rows) and all(self.rows)

    def as_dict(self) -> dict[str, Any]:
        return {
            "bundle": self.bundle,
            "precision": self.precision,
            "ok": self.ok,
            "rows": [row.as_dict() for row in self.rows],
            "not_run": self.not_run,
        }


def parity(bundle: Bundle, backends: Sequence[str] = (), options: EngineOptions = EngineOptions()) -> ParityReport:
    """Compare every stage of `bundle` on each of `backends`; () for all that there are, those that can't run being listed.

    A backend that was named and can't run is an EngineError.
    """
    rows: list[Row] = []
    not_run: dict[str, str] = {}
    for backend in dict.fromkeys(backends or BACKENDS):
        kind = backend_class(backend)
        # Who checks all backends on one device means those that have it; TensorRT has only the GPU.
        if backend.startswith("tensorrt"):
            placed = replace(options, device="cuda")
        else:
            placement = place(bundle, backend, options)
            if placement.note:
                log(placement.note)
            placed = placement.options
        reason = None if backends else kind.unavailable(placed.device)
        if reason is None:
            try:
                rows += _compare_backend(bundle, backend, placed)
            except BundleError:
                raise
            except UserError as error:
                if backends:
                    raise
                reason = str(error)
        if reason is not None:
            not_run[backend] = reason
    return ParityReport(str(bundle.path), bundle.manifest.precision, tuple(rows), not_run)


def compare_llm(decoder: LocalDecoder, prompt: Prompt, expected: LLMReference, precision: str) -> list[Row]:
    """The decoder's prefill logits, and its greedy ids, each after transformers' own ids before it.

    An id may differ where transformers' best two were closer than the tolerance: that is a tie.
    """
    backend = decoder.engine.backend
    conversation = decoder.conversation()
    allowed = tolerance(precision, expected.rounding)
    slack = allowed * float(np.abs(expected.logits).max())
    rows: list[Row] = []
    wrong: list[str] = []
    ties = 0
    try:
        logits = conversation.extend(prompt.embed(expected.ids, expected.visual_tokens))
        rows.append(row_of(PREFILL, backend, logits, compare(logits, expected.logits, precision, rounding=expected.rounding)))
        for index, (token, margin) in enumerate(zip(expected.greedy, expected.margins, strict=True)):
            if index:
                logits = conversation.extend(prompt.embeddings[[expected.greedy[index - 1]]][None])
            chosen = int(logits.argmax())
            if chosen != token and margin > slack:
                wrong.append(f"id {index} is {chosen}, torch chose {token} by {margin:.3g}")
            ties += chosen != token and margin <= slack
    except NonFiniteError:
        infinite = float("inf")
        rows = rows or [Row(PREFILL, backend, expected.logits.shape, infinite, infinite, allowed, False, NOT_FINITE)]
        wrong.append(NOT_FINITE)
    count = len(expected.greedy)
    note = wrong[0] if wrong else f"{count - ties} of {count} equal" + (f", {ties} ties" if ties else "")
    share = len(wrong) / max(1, count)
    return [*rows, Row(GREEDY, backend, (count,), float(len(wrong)), share, 0.0, not wrong, note)]


def text(report: ParityReport) -> str:
    """The table for people."""
    rows = [
        [
            row.stage,
            row.backend,
            "×".join(map(str, row.shape)),
            f"{row.max_abs:.1e}",
            f"{row.error:.1e}",
            f"{row.tolerance:.0e}",
            "ok" if row.ok else "FAIL",
            row.note,
        ]
        for row in report.rows
    ]
    header = [
        "stage",
        "backend",
        "shape",
        "max abs",
        "error",
        "allowed",
        "",
        "note" if any(row.note for row in report.rows) else "",
    ]
    lines = [table(header, rows, right=(3, 4, 5))] if rows else []
    lines += [f"{backend} was not run: {reason}" for backend, reason in report.not_run.items()]
    failed = [f"{row.stage} on {row.backend}" for row in report.rows if not row]
    if not report.rows:
        verdict = "nothing was compared"
    elif failed:
        verdict = f"{len(failed)} of {len(report.rows)} stages differ from torch, the first is {failed[0]}"
    else:
        verdict = f"all {len(report.rows)} stages agree with torch ({report.precision})"
    return "\n".join([*lines, verdict])


def _compare_backend(bundle: Bundle, backend: str, options: EngineOptions) -> list[Row]:
    rows: list[Row] = []
    if f"{VISION}.onnx" in bundle.manifest.files:
        with step(f"comparing the vision half on {backend}"):
            rows += _compare_vision(bundle, backend, options)
    if f"{DECODER}.onnx" in bundle.manifest.files:
        with step(f"comparing the LLM half on {backend}"):
            decoder = LocalDecoder.open(bundle, backend, options)
            try:
                rows += compare_llm(decoder, Prompt(bundle), reference.llm(bundle), bundle.manifest.llm_precision)
            finally:
                decoder.engine.close()
        if backend == "onnx" and bundle.manifest.llm_precision == "fp16":
            from runtime.tools import float16_rows

            with step("computing the LLM half in float16"):
                rows += float16_rows.compare_llm_float16(bundle, reference.llm(bundle))
    return rows


def _compare_vision(bundle: Bundle, backend: str, options: EngineOptions) -> list[Row]:
    pixels = reference.clip(bundle)
    engine = open_vision(bundle, backend, options)
    answered = {}  # by the engines that answer questions
    try:
        feed = pixels.astype(engine.pixel_values.dtype, copy=False)
        features = engine.encode_clip(feed)
        if engine.encodes_frames:
            answered[FEATURES] = features
        answered[VISUAL_TOKENS] = engine.compress(features)[VISUAL_TOKENS]
    finally:
        engine.close()
    every = {stage["name"]: stage.get("every", 1) for stage in bundle.manifest.stages if stage["graph"] == VISION}
    # a built engine shows its output alone; which rows are a choice, ONNX's shapes still tell
    inner = run_stages(bundle, pixels, options) if backend == "onnx" else run_stages(bundle, pixels, EngineOptions(), [])
    got = dict(inner.tensors)
    batched = got.pop(VISUAL_TOKENS, None)
    if batched is not None and (bundle.is_split or f"{VISION_LOOP}.onnx" in bundle.manifest.files):
        got[BATCHED] = batched
    got |= answered
    first = next((at for at, name in enumerate(every) if is_compression(name)), 0)
    before = list(every)[first - 1] if FEATURES in got else None
    expected = reference.outputs(bundle, "stages", before) if len(got) > 1 else {}
    truth = reference.outputs(bundle, "torch", VISUAL_TOKENS)[VISUAL_TOKENS]  # of the tokens, every value is kept
    if before is not None:
        expected[FEATURES], every[FEATURES] = expected[before], every[before]
    expected = {name: expected.get(name, truth) for name in got} | {VISUAL_TOKENS: truth}
    every |= {VISUAL_TOKENS: 1, BATCHED: 1}
    rounding = max((float(stage.get("rounding", 0.0)) for stage in bundle.manifest.stages), default=0.0)
    rows = _judge(got, expected, every, inner, backend, bundle.manifest.precision, rounding)
    if backend == "onnx" and bundle.manifest.precision == "fp16":
        from runtime.tools import float16_rows

        with step("computing the vision half in float16"):
            last = list(inner.ranks)[next(at for at, name in enumerate(inner.ranks) if is_compression(name)) - 1]
            selected = VISUAL_TOKENS in inner.selected
            rows += float16_rows.compare_vision_float16(bundle.path, feed, inner.tensors[last], truth, selected)
    return rows


def _judge(
    got: Mapping[str, np.ndarray],
    expected: Mapping[str, np.ndarray],
    every: Mapping[str, int],
    stages: Stages,
    backend: str,
    precision: str,
    rounding: float,
) -> list[Row]:
    """Polygraphy's comparator over both runs, with the metric and the tolerances of this project as its compare function."""
    with reference.quiet_polygraphy():
        from polygraphy.comparator import Comparator, IterationResult, RunResults

        rows: dict[str, Row] = {}

        def judge(torch: IterationResult, engine: IterationResult) -> dict[str, Row]:
            rows.update({name: judge_stage(name, engine[name], torch[name]) for name in engine})
            return rows

        def judge_stage(name: str, array: np.ndarray, truth: np.ndarray) -> Row:
            array, truth = np.asarray(array), np.asarray(truth)
            selected = (VISUAL_TOKENS if name == BATCHED else name) in stages.selected
            if every[name] == 1 and truth.size == array.size and truth.ndim == 1:
                truth = truth.reshape(array.shape)  # stages.json keeps stages flat
            difference = compare(array, truth, precision, selected, every[name], rounding)
            return row_of(name, backend, array, difference, precision if selected else None)

        runs = RunResults(
            [
                ("torch", [IterationResult(outputs=dict(expected), runner_name="torch")]),
                (backend, [IterationResult(outputs=dict(got), runner_name=backend)]),
            ]
        )
        agreed = bool(Comparator.compare_accuracy(runs, compare_func=judge))
    assert agreed == all(rows.values()), "Polygraphy's verdict is the table's"
    return list(rows.values())


def row_of(stage: str, backend: str, got: np.ndarray, difference: Difference, selected: str | None = None) -> Row:
    """selected: the precision, where the rows of `got` are a choice."""
    note = ""
    if not np.isfinite(got).all():
        note = NOT_FINITE
    elif math.isinf(difference.error):
        note = "not the shape of torch's output"
    elif selected:
        note = f"{difference.absent:.1%} other rows, {ABSENT_ROWS[selected]:.1%} allowed"
    return Row(stage, backend, got.shape, difference.max_abs, difference.error, difference.allowed, difference.ok, note)
