"""int4 or int8 weights for the decoder; activations stay in float, because decoding is bound by reading weights, not by arithmetic.

Layers start at the requested precision and go up a step, int4 -> int8 -> float, where the budget requires it. An int4 block runs
along the layer's inputs and must divide their number (TensorRT supports no remainder); a layer where it does not is int8.

N visual tokens, S prompt positions, V vocabulary, D hidden; K inputs, N outputs of a layer.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import onnx

from export.quantize.clips import QUESTIONS, Clips
from export.quantize.layers import Layer, find_layers, layer_errors, meet_budget, save, with_outputs, with_weights
from export.quantize.qdq import int8_rounded, w4, w8
from export.quantize.report import LayerReport, Report
from runtime.bundle import Bundle
from runtime.bundle.graphs import LOGITS
from runtime.engine import EngineOptions
from runtime.engine.onnx import OnnxEngine
from runtime.llm.decoder import cache_pairs, decoder_feeds
from runtime.prompt import Prompt
from runtime.tools.compare import relative_error
from runtime.vision.encoder import VisionEncoder

BUDGET = {"int8": 0.05, "int4": 0.15}  # relative error of the logits
_STEPS = ("int4", "int8", "fp32")
_POSITIONS = 512  # of a prompt that the layers' errors are measured on
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


def quantize_llm(
    path: Path, precision: str, block: int, prompts: Sequence[np.ndarray], source: str, budget: float | None
) -> tuple[onnx.ModelProto, Report]:
    """(the decoder at `path` with its weights in Q/DQ and in memory, the report).

    precision: "int8" or "int4", with its block; prompts: embeddings [1, S, D] each; source: where they come from, for the report;
    budget: BUDGET where None.
    """
    budget = BUDGET[precision] if budget is None else budget
    model = onnx.load(str(path), load_external_data=False)
    layers = find_layers(model)
    lowest = {layer.node: _lowest(layer, precision, block) for layer in layers}

    probe = with_outputs(model, [layer.input for layer in layers])
    engine = OnnxEngine.load(probe.SerializeToString(), data=path.parent)
    found = _run(engine, prompts[0][:, :_POSITIONS])
    errors = layer_errors(
        model,
        path.parent,
        layers,
        found,
        lambda layer, x: x,
        lambda layer, weight: _rounded(weight, lowest[layer.node], block),
    )
    del engine, found
    exact = _logits(OnnxEngine.load(path), prompts)

    def measure(chosen: dict[str, str]) -> float:
        with tempfile.TemporaryDirectory() as scratch:
            save(_quantized(with_weights(model, path.parent), layers, chosen, block), Path(scratch) / "decoder.onnx")
            return relative_error(_logits(OnnxEngine.load(Path(scratch) / "decoder.onnx"), prompts), exact)

    chosen, error = meet_budget(lowest, _STEPS, errors, measure, budget)
    rows = [LayerReport(layer.node, chosen[layer.node], errors[layer.node]) for layer in layers]
    return _quantized(with_weights(model, path.parent), layers, chosen, block), Report(precision, error, budget, source, rows)


def _lowest(layer: Layer, precision: str, block: int) -> str:
    return "int8" if precision == "int4" and layer.shape[0] % block else precision


def _quantized(model: onnx.ModelProto, layers: Sequence[Layer], chosen: dict[str, str], block: int) -> onnx.ModelProto:
    by_level = {level: [layer for layer in layers if chosen[layer.node] == level] for level in _STEPS}
    if by_level["int8"]:
        model = w8(model, by_level["int8"])
    return w4(model, by_level["int4"], block) if by_level["int4"] else model


def _rounded(weight: np.ndarray, level: str, block: int) -> np.ndarray:
    """What the weights of a layer [K, N] become, by the rules of the quantisers."""
    if level == "int8":
        return int8_rounded(weight)
    blocks = weight.reshape(-1, block, weight.shape[1])
    extreme = np.take_along_axis(blocks, np.abs(blocks).argmax(1)[:, None], 1)
    scale = extreme / -8  # ONNX Runtime's: the largest magnitude is the -8 of its block
    scale[scale == 0] = 1
    return (np.clip(np.rint(blocks / scale), -8, 7) * scale).reshape(weight.shape)


def _run(engine: OnnxEngine, prompt: np.ndarray) -> dict[str, np.ndarray]:
    """All outputs after a prompt [1, S, D] in an empty cache."""
    return engine.run(decoder_feeds(prompt.astype(np.float32), [0]), engine.new_state(cache_pairs(engine.inputs)))


def _logits(engine: OnnxEngine, prompts: Sequence[np.ndarray]) -> np.ndarray:
    """[prompts, V] of each prompt's last position; the engine is closed afterwards."""
    rows = [_run(engine, prompt)[LOGITS][0, -1] for prompt in prompts]
    engine.close()
    return np.stack(rows)
