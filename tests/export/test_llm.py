"""In which order the LLM is traced, compared, quantised and written, and with what: the steps are tested where they are."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
import torch

from export import llm
from export.options import ExportOptions
from export.quantize.report import LayerReport, Report
from runtime.bundle.manifest import LLMInfo
from runtime.prompt import PromptIds

REPORT = Report("int8", 0.01, 0.05, "clips", [LayerReport("a", "int8", 0.1), LayerReport("b", "fp32", 0.3)])
GRAPH = onnx.ModelProto(producer_name="a model")
TABLE = np.arange(12, dtype=np.float32).reshape(4, 3) / 7
EMBEDDINGS = torch.nn.Parameter(torch.from_numpy(TABLE))
CAUSAL_LM = SimpleNamespace(get_input_embeddings=lambda: SimpleNamespace(weight=EMBEDDINGS))
QUESTION = PromptIds(([1, 2, 3], [4, 5]))
EXPECTED = SimpleNamespace(rounding=0.125)


class Decoder(torch.nn.Linear):
    def info(self, attention: str, precision: str) -> LLMInfo:
        return LLMInfo(2, 1, 2, 9, attention, precision)


@pytest.fixture
def calls() -> list[tuple[Any, ...]]:
    return []


@pytest.fixture
def stub(monkeypatch: pytest.MonkeyPatch, calls: list[tuple[Any, ...]]) -> Callable[..., None]:
    """stub(name, value): put in its place what notes the call and gives `value`, or calls it; note: which arguments to note."""

    def put(name: str, value: Any = None, note: slice = slice(None), owner: Any = llm) -> None:
        def called(*arguments: Any, **named: Any) -> Any:
            calls.append((name, *arguments[note]))
            return value(*arguments, **named) if callable(value) else value

        monkeypatch.setattr(owner, name, called)

    return put


@pytest.fixture
def directory(tmp_path, stub):
    """The bundle's, beside the checkpoint; steps of the export are stubs."""
    (tmp_path / "tokenizer.json").write_text("tokens")
    (tmp_path / "b" / "llm").mkdir(parents=True)
    stub("Decoder", lambda causal_lm, context, attention: Decoder(2, 2))
    stub("trace_decoder", lambda module, *more: module.weight.dtype, slice(0))
    stub(
        "run_passes",
        lambda model, *names, graph, directory, precision=None: (GRAPH, [(graph, model if precision else names)]),
        slice(0),
    )
    stub("llm", EXPECTED, slice(1, None), owner=llm.reference)
    stub("save_llm", owner=llm.reference)
    stub("_bundle", lambda directory, plan, info: f"bundle {info.precision}", slice(0))
    stub("verify_batch", "as alone")
    stub("compare_llm_float16", "float16 rows")
    stub("verify_float16", ["in float16"])
    stub("check_tensorrt", lambda directory, graph, release: {graph: "parsed"})
    return tmp_path / "b"


def plan(directory, context: int = 64, tokens: int = 20, **options: Any) -> SimpleNamespace:
    chat = SimpleNamespace(template="{{ 'é' }}")
    return SimpleNamespace(
        options=ExportOptions(**options),
        family=SimpleNamespace(load_llm=lambda checkpoint: CAUSAL_LM),
        checkpoint=SimpleNamespace(path=directory.parent),
        llm=SimpleNamespace(chat=chat, question=QUESTION, max_context=context),
        preprocessing="how",
        tokens=tokens,
    )


@pytest.mark.parametrize(
    ("precision", "dtype", "after"),
    [("fp32", "fp32", {}), ("fp16", "fp16", {}), ("int8", "fp32", {"precision": "int8"}), ("int4:64", "fp32", {"precision": "int4", "block": 64})],
)  # fmt: skip
def test_the_steps_of_an_export(directory, calls, stub, precision, dtype, after):
    stub("_compare", lambda bundle, expected: [f"{bundle} as torch"])
    stub("_quantize", (GRAPH, ["quantize"], REPORT), slice(0, 3, 2))
    visual = np.ones((3, 3), np.float32)
    made = llm.export_llm(directory, plan(directory, llm_precision=precision, tensorrt="10.3"), visual)

    final, quantized = after.get("precision", dtype), ["quantize"] if after else []
    np.testing.assert_equal(
        [call for call in calls if call[0] not in ("_bundle", "run_passes")],
        [
            ("Decoder", CAUSAL_LM, 64, "portable"),
            ("trace_decoder",),
            ("llm", QUESTION, visual),
            ("save_llm", directory / "reference", EXPECTED),
            ("_compare", f"bundle {dtype}", EXPECTED),
            *([("_quantize", f"bundle {dtype}", None), ("_compare", f"bundle {final}", EXPECTED)] if after else []),
            ("check_tensorrt", directory, "llm/decoder", "10.3"),
            ("verify_batch", f"bundle {final}", 0.125),
            *([("compare_llm_float16", "bundle fp16", EXPECTED), ("verify_float16", "float16 rows", "--llm-precision fp32")] if dtype == "fp16" else []),
        ],
    )  # fmt: skip
    traced = torch.float16 if dtype == "fp16" else torch.float32
    assert made.passes == [("llm/decoder", traced), *quantized, ("llm/decoder.batch", (["batch"],))]
    compared = [f"bundle {dtype} as torch", *([f"bundle {final} as torch"] if after else [])]
    assert made.verified == [*compared, "as alone", *(["in float16"] if dtype == "fp16" else [])]
    assert made.llm == replace(LLMInfo(2, 1, 2, 9, "portable", dtype), **after)
    assert made.quantized == ({"llm/decoder": REPORT} if after else {}) and made.tensorrt == {"llm/decoder": "parsed"}
    for graph in ("decoder", "decoder.batch"):
        assert onnx.load(str(directory / "llm" / f"{graph}.onnx")).producer_name == "a model"
    assert (directory / "llm" / "tokenizer.json").read_text() == "tokens"
    assert (directory / "llm" / "chat_template.jinja").read_text(encoding="utf-8") == "{{ 'é' }}"
    rows = np.load(directory / "llm" / "embed_tokens.npy")
    assert (directory / "llm" / "embed_scales.npy").exists() == bool(after)
    if after:
        scales = np.load(directory / "llm" / "embed_scales.npy")
        np.testing.assert_allclose(rows * scales[:, None], TABLE, atol=11 / 7 / 127)
        assert rows.dtype == np.int8
    else:
        np.testing.assert_array_equal(rows, TABLE.astype(np.float16 if dtype == "fp16" else np.float32))
        assert rows.dtype == (np.float16 if dtype == "fp16" else np.float32)


@pytest.mark.parametrize(
    ("context", "tokens", "visual", "asked", "shown"),
    [
        (60, 20, None, 39, 39),  # 60 without 3 and 2 of the prompt and 16 of the answer
        (60, 50, None, 50, 50),
        (1000, 20, None, 64, 64),
        (1000, 900, None, 64, 64),
        (60, 20, 33, None, 33),
        (4096, 20, 1025, None, 1024),
    ],
)
def test_the_llm_is_compared_on_as_many_tokens_as_fit(directory, calls, stub, context, tokens, visual, asked, shown):
    stub("_compare", ["as torch"])
    stub("_random_rows", lambda embeddings, count: list(range(count)))
    llm.export_llm(directory, plan(directory, context, tokens), None if visual is None else list(range(visual)))
    assert [call[2] for call in calls if call[0] == "_random_rows"] == ([] if asked is None else [asked])
    assert [call[2] for call in calls if call[0] == "llm"] == [list(range(shown))]


def test_random_rows_take_the_place_of_a_clip_where_there_is_no_vision_encoder(directory, calls, stub):
    stub("_compare", ["as torch"])
    stub("_quantize", (GRAPH, [], REPORT), slice(0))
    stub("_random_rows", lambda embeddings, count: [count])
    llm.export_llm(directory, plan(directory, tokens=33, only="llm", precision="int8"), None)
    assert [call[1:] for call in calls if call[0] == "_random_rows"] == [(EMBEDDINGS, 43), (EMBEDDINGS, 33)]


@pytest.mark.parametrize(
    ("options", "arguments"),
    [
        ({"llm_precision": "int4:64"}, ("int4", 64, ["one", "two"], "the clips", None)),
        ({"precision": "int8", "calibrate": "videos", "error_budget": 0.3}, ("int8", 0, ["one", "two"], "the clips", 0.3)),
    ],
)
def test_weights_are_quantised_on_prompts_about_calibration_clips(tmp_path, calls, stub, options, arguments):
    path = tmp_path / "decoder.onnx"
    onnx.save(GRAPH, str(path))
    bundle, chosen = SimpleNamespace(model=lambda graph: path), plan(tmp_path, **options)
    clips = SimpleNamespace(source="the clips")
    stub("Clips", clips)
    stub("calibration_prompts", iter(["one", "two"]))
    stub("with_weights", "in memory")
    stub("run_passes", ("joined", ["join"]))
    stub("save", lambda model, path: f"{model} saved")
    stub("quantize_llm", ("quantized", REPORT))
    made, (join, row), report = llm._quantize(bundle, chosen, "tokens")
    assert calls == [
        ("Clips", "how", options.get("calibrate")),
        ("calibration_prompts", bundle, clips, "tokens"),
        ("with_weights", GRAPH, tmp_path),
        ("run_passes", "in memory", ["join_matmuls"]),
        ("save", "joined", path),
        ("quantize_llm", path, *arguments),
        ("save", "quantized", path),
    ]
    assert (made, join, report) == ("quantized saved", "join", REPORT)
    assert (row.graph, row.name, row.rewrites) == ("llm/decoder", f"quantize {chosen.options.of_llm}", 1)


def test_random_rows_have_the_width_and_the_scale_of_the_embeddings():
    wide = torch.linspace(-3, 5, 700).reshape(7, 100)
    rows = llm._random_rows(wide, 50)
    assert rows.shape == (50, 100) and rows.dtype == np.float32
    assert rows.std() == pytest.approx(8 / 12**0.5, rel=0.03)  # of what is even from -3 to 5
    assert rows.mean() == pytest.approx(0, abs=0.1)
    np.testing.assert_array_equal(rows, llm._random_rows(wide, 50))


def test_the_bundle_that_is_checked_lists_what_is_written_so_far(tmp_path, monkeypatch):
    (tmp_path / "llm").mkdir()
    (tmp_path / "llm" / "decoder.onnx").touch()
    monkeypatch.setattr(llm, "make_manifest", lambda plan, vision, llm, files: (vision.stages, llm.llm, list(files)))
    bundle = llm._bundle(tmp_path, None, {"layers": 2})
    assert bundle.path == tmp_path and bundle.manifest == ([], {"layers": 2}, ["llm/decoder.onnx"])
