"""Rows of the parity table for a float16 bundle, computed as a device with float16 arithmetic computes it.

The vision encoder runs on one frame, whatever T is, and the compression on the features of all frames, so the graph is covered in
little more than a frame's time; the LLM runs on the reference prompt and a few greedy ids, alone and in a batch. Cache rows that are
not filled hold large values, as a conversation that was given up leaves some: a graph that reads one of them too many differs.

T frames, H, W patch rows and columns, C features of a patch, N visual tokens, D hidden, S prompt positions.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from runtime.bundle import DECODER, DECODER_BATCH, VISION, VISION_LOOP, Bundle
from runtime.bundle.graph_file import read_graph
from runtime.bundle.graphs import SPLIT, file_of
from runtime.core.errors import NonFiniteError
from runtime.engine import TensorSpec
from runtime.engine.onnx import OnnxEngine, OnnxState
from runtime.llm.decoder import LocalDecoder
from runtime.llm.slots import SlotDecoder
from runtime.prompt import Prompt
from runtime.tools.compare import Row, not_finite, row_of
from runtime.tools.float16 import frame_and_clip, rounded
from runtime.tools.llm_rows import compare_llm
from runtime.tools.reference import LLMReference
from runtime.tools.stages import VISUAL_TOKENS

FRAME, BATCH = "vision/frame", "llm/batch"
_GREEDY = 4  # ids that are compared; each reads all weights once
_LONGER = 5  # positions of the other conversation of a batch beyond the prompt's
_UNFILLED = 1000.0  # in rows of the values that are not filled
_PRECISION = "fp16"


def compare_llm_float16(bundle: Bundle, expected: LLMReference) -> list[Row]:
    """Prefill logits and greedy ids of the decoder, and the logits of the decoder for a batch."""
    prompt = Prompt(bundle)
    short = replace(expected, greedy=expected.greedy[:_GREEDY], margins=expected.margins[:_GREEDY])
    decoder = LocalDecoder(bundle, _decoder_engine(bundle, DECODER))
    rows = compare_llm(decoder, prompt, short, _PRECISION)
    decoder.engine.close()
    if (bundle.path / file_of(DECODER_BATCH)).exists():
        rows.append(_compare_batch(bundle, prompt.embed(expected.ids, expected.visual_tokens)[0], expected))
    return [_named(row) for row in rows]


def compare_vision_float16(
    directory: Path, pixels: np.ndarray, features: np.ndarray, visual_tokens: np.ndarray, selected: bool
) -> list[Row]:
    """The features of one frame, and the tokens of features [T, H*W, C], of the vision graphs in `directory`.

    pixels: the graph's input; features: of the frame-wise part, exact to float16; visual_tokens [N, D]: torch's; selected: whether
    those are a choice.
    """
    rows = []
    *frame_part, clip_part = _parts(directory)
    if frame_part:  # a Loop takes the clip, and runs once
        (frame,) = _run(frame_part[0], directory, lambda spec: pixels[: spec.shape[0]]).values()
        frame, truth = (one.reshape(-1, one.shape[-1]) for one in (frame, features[:1]))
        rows.append(row_of(FRAME, OnnxEngine.backend, frame, truth, _PRECISION))
    outputs = _run(clip_part, directory, lambda spec: features.reshape(spec.shape) if frame_part else pixels)
    tokens = outputs[VISUAL_TOKENS]
    rows.append(row_of(VISUAL_TOKENS, OnnxEngine.backend, tokens, visual_tokens, _PRECISION, selected=selected))
    return [_named(row) for row in rows]


def _compare_batch(bundle: Bundle, prompt: np.ndarray, expected: LLMReference) -> Row:
    """The logits after `prompt` [S, D] in a batch beside a longer one, where the context has room for it."""
    decoder = SlotDecoder(bundle, _decoder_engine(bundle, DECODER_BATCH), 2)
    longer = np.concatenate([prompt, prompt])[: min(len(prompt) + _LONGER, decoder.max_context - 1)]
    try:
        decoder.extend(0, longer)
        decoder.extend(1, prompt[:-1])
        logits = decoder.step([0, 1], np.stack([prompt[0], prompt[-1]]))[1]
    except NonFiniteError:
        return not_finite(BATCH, OnnxEngine.backend, expected.logits.shape, _PRECISION)
    finally:
        decoder.close()
    return row_of(BATCH, OnnxEngine.backend, logits, expected.logits, _PRECISION, rounding=expected.rounding)


def _parts(directory: Path) -> list[onnx.ModelProto]:
    """The graph of one frame and the graph of a clip's features; the one over all frames where nothing goes frame by frame."""
    graphs = {name: directory / file_of(name) for name in (*SPLIT, VISION_LOOP, VISION)}
    if graphs[SPLIT[0]].exists():
        return [read_graph(graphs[name]) for name in SPLIT]
    parts = frame_and_clip(read_graph(graphs[VISION_LOOP])) if graphs[VISION_LOOP].exists() else None
    return list(parts or [read_graph(graphs[VISION])])


def _decoder_engine(bundle: Bundle, graph: str) -> Any:
    path = bundle.path / file_of(graph)
    return _engine(read_graph(path), path.parent, _UsedCaches)


class _UsedCaches(OnnxEngine):
    """An engine whose new caches are not empty."""

    def new_state(self, pairs: Mapping[str, str], batch: int = 1) -> OnnxState:
        state = super().new_state(pairs, batch)
        for name, cache in state.values.items():
            if name.endswith(".value"):  # with keys of zero, their scores are among the real ones
                cache.update_inplace(np.full_like(cache.numpy(), _UNFILLED))
        return state


def _run(model: onnx.ModelProto, data: Path, feed: Callable[[TensorSpec], np.ndarray]) -> Mapping[str, np.ndarray]:
    """The outputs of a graph of one input, in float16 arithmetic; data: the directory of its weights."""
    engine = _engine(model, data)
    (spec,) = engine.inputs
    try:
        return engine.run({spec.name: feed(spec).astype(spec.dtype, copy=False)})
    finally:
        engine.close()


def _engine(model: onnx.ModelProto, data: Path, kind: type[OnnxEngine] = OnnxEngine) -> Any:
    return kind.load(rounded(model).SerializeToString(), data=data, as_written=True)


def _named(row: Row) -> Row:
    return replace(row, stage=f"{row.stage} (float16)")
