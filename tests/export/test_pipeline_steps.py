"""What an export does in which order, and what its manifest says: with stand-ins for the two components."""

from __future__ import annotations

import json
from dataclasses import replace
from importlib import metadata
from types import SimpleNamespace
from typing import Any

import pytest
from refusal import naming

from export import component as manifests
from export import pipeline
from export.component import Component
from export.options import ExportOptions
from export.pipeline import export_bundle
from export.quantize.report import Report
from export.surgeon import PassReport
from runtime.bundle.manifest import LLMInfo, Preprocessing, PromptInfo, StageTensor, read
from runtime.core.errors import ExportError, SpecError, UserError
from runtime.tools.compare import Row

CHECKPOINT = SimpleNamespace(id="somebody/checkpoint", demo=False)
REPORT = Report("int8", 0.01, 0.05, "clips", [])
STAGE = {"name": "s", "graph": "vision", "tensor": "s/output", "every": 1, "rounding": 0.5}
LLM = {"layers": 2, "kv_heads": 1, "head_dim": 2, "vocab_size": 9, "attention": "portable"}
PREPROCESSING = {"size": [2, 2], "resample": "bicubic", "rescale_factor": 1.0, "image_mean": 0.5, "image_std": 0.5}


class StopHereError(Exception):
    """What a stand-in raises where the rest does not matter."""


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """What `export` does below, in order."""
    noted: list[tuple[Any, ...]] = []

    def export_vision(directory, plan):
        noted.append(("export_vision", plan))
        (directory / "vision.onnx").write_text("graph")
        quantized = {"vision": REPORT} if plan.options.precision == "int8" else {}
        return Component(
            [PassReport("vision", "v", 1, "")],
            [Row("v", "onnx", (2, 3), 1.5, 0.5, 0.6, True)],
            {"v": "parsed"},
            quantized,
            [StageTensor("s", "vision", "s/output", 1, 0.5)],
            "tokens of the clip",
        )

    def export_llm(directory, plan, visual_tokens):
        noted.append(("export_llm", plan, visual_tokens))
        (directory / "llm").mkdir()
        (directory / "llm" / "tokenizer.json").write_text("tokens")
        precision = plan.options.of_llm.partition(":")[0]
        quantized = {"llm/decoder": REPORT} if precision.startswith("int") else {}
        return Component(
            [PassReport("llm/decoder", "l", 2, "note")],
            [Row("l", "onnx", (9,), 1.5, 0.25, 0.6, True)],
            {"l": "parsed"},
            quantized,
            llm=LLMInfo(**LLM, precision=precision),
        )

    monkeypatch.setattr("export.weights.weights_sha256", lambda checkpoint: "digest")
    monkeypatch.setattr("export.vision.export_vision", export_vision)
    monkeypatch.setattr("export.llm.export_llm", export_llm)
    monkeypatch.setattr(manifests, "_versions", lambda: {"torch": "2"})
    monkeypatch.setattr(pipeline, "open_checkpoint", lambda name: CHECKPOINT)
    return noted


PROMPT = {"chat_template": "chat_template.jinja", "video_token": "<video>", "video_token_id": 4, "eos_token_ids": [2]}


def export(monkeypatch, tmp_path, calls, source=None, **options) -> pipeline.ExportResult:
    kind = SimpleNamespace(
        COMPRESS="nsp",
        HUB_ID="hub",
        check_llm_weights=lambda checkpoint, values=False: calls.append(("check_llm_weights", checkpoint, values)),
    )

    def plan(options, family, checkpoint):
        assert family is kind
        return SimpleNamespace(
            options=options, family=family, checkpoint=checkpoint, preset="preset", compress=SimpleNamespace(spec="spec"),
            vision=SimpleNamespace(grid=(9, 7), hidden_size=4), frames=3, tokens=21, not_applied=["min_new_tokens"],
            preprocessing=replace(read(Preprocessing, PREPROCESSING), frames=source),
            llm=None if options.only == "vision" else SimpleNamespace(prompt=read(PromptInfo, PROMPT), max_context=99),
        )  # fmt: skip

    monkeypatch.setattr(pipeline, "family", lambda name: kind)
    monkeypatch.setattr(pipeline, "make_plan", plan)
    return export_bundle(ExportOptions(out=str(tmp_path / "b"), **options))


@pytest.mark.parametrize(
    ("options", "steps"),
    [
        ({}, ["check_llm_weights", "export_vision", "export_llm"]),
        ({"only": "vision"}, ["export_vision"]),
        ({"only": "llm", "precision": "int8"}, ["export_llm"]),
    ],
)
def test_the_steps_of_an_export(monkeypatch, tmp_path, calls, options, steps):
    export(monkeypatch, tmp_path, calls, **options)
    assert [name for name, *_ in calls] == steps
    assert [call for call in calls if call[0] == "check_llm_weights"] == [("check_llm_weights", CHECKPOINT, True)] * ("only" not in options)  # fmt: skip
    shown = None if options.get("only") == "llm" else "tokens of the clip"
    assert [tokens for name, *_, tokens in calls if name == "export_llm"] == [shown] * ("export_llm" in steps)


@pytest.mark.parametrize("source", [None, (40, 60)])
@pytest.mark.parametrize(("only", "llm"), [(None, True), ("vision", False)])
def test_the_manifest_of_an_export(monkeypatch, tmp_path, calls, source, only, llm):
    result = export(monkeypatch, tmp_path, calls, source, only=only, place="before-projector")
    values = json.loads((tmp_path / "b" / "manifest.json").read_text())
    files = values.pop("files")
    reports = [{"graph": "vision", "pass": "v", "rewrites": 1, "note": ""}]
    reports += [{"graph": "llm/decoder", "pass": "l", "rewrites": 2, "note": "note"}] * llm
    assert values == {
        "schema_version": 1,
        "family": "llava-ov",
        "checkpoint": {"id": "somebody/checkpoint", "sha256": "digest"},
        "compression": {"preset": "preset", "spec": "spec", "place": "before-projector"},
        "frames": 3,
        "grid": [9, 7],
        "tokens_per_clip": 21,
        "hidden_size": 4,
        "preprocessing": PREPROCESSING if source is None else PREPROCESSING | {"frames": [40, 60]},
        "prompt": PROMPT if llm else {},
        "llm": LLM | {"precision": "fp32"} if llm else {},
        "precision": "fp32",
        "opset": 20,
        "limits": {"max_context": 99} if llm else {},
        "stages": [STAGE],
        "report": reports,
        "versions": {"torch": "2"},
    }
    assert set(files) == {"vision.onnx", "llm/tokenizer.json"} if llm else {"vision.onnx"}
    shown = result.as_dict()
    assert shown["bundle"] == str(tmp_path / "b") and shown["patch_tokens"] == 3 * 9 * 7 and shown["tokens_per_clip"] == 21
    assert shown["max_context"] == (99 if llm else None) and shown["bytes"] == (len("graph") + len("tokens") * llm)
    assert shown["tensorrt"] == ({"v": "parsed", "l": "parsed"} if llm else {"v": "parsed"})
    rows = [{"stage": "v", "error": 0.5, "ok": True}, {"stage": "l", "error": 0.25, "ok": True}]
    assert shown["verified"] == rows[: 1 + llm] and shown["not_applied"] == ["min_new_tokens"]
    assert (shown["checkpoint"], shown["compression"]) == (values["checkpoint"], values["compression"])
    assert (shown["precision"], shown["llm_precision"], shown["passes"]) == ("fp32", "fp32", reports)


@pytest.mark.parametrize(
    ("options", "graphs"),
    [
        ({}, None),
        ({"precision": "int8"}, {"vision", "llm/decoder"}),
        ({"precision": "int8", "only": "vision"}, {"vision"}),
        ({"llm_precision": "int4"}, {"llm/decoder"}),
    ],
)
def test_the_reports_of_quantisation_are_a_file(monkeypatch, tmp_path, calls, options, graphs):
    result = export(monkeypatch, tmp_path, calls, **options)
    file = tmp_path / "b" / "quantization.json"
    assert ("quantization.json" in result.bundle.manifest.files) == file.exists() == (graphs is not None)
    assert graphs is None or set(json.loads(file.read_text())) == graphs


@pytest.mark.parametrize(
    ("options", "opset"),
    [
        ({}, 20),
        ({"attention": "standard"}, 24),
        ({"llm_precision": "int4:64"}, 21),
        ({"llm_precision": "int4", "attention": "standard"}, 24),
        ({"llm_precision": "int4", "only": "vision"}, 20),
        ({"llm_precision": "int4", "only": "llm"}, 21),
        ({"llm_precision": "int8"}, 20),
        ({"precision": "int8"}, 20),
    ],
)
def test_the_manifest_names_the_higher_opset_of_the_graphs(monkeypatch, tmp_path, calls, options, opset):
    assert export(monkeypatch, tmp_path, calls, **options).bundle.manifest.opset == opset


@pytest.mark.parametrize(
    ("compress", "refused"),
    [(None, False), ("st-gridpool", False), ("st-gridpol", True)],
    ids=["the family's", "a preset", "misspelt"],
)
def test_a_misspelt_preset_is_refused_before_the_checkpoint_is_opened(monkeypatch, tmp_path, calls, compress, refused):
    def opened(name):
        raise StopHereError

    monkeypatch.setattr(pipeline, "open_checkpoint", opened)
    with pytest.raises(SpecError if refused else StopHereError):
        export(monkeypatch, tmp_path, calls, compress=compress)


def test_the_defaults_of_an_export():
    assert ExportOptions() == ExportOptions(
        "llava-ov", None, None, None, None, "after-projector", "fp32", None, None, None, "portable", None, None, None, "pixels", False, False
    )  # fmt: skip
    assert [ExportOptions("m", "c", "o", 3).force, ExportOptions(*[None] * 16, True).force] == [False, True]


@pytest.mark.parametrize(
    ("options", "of_llm", "quantizes"),
    [
        ({}, "fp32", False),
        ({"precision": "fp16"}, "fp16", False),
        ({"precision": "int8"}, "int8", True),
        ({"precision": "int8", "llm_precision": "fp32"}, "fp32", True),
        ({"precision": "int8", "llm_precision": "fp32", "only": "vision"}, "fp32", True),
        ({"precision": "int8", "llm_precision": "fp32", "only": "llm"}, "fp32", False),
        ({"precision": "int8", "only": "llm"}, "int8", True),
        ({"llm_precision": "int4:64"}, "int4:64", True),
        ({"llm_precision": "int4", "only": "llm"}, "int4", True),
        ({"llm_precision": "int4", "only": "vision"}, "int4", False),
        ({"llm_precision": "fp16", "precision": "fp32"}, "fp16", False),
    ],
)
def test_what_is_quantised_follows_from_the_precisions_and_the_components(options, of_llm, quantizes):
    chosen = ExportOptions(**options)
    assert (chosen.of_llm, chosen.quantizes) == (of_llm, quantizes)


@pytest.mark.parametrize(
    ("files", "force", "named"),
    [
        (
            {"manifest.json": "{}", "a.txt": "", "b.txt": "", "c.txt": ""},
            True,
            ["a.txt and 3 more"],
        ),
        (
            {"manifest.json": '{"schema_version": 1, "files": {}}', "a.txt": "", "b.txt": ""},
            True,
            ["a.txt and 1 more"],
        ),
        (
            {"manifest.json": '{"schema_version": 1, "files": {}}', "a.txt": ""},
            True,
            ["a.txt"],
        ),
        ({"manifest.json": '{"schema_version": 1, "files": {}}'}, False, ["--force"]),
        ({"a.txt": ""}, False, ["other files", "--out"]),
    ],
)
def test_a_directory_that_must_not_be_replaced(tmp_path, files, force, named):
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    with pytest.raises(ExportError, match=naming(tmp_path, *named)):
        pipeline._output_directory(ExportOptions(out=str(tmp_path), force=force))


def test_a_directory_that_may_be_written(tmp_path, monkeypatch):
    (tmp_path / "empty").mkdir()
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "manifest.json").write_text('{"schema_version": 1, "files": {}}')
    for name, force in (("new", False), ("empty", False), ("old", True)):
        assert pipeline._output_directory(ExportOptions(out=str(tmp_path / name), force=force)) == tmp_path / name
    monkeypatch.chdir(tmp_path)
    assert str(pipeline._output_directory(ExportOptions(model="some-family"))) == "bundles/some-family"


def test_versions_are_those_of_the_tools_that_are_installed(monkeypatch):
    def version(tool):
        if tool in ("tensorrt-rtx", "onnxscript"):
            raise metadata.PackageNotFoundError(tool)
        return f"{tool} 1"

    monkeypatch.setattr(manifests.metadata, "version", version)
    versions = manifests._versions()
    tools = ["torch", "transformers", "onnx", "onnx-graphsurgeon", "onnxruntime", "polygraphy"]
    assert list(versions) == ["st-gridpool", "python", *tools]
    assert versions["polygraphy"] == "polygraphy 1" and versions["python"].count(".") == 2


@pytest.mark.parametrize("demo", [True, False])
def test_an_export_of_the_small_checkpoint_says_how_to_take_a_real_one(monkeypatch, tmp_path, calls, capsys, demo):
    monkeypatch.setattr(pipeline, "open_checkpoint", lambda name: SimpleNamespace(id="i", demo=demo))
    export(monkeypatch, tmp_path, calls, only="vision")
    line = naming("small checkpoint", "--checkpoint hub")
    assert any(line.match(one) for one in capsys.readouterr().err.splitlines()) == demo


@pytest.mark.parametrize(("options", "message"), [({"frames": 0}, "frames is 0"), ({"place": "after"}, "place is")])
def test_options_are_checked_before_the_family_is_asked(monkeypatch, tmp_path, calls, options, message):
    with pytest.raises(ExportError, match=message):
        export(monkeypatch, tmp_path, calls, **options)
    assert calls == []


@pytest.mark.parametrize(("below", "message"), [("", "a is a file"), ("b", "can't be written")])
def test_a_file_in_the_way_of_the_bundle_is_named(tmp_path, below, message):
    (tmp_path / "a").write_text("mine")
    with pytest.raises(UserError, match=message):
        pipeline._output_directory(ExportOptions(out=str(tmp_path / "a" / below), force=True))
