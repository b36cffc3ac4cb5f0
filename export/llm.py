"""The LLM, from the checkpoint to decoder graphs that compute what transformers computes.

    read -> trace -> surgeon passes -> compare with transformers -> (int8, int4: quantise, compare again) -> the same for a batch
    -> operator table and real parser of TensorRT -> compare the batch, each conversation with itself alone -> (fp16: in float16)

There are two graphs over one set of weights: `llm/decoder.onnx` of one conversation, `llm/decoder.batch.onnx` of several.

N visual tokens, S prompt positions, V vocabulary, D hidden.
"""

from __future__ import annotations

import copy
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import torch

from export import reference
from export.component import Component, base_dtype, check_tensorrt, make_manifest
from export.decoder import Decoder
from export.plan import CHAT_TEMPLATE, Plan
from export.quantize import llm_precision
from export.quantize.clips import Clips
from export.quantize.layers import save, with_weights
from export.quantize.llm import calibration_prompts, quantize_llm
from export.quantize.qdq import rows_to_int8
from export.quantize.report import Report
from export.surgeon import run_passes
from export.trace import trace_decoder
from export.verify import verify_batch, verify_float16, verify_llm
from runtime.bundle import DECODER, DECODER_BATCH, Bundle
from runtime.bundle.graphs import file_of
from runtime.bundle.manifest import LLMInfo, PassReport
from runtime.core.progress import step
from runtime.prompt.embeddings import ROWS, SCALES
from runtime.tools.compare import Row
from runtime.tools.float16_rows import compare_llm_float16
from runtime.tools.reference import LLMReference

_STAND_IN = 64  # most visual tokens in the reference prompt where there is no vision encoder


def export_llm(directory: Path, plan: Plan, visual_tokens: np.ndarray | None) -> Component:
    """Write llm/ and the LLM's reference; ExportError where a graph does not compute what transformers computes.

    visual_tokens: [N, D] of the reference clip; None for --only llm, where rows of the scale of word embeddings stand in.
    directory: with the graphs of the vision encoder, unless --only llm left it out.
    """
    options, llm = plan.options, plan.llm
    assert llm is not None
    precision, block = llm_precision(options.of_llm)
    dtype = base_dtype(precision)
    path = directory / file_of(DECODER)
    with step("reading the LLM"):
        causal_lm = plan.family.load_llm(plan.checkpoint)
    decoder = Decoder(causal_lm, llm.max_context, options.attention)
    info = decoder.info(options.attention, dtype)
    with step("tracing the LLM"):
        model = trace_decoder(copy.deepcopy(decoder).half() if dtype == "fp16" else decoder, path, options.attention)
    with step("surgeon passes on the LLM"):
        model, passes = run_passes(model, graph=DECODER, directory=path.parent, precision=dtype)
        onnx.save(model, str(path))
    embeddings = causal_lm.get_input_embeddings().weight  # [V, D]
    table = embeddings.detach().numpy()
    np.save(directory / ROWS, table.astype(np.float16) if dtype == "fp16" else table)
    shutil.copyfile(plan.checkpoint.path / "tokenizer.json", directory / "llm" / "tokenizer.json")
    (directory / "llm" / CHAT_TEMPLATE).write_text(llm.chat.template, encoding="utf-8")

    with step("running torch for reference"):
        shown = visual_tokens
        if shown is None:  # as many as a clip has, or more where the context has room for them beside question and answer
            room = llm.max_context - len(llm.question) - reference.GREEDY
            shown = _random_rows(embeddings, min(_STAND_IN, max(plan.tokens, room)))
        expected = reference.llm(causal_lm, llm.question, shown[: reference.LLM_VISUAL_TOKENS])
    reference.save_llm(directory / "reference", expected)
    flash = options.attention == "flash"  # which runs on CUDA alone; the arithmetic that is checked last is what a GPU has
    verified = [] if flash else _compare(_bundle(directory, plan, info), expected)

    quantized = {}
    if precision != dtype:
        with step("quantising the LLM"):
            clip = _random_rows(embeddings, plan.tokens) if visual_tokens is None else None
            model, reports, quantized[DECODER] = _quantize(_bundle(directory, plan, info), plan, clip)
            passes += reports
            values, scales = rows_to_int8(table)
            np.save(directory / ROWS, values)
            np.save(directory / SCALES, scales)
        info = replace(info, precision=precision, block=block or None)
        verified += _compare(_bundle(directory, plan, info), expected)
    model, reports = run_passes(model, ["batch"], graph=DECODER_BATCH, directory=path.parent)
    onnx.save(model, str(directory / file_of(DECODER_BATCH)))
    passes += reports
    tensorrt = {} if flash else check_tensorrt(directory, DECODER, options.tensorrt)

    bundle = _bundle(directory, plan, info)
    if not flash:
        with step("comparing a batch of conversations with each alone"):
            verified.append(verify_batch(bundle, expected.rounding))
    if dtype == "fp16":
        with step("computing the LLM in float16"):
            verified += verify_float16(compare_llm_float16(bundle, expected), "--llm-precision fp32")
    return Component(passes, verified, tensorrt, quantized, llm=info)


def _bundle(directory: Path, plan: Plan, info: LLMInfo) -> Bundle:
    """What is written so far, as the runtime opens it; info: the manifest's `llm`."""
    files = [path.relative_to(directory).as_posix() for path in directory.rglob("*") if path.is_file()]
    return Bundle(directory, make_manifest(plan, Component(), Component(llm=info), files=files))


def _compare(bundle: Bundle, expected: LLMReference) -> list[Row]:
    with step(f"comparing the LLM in {bundle.manifest.llm_precision} with torch"):
        return verify_llm(bundle, expected)


def _quantize(bundle: Bundle, plan: Plan, visual_tokens: np.ndarray | None) -> tuple[onnx.ModelProto, list[PassReport], Report]:
    """The structure of the decoder in int8 or int4; its weights replace those in the bundle.

    bundle: with the float decoder and, unless there are visual_tokens [N, D] to use instead, the vision encoder.
    """
    options, path = plan.options, bundle.model(DECODER)
    clips = Clips(plan.preprocessing, options.calibrate)
    prompts = list(calibration_prompts(bundle, clips, visual_tokens))
    # a decode step costs by the node, so what reads one tensor is one product
    model = with_weights(onnx.load(str(path), load_external_data=False), path.parent)
    joined, reports = run_passes(model, ["join_matmuls"], graph=DECODER, directory=path.parent)
    save(joined, path)
    model, report = quantize_llm(path, *llm_precision(options.of_llm), prompts, clips.source, options.error_budget)
    row = PassReport(DECODER, f"quantize {options.of_llm}", report.lowered, report.note())
    return save(model, path), [*reports, row], report


def _random_rows(embeddings: torch.Tensor, count: int) -> np.ndarray:
    """Rows [count, D] of the scale of the word embeddings [V, D]."""
    rng = np.random.default_rng(0)
    return rng.normal(0, float(embeddings.std()), (count, embeddings.shape[1])).astype(np.float32)
