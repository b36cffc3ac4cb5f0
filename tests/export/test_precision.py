"""What float16 and float32 do to a checkpoint with large query and key biases, and what the export says of it.

The amounts were chosen so that a graph with float16 scores is wrong by 6 % of the largest value and more, and so that correct float32
graphs are off by more than 1e-4.
"""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from loud_checkpoint import loud_checkpoint

from export import llm, vision
from export.checkpoint import open_checkpoint
from export.decoder import _Attention as LLMAttention
from export.families import llava_ov
from export.families.siglip import _Attention as VisionAttention
from export.options import ExportOptions
from export.pipeline import ExportResult, export_bundle
from runtime.core.errors import ExportError
from runtime.engine import EngineOptions
from runtime.tools import reference
from runtime.tools.parity import parity

VISION_ROWS = ["vision/frame (float16)", "visual_tokens (float16)"]
LLM_ROWS = ["llm/prefill (float16)", "llm/greedy_ids (float16)", "llm/batch (float16)"]


@pytest.fixture(scope="module")
def loud(tmp_path_factory) -> str:
    return loud_checkpoint(tmp_path_factory.mktemp("loud") / "checkpoint", vision=20, llm=60, layers=1)


@pytest.fixture(scope="module")
def louder(tmp_path_factory) -> str:
    return loud_checkpoint(tmp_path_factory.mktemp("louder") / "checkpoint", vision=60, llm=250, layers=4)


def _export(checkpoint: str, directory, **options) -> ExportResult:
    return export_bundle(ExportOptions(checkpoint=checkpoint, out=str(directory / "b"), frames=2, **options))


def _errors(result: ExportResult) -> dict[str, float]:
    return {row["stage"]: row["error"] for row in result.verified}


def test_the_llm_is_right_in_float16_arithmetic(loud, tmp_path):
    result = _export(loud, tmp_path, precision="fp16", only="llm")
    errors = _errors(result)
    assert list(errors)[-3:] == LLM_ROWS
    assert 1e-4 < errors["llm/prefill (float16)"] < 1e-2
    report = parity(result.bundle, ["onnx"], EngineOptions(threads=1))
    assert report.ok
    assert [row.stage for row in report.rows][-3:] == LLM_ROWS


@pytest.mark.slow
def test_the_standard_variant_is_right_in_float16_arithmetic(loud, tmp_path):
    errors = _errors(_export(loud, tmp_path, precision="fp16", attention="standard", only="llm"))
    assert 1e-4 < errors["llm/prefill (float16)"] < 1e-2
    assert errors["llm/batch (float16)"] < 1e-2


def test_the_encoder_is_right_in_float16_arithmetic(loud, tmp_path):
    result = _export(loud, tmp_path, precision="fp16", only="vision")
    errors = _errors(result)
    assert list(errors)[-2:] == VISION_ROWS
    assert 1e-3 < errors["vision/frame (float16)"] < 2.5e-2
    report = parity(result.bundle, ["onnx"], EngineOptions(threads=1))
    assert report.ok
    assert [row.stage for row in report.rows][-2:] == VISION_ROWS


def _float16_scores_portable(self, query, key, value, mask):
    length, read, group = query.shape[2], key.shape[2], self.heads // self.kv_heads
    grouped = (query.to(value.dtype) * self.scale).reshape(1, self.kv_heads, group * length, self.head_dim)
    scores = (grouped @ key.transpose(2, 3)).view(1, self.kv_heads, group, length, read)
    weights = (scores + torch.where(mask, 0.0, -6e4).to(value.dtype).unsqueeze(1)).softmax(-1)
    return (weights.view(1, self.kv_heads, group * length, read) @ value).view(1, self.heads, length, self.head_dim)


def _float16_scores_of_the_encoder(self, x):
    def heads(projected):
        return projected.view(*x.shape[:2], self.heads, self.head_dim).transpose(1, 2)

    query, key, value = heads(self.q_proj(x)) * self.scale, heads(self.k_proj(x)), heads(self.v_proj(x))
    return self.out_proj(((query @ key.transpose(2, 3)).softmax(-1) @ value).transpose(1, 2).reshape(x.shape))


@pytest.mark.parametrize(
    ("owner", "method", "wrong", "options", "stage"),
    [
        (LLMAttention, "_mix_portable", _float16_scores_portable, {"only": "llm"}, r"llm/prefill \(float16\) differs"),
        (VisionAttention, "forward", _float16_scores_of_the_encoder, {"only": "vision"}, r"vision/frame \(float16\) differs"),
        pytest.param(
            VisionAttention,
            "forward",
            _float16_scores_of_the_encoder,
            {"only": "vision", "split": True},
            r"vision/frame \(float16\) differs",
            marks=pytest.mark.slow,
        ),
    ],
    ids=["llm", "vision", "split vision"],
)
def test_a_graph_with_float16_scores_is_refused(loud, tmp_path, monkeypatch, owner, method, wrong, options, stage):
    monkeypatch.setattr(owner, method, wrong)
    with pytest.raises(ExportError, match=f"^{stage}"):
        _export(loud, tmp_path, precision="fp16", **options)
    assert not (tmp_path / "b").exists()


def test_a_float32_llm_is_judged_by_float64_and_what_float32_does_to_the_reference(louder, tmp_path):
    bundle = _export(louder, tmp_path, only="llm").bundle
    expected = reference.llm(bundle)
    assert 1e-4 < expected.rounding < 2e-3
    rows = {row.stage: row for row in parity(bundle, ["onnx"], EngineOptions(threads=1)).rows}
    assert all(rows.values())
    assert rows["llm/prefill"].tolerance == pytest.approx(4 * expected.rounding)
    exact = llava_ov.load_llm(open_checkpoint(louder)).double()
    with torch.no_grad():
        table = exact.get_input_embeddings().weight
        visual = torch.from_numpy(expected.visual_tokens).double()
        prompt = torch.cat([table[expected.ids.before], visual, table[expected.ids.after]])[None]
        logits = exact(inputs_embeds=prompt).logits[0, -1].numpy()
    np.testing.assert_allclose(expected.logits, logits, rtol=0, atol=1e-5 * np.abs(logits).max())


@pytest.mark.slow
def test_a_float32_encoder_is_judged_by_what_float32_does_to_the_reference(louder, tmp_path):
    result = _export(louder, tmp_path, only="vision")
    rounding = result.bundle.manifest.stages[0].rounding
    assert 1e-4 < rounding < 2e-3
    assert 1e-4 < _errors(result)["vision/encoder"] < 4 * rounding
    rows = {row.stage: row for row in parity(result.bundle, ["onnx"], EngineOptions(threads=1)).rows}
    assert all(rows.values())
    assert rows["vision/encoder"].tolerance == rows["visual_tokens"].tolerance == pytest.approx(4 * rounding)


@pytest.mark.parametrize("component", ["llm", pytest.param("vision", marks=pytest.mark.slow)])
def test_a_wrong_float32_graph_of_such_a_checkpoint_is_refused(louder, tmp_path, monkeypatch, component):
    module, name = {"llm": (llm, "trace_decoder"), "vision": (vision, "trace_vision")}[component]
    trace = getattr(module, name)

    def traced_wrong(traced, *args):
        wrong = copy.deepcopy(traced)
        layer = wrong.layers[2] if component == "llm" else wrong.encoder.layers[2]
        layer.mlp.get_parameter("down_proj.weight" if component == "llm" else "fc2.weight").data.mul_(1.05)
        return trace(wrong, *args)

    monkeypatch.setattr(module, name, traced_wrong)
    with pytest.raises(ExportError, match=r"^(llm/prefill|vision/encoder) differs between"):
        _export(louder, tmp_path, only=component)
