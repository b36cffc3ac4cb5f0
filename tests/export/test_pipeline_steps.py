"""What an export does in which order, and what its manifest says: with stand-ins for the two halves."""

from __future__ import annotations

import json
from importlib import metadata
from types import SimpleNamespace
from typing import Any

import pytest

from export import halves, pipeline
from export.options import ExportOptions
from export.pipeline import export_bundle
from export.preflight import Plan
from export.quantize.report import Report
from export.verify import StageResult
from runtime.core.errors import ExportError, SpecError, UserError

CHECKPOINT = SimpleNamespace(id="somebody/checkpoint", demo=False)
REPORT = Report("int8", 0.01, 0.05, "clips", [])


class StopHereError(Exception):
    """What a stand-in raises where the rest does not matter."""


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """What `export` does below, in order."""
    noted: list[tuple[Any, ...]] = []

    class Vision:
        def __init__(self, *arguments: Any):
            noted.append(("Vision", *arguments))

        def eval(self) -> str:
            return "module in eval mode"

    def export_vision(directory, module, source, frames, options):
        noted.append(("export_vision", module, source, frames))
        (directory / "vision.onnx").write_text("graph")
        quantized = {"vision": REPORT} if options.precision == "int8" else {}
        return halves.Half(
            [{"name": "s"}], [{"pass": "v"}], {"v": "parsed"}, [StageResult("v", 0.5, True)], {}, quantized, "tokens of the clip"
        )

    def export_llm(directory, language, checkpoint, options, max_context):
        noted.append(("export_llm", language, checkpoint, max_context))
        (directory / "llm").mkdir()
        (directory / "llm" / "tokenizer.json").write_text("tokens")
        return halves.Half(report=[{"pass": "l"}], tensorrt={"l": "parsed"}, facts={"layers": 2, "precision": "fp32"})

    def check_llm(half, bundle, language, visual_tokens):
        noted.append(("check_llm", bundle.manifest, language, visual_tokens))
        half.verified.append(StageResult("l", 0.25, True))
        return "reference"

    def quantize_llm_half(half, bundle, language, expected, options):
        noted.append(("quantize_llm_half", bundle.manifest, language, expected))
        half.facts = {"layers": 2, "precision": "int8"}
        half.report = [*half.report, {"pass": "q"}]
        half.quantized["llm/decoder"] = REPORT

    def prompt(bundle):
        noted.append(("Prompt", bundle.manifest.prompt))
        return SimpleNamespace(template=SimpleNamespace(prefix_and_suffix=lambda: bundle.manifest.prompt["around"]))

    monkeypatch.setattr("export.trace.Vision", Vision)
    monkeypatch.setattr("export.weights.weights_sha256", lambda checkpoint: "digest")
    for stand_in in (export_vision, export_llm, check_llm, quantize_llm_half):
        monkeypatch.setattr(halves, stand_in.__name__, stand_in)
    monkeypatch.setattr(pipeline, "Prompt", prompt)
    monkeypatch.setattr(pipeline, "_versions", lambda: {"torch": "2"})
    monkeypatch.setattr(pipeline, "open_checkpoint", lambda name: CHECKPOINT)
    return noted


def export(monkeypatch, tmp_path, calls, source=None, around=None, **options) -> pipeline.ExportResult:
    language = SimpleNamespace(prompt={"video_token": "<video>", "chat_template": "{{ text }}", "around": around})
    kind = SimpleNamespace(
        COMPRESS="nsp",
        HUB_ID="hub",
        check_llm_weights=lambda checkpoint, values=False: calls.append(("check_llm_weights", checkpoint, values)),
        load_vision=lambda checkpoint: "source",
        load_llm=lambda checkpoint: calls.append(("load_llm", checkpoint)) or language,
    )
    info = SimpleNamespace(grid=(9, 7), hidden_size=4, preprocessing={"size": [2, 2]})
    taken = None if source is None else SimpleNamespace(source=source)
    plan = Plan("preset", SimpleNamespace(spec="spec"), info, 3, taken, 21, 99, ["min_new_tokens"])
    monkeypatch.setattr(pipeline, "family", lambda name: kind)
    monkeypatch.setattr(pipeline, "make_plan", lambda *arguments: plan)
    return export_bundle(ExportOptions(out=str(tmp_path / "b"), **options))


def names(calls: list[tuple[Any, ...]]) -> list[str]:
    return [name for name, *_ in calls]


VISION_STEPS = ["Vision", "export_vision"]
LLM_STEPS = ["load_llm", "export_llm", "check_llm", "Prompt"]


@pytest.mark.parametrize(
    ("options", "steps"),
    [
        ({}, ["check_llm_weights", *VISION_STEPS, *LLM_STEPS]),
        ({"only": "vision"}, VISION_STEPS),
        ({"only": "llm"}, LLM_STEPS),
        ({"only": "llm", "precision": "int8"}, [*LLM_STEPS[:3], "quantize_llm_half", "Prompt"]),
        ({"only": "llm", "precision": "int8", "llm_precision": "fp32"}, LLM_STEPS),
    ],
)
def test_the_steps_of_an_export(monkeypatch, tmp_path, calls, options, steps):
    export(monkeypatch, tmp_path, calls, **options)
    assert names(calls) == steps
    assert [call for call in calls if call[0] == "check_llm_weights"] == [("check_llm_weights", CHECKPOINT, True)] * ("only" not in options)  # fmt: skip


def test_what_the_halves_are_made_of(monkeypatch, tmp_path, calls):
    export(monkeypatch, tmp_path, calls, place="before-projector")
    of = {name: call for name, *call in calls}
    compress, place, taken = of["Vision"][1:]
    assert (of["Vision"][0], compress.spec, place, taken) == ("source", "spec", "before-projector", None)
    assert of["export_vision"] == ["module in eval mode", "source", 3]
    language = of["export_llm"][0]
    assert of["export_llm"][1:] == [CHECKPOINT, 99]
    manifest = of["check_llm"][0]
    assert of["check_llm"][1:] == [language, "tokens of the clip"]
    assert manifest.files == {"vision.onnx": {}, "llm/tokenizer.json": {}} and manifest.limits == {"max_context": 99}
    assert manifest.llm == {"layers": 2, "precision": "fp32"} and manifest.report == [{"pass": "v"}, {"pass": "l"}]
    assert manifest.prompt == {"video_token": "<video>", "chat_template": "chat_template.jinja", "around": None}


@pytest.mark.parametrize("source", [None, (40, 60)])
@pytest.mark.parametrize(("only", "llm"), [(None, True), ("vision", False)])
def test_the_manifest_of_an_export(monkeypatch, tmp_path, calls, source, only, llm):
    result = export(monkeypatch, tmp_path, calls, source, around=["before", "after"], only=only, place="before-projector")
    values = json.loads((tmp_path / "b" / "manifest.json").read_text())
    files = values.pop("files")
    prompt = {"video_token": "<video>", "chat_template": "chat_template.jinja", "around": ["before", "after"]}
    assert values == {
        "schema_version": 1,
        "family": "llava-ov",
        "checkpoint": {"id": "somebody/checkpoint", "sha256": "digest"},
        "compression": {"preset": "preset", "spec": "spec", "place": "before-projector"},
        "frames": 3,
        "grid": [9, 7],
        "tokens_per_clip": 21,
        "hidden_size": 4,
        "preprocessing": {"size": [2, 2]} if source is None else {"size": [2, 2], "frames": [40, 60]},
        "prompt": prompt | {"around_question": ["before", "after"]} if llm else {},
        "llm": {"layers": 2, "precision": "fp32"} if llm else {},
        "precision": "fp32",
        "opset": 20,
        "limits": {"max_context": 99} if llm else {},
        "stages": [{"name": "s"}],
        "report": [{"pass": "v"}, {"pass": "l"}] if llm else [{"pass": "v"}],
        "versions": {"torch": "2"},
    }
    assert set(files) == {"vision.onnx", "llm/tokenizer.json"} if llm else {"vision.onnx"}
    facts = result.as_dict()
    assert facts["bundle"] == str(tmp_path / "b") and facts["patch_tokens"] == 3 * 9 * 7 and facts["tokens_per_clip"] == 21
    assert facts["max_context"] == (99 if llm else None) and facts["bytes"] == (len("graph") + len("tokens") * llm)
    assert facts["tensorrt"] == ({"v": "parsed", "l": "parsed"} if llm else {"v": "parsed"})
    rows = [{"stage": "v", "error": 0.5, "ok": True}, {"stage": "l", "error": 0.25, "ok": True}]
    assert facts["verified"] == rows[: 1 + llm] and facts["not_applied"] == ["min_new_tokens"]
    assert (facts["checkpoint"], facts["compression"]) == (values["checkpoint"], values["compression"])
    assert (facts["precision"], facts["llm_precision"], facts["passes"]) == ("fp32", "fp32", values["report"])


def test_a_template_that_changes_questions_is_not_taken_apart(monkeypatch, tmp_path, calls):
    prompt = export(monkeypatch, tmp_path, calls, around=None, only="llm").bundle.manifest.prompt
    assert prompt == {"video_token": "<video>", "chat_template": "chat_template.jinja", "around": None}


@pytest.mark.parametrize(
    ("options", "graphs"),
    [
        ({}, None),
        ({"precision": "int8"}, {"vision", "llm/decoder"}),
        ({"precision": "int8", "only": "vision"}, {"vision"}),
        ({"llm_precision": "int4"}, {"llm/decoder"}),
    ],
)
def test_what_was_quantised_stands_in_a_file_of_its_own(monkeypatch, tmp_path, calls, options, graphs):
    result = export(monkeypatch, tmp_path, calls, **options)
    file = tmp_path / "b" / "quantization.json"
    assert ("quantization.json" in result.bundle.manifest.files) == file.exists() == (graphs is not None)
    assert graphs is None or set(json.loads(file.read_text())) == graphs
    if "llm/decoder" in (graphs or ()):
        assert result.bundle.manifest.llm == {"layers": 2, "precision": "int8"}
        assert result.bundle.manifest.report == [{"pass": "v"}, {"pass": "l"}, {"pass": "q"}]
        quantized = next(call for call in calls if call[0] == "quantize_llm_half")
        assert quantized[1].files.keys() == {"vision.onnx", "llm/tokenizer.json"} and quantized[3] == "reference"


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
def test_the_manifest_names_the_higher_opset_of_the_two_halves(monkeypatch, tmp_path, calls, options, opset):
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
def test_what_is_quantised_follows_from_the_precisions_and_the_halves(options, of_llm, quantizes):
    chosen = ExportOptions(**options)
    assert (chosen.of_llm, chosen.quantizes) == (of_llm, quantizes)


@pytest.mark.parametrize(
    ("files", "force", "message"),
    [
        ({"manifest.json": "{}", "a.txt": "", "b.txt": "", "c.txt": ""}, True, r"holds a\.txt and 3 more, no part of the bundle"),
        (
            {"manifest.json": '{"schema_version": 1, "files": {}}', "a.txt": "", "b.txt": ""},
            True,
            r"holds a\.txt and 1 more, no part",
        ),
        ({"manifest.json": '{"schema_version": 1, "files": {}}', "a.txt": ""}, True, r"holds a\.txt, no part of the bundle"),
        ({"manifest.json": '{"schema_version": 1, "files": {}}'}, False, "holds a bundle; pass --force"),
        ({"a.txt": ""}, False, "with other things in it"),
    ],
)
def test_a_directory_that_must_not_be_replaced(tmp_path, files, force, message):
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    with pytest.raises(ExportError, match=message):
        pipeline._goal(ExportOptions(out=str(tmp_path), force=force))


def test_a_directory_that_may_be_written(tmp_path, monkeypatch):
    (tmp_path / "empty").mkdir()
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "manifest.json").write_text('{"schema_version": 1, "files": {}}')
    for name, force in (("new", False), ("empty", False), ("old", True)):
        assert pipeline._goal(ExportOptions(out=str(tmp_path / name), force=force)) == tmp_path / name
    monkeypatch.chdir(tmp_path)
    assert str(pipeline._goal(ExportOptions(model="some-family"))) == "bundles/some-family"


def test_versions_are_those_of_the_tools_that_are_installed(monkeypatch):
    def version(tool):
        if tool in ("tensorrt-rtx", "onnxscript"):
            raise metadata.PackageNotFoundError(tool)
        return f"{tool} 1"

    monkeypatch.setattr(pipeline.metadata, "version", version)
    versions = pipeline._versions()
    tools = ["torch", "transformers", "onnx", "onnx-graphsurgeon", "onnxruntime", "polygraphy"]
    assert list(versions) == ["st-gridpool", "python", *tools]
    assert versions["polygraphy"] == "polygraphy 1" and versions["python"].count(".") == 2


@pytest.mark.parametrize("demo", [True, False])
def test_an_export_of_the_small_checkpoint_says_how_to_take_a_real_one(monkeypatch, tmp_path, calls, capsys, demo):
    monkeypatch.setattr(pipeline, "open_checkpoint", lambda name: SimpleNamespace(id="i", demo=demo))
    export(monkeypatch, tmp_path, calls, only="vision")
    line = "exporting the small checkpoint that ships with this package; for a real one: --checkpoint hub"
    assert (line in capsys.readouterr().err.splitlines()) == demo


@pytest.mark.parametrize(("options", "message"), [({"frames": 0}, "--frames is 0"), ({"place": "after"}, "--place is")])
def test_options_are_checked_before_the_family_is_asked(monkeypatch, tmp_path, calls, options, message):
    with pytest.raises(ExportError, match=message):
        export(monkeypatch, tmp_path, calls, **options)
    assert calls == []


@pytest.mark.parametrize(("below", "message"), [("", "a is a file; choose another --out"), ("b", "can't be written")])
def test_a_file_in_the_way_of_the_bundle_is_named(tmp_path, below, message):
    (tmp_path / "a").write_text("mine")
    with pytest.raises(UserError, match=message):
        pipeline._goal(ExportOptions(out=str(tmp_path / "a" / below), force=True))
