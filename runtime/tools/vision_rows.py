"""The vision encoder's rows of the parity table.

`visual_tokens` come from the engine that answers questions. The stages before come from the same graph with those tensors as outputs,
on ONNX Runtime, the only backend that can show them. For a split bundle each backend also shows the features that its encoder
passes to its compressor.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from runtime.bundle import VISION, VISION_LOOP, Bundle
from runtime.core.progress import step
from runtime.engine import EngineOptions
from runtime.tools import reference
from runtime.tools.compare import Row, row_of
from runtime.tools.stages import VISUAL_TOKENS, Stages, first_compression, run_stages
from runtime.vision.engine import open_vision

BATCHED = f"{VISUAL_TOKENS} (batched)"  # of vision.onnx, where the engine that answers runs frame by frame through other graphs
FEATURES = "features (split)"  # what the encoder of a split bundle passes to its compressor


def compare_vision(bundle: Bundle, backend: str, options: EngineOptions) -> list[Row]:
    """Every stage of the vision graph, those of compression included, on the reference clip."""
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
    strides = {stage.name: stage.every for stage in bundle.manifest.stages if stage.graph == VISION}
    # a built engine shows its output alone; which rows are a choice, ONNX's shapes still tell
    inner = run_stages(bundle, pixels, options) if backend == "onnx" else run_stages(bundle, pixels, EngineOptions(), [])
    got = dict(inner.tensors)
    batched = got.pop(VISUAL_TOKENS, None)
    if batched is not None and (bundle.is_split or bundle.has(VISION_LOOP)):
        got[BATCHED] = batched
    got |= answered
    first = first_compression(list(strides))
    before = list(strides)[first - 1] if FEATURES in got else None
    expected = reference.outputs(bundle, "stages", before) if len(got) > 1 else {}
    truth = reference.outputs(bundle, "torch", VISUAL_TOKENS)[VISUAL_TOKENS]  # all values of the tokens are kept
    if before is not None:
        expected[FEATURES], strides[FEATURES] = expected[before], strides[before]
    expected = {name: expected.get(name, truth) for name in got} | {VISUAL_TOKENS: truth}
    strides |= {VISUAL_TOKENS: 1, BATCHED: 1}
    rounding = max((stage.rounding for stage in bundle.manifest.stages), default=0.0)
    rows = _judge(got, expected, strides, inner, backend, bundle.manifest.precision, rounding)
    if backend == "onnx" and bundle.manifest.precision == "fp16":
        from runtime.tools import float16_rows

        with step("computing the vision encoder in float16"):
            names = list(inner.ranks)
            last = inner.tensors[names[first_compression(names) - 1]]
            rows += float16_rows.compare_vision_float16(bundle.path, feed, last, truth, VISUAL_TOKENS in inner.selected)
    return rows


def _judge(
    got: Mapping[str, np.ndarray],
    expected: Mapping[str, np.ndarray],
    strides: Mapping[str, int],
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
            rows.update({name: judge_stage(name, np.asarray(engine[name]), np.asarray(torch[name])) for name in engine})
            return rows

        def judge_stage(name: str, array: np.ndarray, truth: np.ndarray) -> Row:
            selected = (VISUAL_TOKENS if name == BATCHED else name) in stages.selected
            if strides[name] == 1 and truth.size == array.size and truth.ndim == 1:
                truth = truth.reshape(array.shape)  # stages.json keeps stages flat
            how = {"selected": selected, "stride": strides[name], "rounding": rounding}
            return row_of(name, backend, array, truth, precision, **how)

        both = {"torch": expected, backend: got}
        runs = RunResults([(name, [IterationResult(outputs=dict(of), runner_name=name)]) for name, of in both.items()])
        agreed = bool(Comparator.compare_accuracy(runs, compare_func=judge))
    assert agreed == all(rows.values()), "Polygraphy's verdict is the table's"
    return list(rows.values())
