"""Options of an export that can't be met: refused by one line, most of them before torch is imported, nothing written."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from refusal import error_line, names_under, naming, refused

from export.__main__ import main, summary
from export.demo import CHECKPOINT
from export.options import ExportOptions
from export.pipeline import export_bundle
from runtime.core.errors import ExportError


@pytest.fixture
def refusal(tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """Export into an empty directory, which must be refused before a graph is traced; the error line."""

    def traced(*args: object) -> None:
        raise AssertionError("the export went on to tracing")

    monkeypatch.setattr("export.vision.trace_vision", traced)

    def run(*args: str) -> str:
        (tmp_path / "out").mkdir()
        line = refused(capsys, main, "--out", tmp_path / "out" / "bundle", *args)
        assert names_under(tmp_path / "out") == []
        return line

    return run


@pytest.mark.parametrize(
    ("args", "named"),
    [
        ("--model llava-vo", ['"llava-vo"', '"llava-ov"']),
        ("--model gpt", ['"gpt"', "llava-ov"]),
        ("--compress st-gridpol", ['"st-gridpol"', '"st-gridpool"']),
        ("--compress nps:window=2", ['"nps"', '"nps:window=2"', '"nsp"']),
        ("--compress nsp:windw=2", ['"nsp"', '"windw"', '"window"']),
        ("--compress nsp:window=two", ['"nsp"', "window=two"]),
        ("--compress nsp:window=0", ['"nsp"', "window=0"]),
        ("--compress=", ["compression", "empty"]),
        ("--compress llava-ov:stride=2", ['"llava-ov"', '"llava-ov:stride=2"']),
        ("--compress evs+nsp", ['"nsp"', '"evs"', "last"]),
        ("--frames 0", ["--frames", 0, 1, 1024]),
        ("--frames -3", ["--frames", -3, 1, 1024]),
        ("--frames 100000", ["--frames", 100000, 1, 1024]),
        ("--frames many", ["--frames", "int", "'many'"]),
        ("--max-context 0", ["--max-context", 0, 1]),
        ("--tensorrt 9.9", ['"9.9"', "10.3"]),
        ("--precision fp8", ["--precision", "'fp8'"]),
        ("--place after", ["--place", "'after'"]),
        ("--attention sparse", ["--attention", "'sparse'"]),
        ("--only text", ["--only", "'text'"]),
        ("--error-budget little", ["--error-budget", "float", "'little'"]),
        ("--error-budget inf --precision int8", ["--error-budget", "inf", 0, 100]),
        ("--max-context 1.5", ["--max-context", "int", "'1.5'"]),
        ("--split --frames 1", ["--split", "1 frame", "--frames 2"]),
        ("--precision int8 --frames 1", ["--precision int8", "1 frame", "--frames 2"]),
        ("--split --only llm", ["--split", "--only llm"]),
        ("--calibrate .", ["--calibrate", "--precision int8", "--llm-precision int8 or int4"]),
        ("--calibrate=", ["--calibrate", "directory"]),
        ("--error-budget 0.1 --only llm", ["--error-budget", "--llm-precision int8 or int4"]),
        ("--error-budget 0.1 --precision fp16 --only vision", ["--error-budget", "--precision int8"]),
        ("--compres nsp", ["--compres", '"--compress"']),
    ],
)
def test_a_bad_value_is_one_line(refusal: Callable[..., str], args: str, named: list[Any]) -> None:
    line = refusal(*args.split())
    assert naming(*named).match(line), line


@pytest.mark.parametrize(
    ("line", "options"),
    [
        ("", ExportOptions()),
        (
            "--model m --checkpoint c --out o --frames 3 --compress nsp --place before-projector --precision int8 --llm-precision int4:64 "
            "--calibrate v --error-budget 0.25 --attention standard --tensorrt 10.3 --max-context 99 --only llm --input frames:2x3 "
            "--split --force",
            ExportOptions(
                "m", "c", "o", 3, "nsp", "before-projector", "int8", "int4:64", "v", 0.25, "standard", "10.3", 99, "llm", "frames:2x3",
                True, True,
            ),
        ),
    ],
)  # fmt: skip
def test_words_of_the_command_line_are_the_options(monkeypatch, capsys, line: str, options: ExportOptions) -> None:
    asked: list[ExportOptions] = []

    def export(options: ExportOptions):
        asked.append(options)
        raise ExportError("nothing is exported in this test")

    monkeypatch.setattr("export.pipeline.export_bundle", export)
    assert refused(capsys, main, *line.split()) == "nothing is exported in this test"
    assert asked == [options]


FACTS = {
    "bundle": "bundles/b",
    "frames": 16,
    "patch_tokens": 1296,
    "tokens_per_clip": 257,
    "precision": "int8",
    "llm_precision": "int4",
    "bytes": 2_340_000,
    "compression": {"spec": "nsp:window=2", "place": "after-projector"},
    "passes": [
        {"graph": "vision", "pass": "fold", "rewrites": 3, "note": ""},
        {"graph": "vision", "pass": "int64", "rewrites": 0, "note": "nothing"},
        {"graph": "llm/decoder", "pass": "names", "rewrites": 7, "note": "all of them"},
    ],
    "tensorrt": {"vision table": "10.3 takes it"},
    "verified": [{"stage": "vision/encoder", "error": 0.00012345, "ok": True}],
}


def test_the_summary_says_what_was_written_rewritten_and_verified() -> None:
    assert summary(SimpleNamespace(as_dict=lambda: FACTS)).splitlines() == [
        "bundles/b: 16 frames, 1296 patch tokens -> 257 visual tokens (5.0:1), vision int8, LLM int4, 2.3 MB",
        "compression  nsp:window=2 after-projector",
        "pass         vision: fold 3",
        "pass         llm/decoder: names 7  all of them",
        "TensorRT     vision table: 10.3 takes it",
        "verified     vision/encoder           error 1.2e-04",
    ]
    same = SimpleNamespace(as_dict=lambda: FACTS | {"llm_precision": "int8"})
    assert "(5.0:1), int8, 2.3 MB" in summary(same)


def test_the_result_is_on_stdout_as_text_or_as_json(monkeypatch, capsys) -> None:
    monkeypatch.setattr("export.pipeline.export_bundle", lambda options: SimpleNamespace(as_dict=lambda: FACTS))
    assert main([]) == 0
    assert capsys.readouterr().out.startswith("bundles/b: 16 frames, ")
    assert main(["--json"]) == 0
    assert json.loads(capsys.readouterr().out) == FACTS


@pytest.mark.parametrize(
    "option",
    [
        "--checkpoint DIR|HUB_ID", "--out DIR", "--frames N", "--compress PRESET|SPEC", "--llm-precision fp32|fp16|int8|int4[:BLOCK]",
        "--calibrate DIR", "--error-budget SHARE", "--tensorrt VERSION", "--max-context N", "--input pixels|frames[:HxW]",
        "model family (default: llava-ov)", "(default: pixels)",
    ],
)  # fmt: skip
def test_help_says_what_an_option_takes(capsys, option: str) -> None:
    with pytest.raises(SystemExit):
        main(["--help"])
    assert option in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize(
    ("spec", "window"), [("nsp:window=10", "10"), ("avgpool:window=30", "30"), ("ptg:sizes=4/4,strides=2/4/8", "strides")]
)
def test_a_spec_that_does_not_fit_the_grid(refusal: Callable[..., str], spec: str, window: str) -> None:
    line = refusal("--compress", spec)
    assert window in line
    assert spec.partition(":")[0] in line


def test_a_context_that_the_clip_overflows_says_both_numbers(refusal: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> None:
    def load_llm(*args: object) -> None:
        raise AssertionError("the LLM was read")

    monkeypatch.setattr("export.families.llava_ov.load_llm", load_llm)
    line = refusal("--max-context", "257")
    assert naming("--max-context", 257, "257 visual tokens").match(line), line


def test_a_context_beyond_the_llm_says_both_numbers(refusal: Callable[..., str]) -> None:
    assert naming("--max-context", 5000, 4096).match(refusal("--max-context", "5000"))


def test_frames_that_no_context_holds_say_both_numbers(refusal: Callable[..., str]) -> None:
    assert naming("5121 visual tokens", 4096, "--frames", "--compress").match(refusal("--frames", "320"))


@pytest.mark.parametrize(
    ("option", "value"), [("precision", "fp64"), ("place", "after"), ("attention", "sparse"), ("only", "text")]
)
def test_the_library_refuses_what_the_command_line_does_not_offer(tmp_path: Path, option: str, value: str) -> None:
    with pytest.raises(ExportError, match=f"^{option} is '{value}'"):
        export_bundle(ExportOptions(out=str(tmp_path / "out"), **{option: value}))


def test_what_is_wrong_whatever_the_checkpoint_is_said_before_torch_is_imported() -> None:
    code = """
import sys
from export.__main__ import main, summary
from export.demo import CHECKPOINT
codes = [main(args.split()) for args in ("--model gpt", "--frames 0", "--max-context -1", "--frobnicate", "--out /dev/null")]
assert codes == [2] * 5, codes
assert not {"torch", "transformers", "onnx"} & sys.modules.keys()
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=Path(__file__).parents[2], check=False)
    assert done.returncode == 0, done.stderr
    assert all(line.startswith("error: ") for line in done.stderr.splitlines())


class TestOut:
    def test_a_file(self, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
        (tmp_path / "out").write_text("mine")
        assert naming(tmp_path / "out", "file", "--out").match(refused(capsys, main, "--out", tmp_path / "out", "--force"))
        assert (tmp_path / "out").read_text() == "mine"

    def test_below_a_file(self, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
        (tmp_path / "file").write_text("mine")
        line = refused(capsys, main, "--out", tmp_path / "file" / "bundle")
        assert naming(tmp_path / "file" / "bundle", f"{tmp_path / 'file'} is not a directory").match(line), line

    def test_a_directory_with_other_things(self, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
        (tmp_path / "thesis.tex").write_text("mine")
        assert naming(tmp_path, "other files").match(refused(capsys, main, "--out", tmp_path, "--force"))
        assert names_under(tmp_path) == ["thesis.tex"]

    def test_a_manifest_of_something_else_is_no_bundle_to_replace(self, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
        (tmp_path / "manifest.json").write_text('{"name": "a web page"}')
        (tmp_path / "index.html").write_text("mine")
        line = refused(capsys, main, "--out", tmp_path, "--force")
        assert naming(tmp_path, "index.html and 1 more").match(line), line
        assert names_under(tmp_path) == ["index.html", "manifest.json"]

    def test_an_existing_bundle_needs_force(self, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
        (tmp_path / "manifest.json").write_text(json.dumps({"schema_version": 1, "files": {}}))
        assert naming(tmp_path, "--force").match(refused(capsys, main, "--out", tmp_path))

    def test_force_does_not_delete_what_somebody_put_into_the_bundle(self, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
        (tmp_path / "manifest.json").write_text(json.dumps({"schema_version": 1, "files": {}}))
        (tmp_path / "engines").mkdir()
        (tmp_path / "engines" / "vision.engine").write_bytes(b"built")  # what a build wrote may go
        (tmp_path / "answers.txt").write_text("mine")
        assert naming(tmp_path, "answers.txt").match(refused(capsys, main, "--out", tmp_path, "--force"))
        assert (tmp_path / "answers.txt").read_text() == "mine"

    @pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
    def test_no_permission(self, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
        tmp_path.chmod(0o500)
        assert naming(tmp_path, "permission").match(refused(capsys, main, "--out", tmp_path / "bundle"))

    @pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs Linux's /proc, where nobody may write")
    def test_a_file_system_that_lets_nobody_write(self, capsys: pytest.CaptureFixture) -> None:
        assert naming("/proc/bundle").match(refused(capsys, main, "--out", "/proc/bundle"))


def test_a_process_of_its_own_says_the_same(cli: Callable[..., subprocess.CompletedProcess], tmp_path: Path) -> None:
    done = cli("export", "--compress", "st-gridpol", "--out", tmp_path / "out")
    assert (done.returncode, done.stdout) == (2, "")
    assert naming('"st-gridpol"', '"st-gridpool"').match(error_line(done.stderr))


@pytest.mark.parametrize(
    ("args", "said"), [((), 1), (("--checkpoint", CHECKPOINT), 0)], ids=["the shipped checkpoint", "one that was named"]
)
def test_an_export_without_a_checkpoint_says_that_it_is_of_the_small_one(tmp_path, capsys, args, said):
    assert main(["--out", str(tmp_path / "bundle"), "--max-context", "270", *map(str, args)]) == 2
    line = naming("small checkpoint", "--checkpoint llava-hf/llava-onevision-qwen2-0.5b-ov-hf")
    assert sum(bool(line.match(one)) for one in capsys.readouterr().err.splitlines()) == said
