"""What a user can do wrong ends both runtimes with the same exit code and kind of error, and both name what is wrong."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cpp_build import assert_same_error, error_of, gridpool, probe, python, refusal

from runtime.bundle import Bundle
from runtime.bundle.schema import check

QUESTION = "which shape appears last ?"


@pytest.fixture(scope="module")
def places(bundle_path: Path, clip: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("faults")
    for name, content in {"text.mp4": b"no video", "empty.mp4": b"", "cut.mp4": clip.read_bytes()[:9000]}.items():
        (folder / name).write_bytes(content)
    (folder / "nothing").mkdir()
    manifest = json.loads((shutil.copytree(bundle_path, folder / "layers") / "manifest.json").read_text(encoding="utf-8"))
    manifest["llm"]["layers"] += 1
    (folder / "layers" / "manifest.json").write_text(json.dumps(manifest))
    return {"BUNDLE": bundle_path, "CLIP": clip, "FOLDER": folder}


@pytest.mark.parametrize(
    ("words", "named"),
    [
        ("run BUNDLE FOLDER/none.mp4 Q", "none.mp4"),
        ("run BUNDLE FOLDER/text.mp4 Q", "text.mp4"),
        ("run BUNDLE FOLDER/empty.mp4 Q", "empty.mp4"),
        ("run BUNDLE FOLDER/cut.mp4 Q", "cut.mp4"),
        ("run BUNDLE FOLDER Q", "directory"),
        ("run BUNDLE/none CLIP Q", "/none"),
        ("run FOLDER/nothing CLIP Q", "manifest.json"),
        ("run CLIP CLIP Q", ".mp4 is a file"),
        ("run FOLDER/layers CLIP Q", "layers"),
        ("run BUNDLE CLIP EMPTY", "question"),
        ("run BUNDLE CLIP LONG", "positions"),
        ("run BUNDLE CLIP BYTES", "question"),
        ("run BUNDLE CLIP Q --temperature -1", "temperature"),
        ("run BUNDLE CLIP Q --top-p 0", "top"),
        ("run BUNDLE CLIP Q --max-new-tokens 0", "0"),
        ("run BUNDLE CLIP Q --threads x", "--threads"),
        ("run BUNDLE CLIP Q --top_p 0.5", "--top_p"),
        ("run BUNDLE CLIP Q --seed 1.5", "--seed"),
        ("run BUNDLE CLIP Q --device tpu", "tpu"),
        ("run BUNDLE CLIP Q --backend tensorrt", "tensorrt"),
        ("run BUNDLE CLIP Q more", "more"),
        ("run BUNDLE CLIP Q --seed", "--seed"),
        ("run BUNDLE CLIP", "question"),
        ("tokens BUNDLE CLIP", "--output"),
        ("tokens BUNDLE CLIP -o FOLDER", "directory"),
        ("tokens BUNDLE CLIP -o CLIP/out.npz", "out.npz"),
        ("tokens BUNDLE FOLDER/text.mp4 -o FOLDER/out.npz", "text.mp4"),
        ("bench BUNDLE --rounds 0", "0"),
        ("bench BUNDLE --max-new-tokens 0", "0"),
        ("bench BUNDLE --max-new-tokens 9999", "positions"),
        ("bench BUNDLE --video FOLDER/text.mp4", "text.mp4"),
        ("answer BUNDLE CLIP Q", "answer"),
    ],
)
def test_both_runtimes_refuse_and_name_what_is_wrong(words: str, named: str, cpp: Path, places: dict[str, Path]):
    texts: dict[str, Any] = {
        "Q": QUESTION,
        "EMPTY": " \u2003",
        "LONG": "what " * 2000,
        "BYTES": b"\xff ?",
    }
    typed = []
    for word in words.split():
        for name, path in places.items():
            word = word.replace(name, str(path)) if isinstance(word, str) and word.split("/")[0] == name else word
        typed.append(texts.get(word, word))
    for done in (gridpool(cpp, *typed), python(*typed)):
        assert named in refusal(done)


@pytest.mark.parametrize("device", ["auto", "cpu"])
def test_both_runtimes_refuse_a_decoder_with_flash_attention_on_a_cpu(
    device: str, cpp: Path, bundle_path: Path, clip: Path, tmp_path: Path
):
    if device == "auto" and Path("/dev/nvidia0").exists():
        pytest.skip("needs a machine without a GPU")
    manifest = json.loads((shutil.copytree(bundle_path, tmp_path / "flash") / "manifest.json").read_text(encoding="utf-8"))
    manifest["llm"]["attention"] = "flash"
    (tmp_path / "flash" / "manifest.json").write_text(json.dumps(manifest))
    words = ("run", tmp_path / "flash", clip, QUESTION, "--device", device)
    for done in (gridpool(cpp, *words), python(*words)):
        assert all(named in refusal(done) for named in ("flash", "--device cuda", "--attention portable"))


def test_help_is_printed_on_stdout(cpp: Path):
    for words in ((), ("run",), ("tokens",), ("bench",), ("watch",)):
        done = gridpool(cpp, *words, "--help", library=None)
        assert (done.returncode, done.stderr) == (0, "")
        assert " ".join(("Usage: gridpool", *words)) in done.stdout


def test_a_repeated_option_counts_the_last_time(cpp: Path, bundle_path: Path):
    done = gridpool(cpp, "bench", bundle_path, "--rounds", "5", "--rounds", "0")
    assert '"0"' in refusal(done)


_PROMPT = {"chat_template": "x", "video_token": "y", "video_token_id": 4, "eos_token_ids": [2]}
_LLM = {"layers": 4, "kv_heads": 2, "head_dim": 32}
_PREPROCESSING = {"size": [9, 9], "resample": 3, "rescale_factor": 1, "image_mean": 0, "image_std": 1}
_FILE = {"size": 1, "sha256": "x"}
_SECTIONS = ("family", "frames", "grid", "prompt", "llm", "files", "stages", "precision", "limits", "opset")

# (field, its value or None for a manifest without it, what both messages name)
FAULTS: list[tuple[str, Any, str]] = [
    *[(field, None, field) for field in (*_SECTIONS, "schema_version")],
    *[("schema_version", value, "schema") for value in (0, 2, "1", True)],
    *[("frames", value, "frames") for value in (0, -1, True, 1.5, "16", [16], 2**31, 2**63, 2**64, 1e300)],
    ("frames", 10**400, "manifest.json"),  # not JSON to one of them
    *[("grid", value, "grid") for value in ([9], [9, 0], [9, "9"], [True, 9], [2**31, 2**31])],
    *[("llm", value, "llm") for value in ({}, {"layers": 4}, _LLM | {"layers": 0}, _LLM | {"layers": 2**62})],
    *[("llm", _LLM | {"precision": value}, "llm") for value in ("int2", 4)],
    ("checkpoint", {"id": "x"}, "checkpoint"),
    ("compression", {"preset": "x", "spec": 1, "place": "x"}, "compression"),
    ("precision", "int4", "precision"),
    *[("limits", {"max_context": value}, "limits") for value in (0, 2**40)],
    ("files", {}, "files"),
    ("files", {"vision.onnx": {"size": "1", "sha256": "x"}}, "files"),
    ("files", {"vision.onnx": _FILE}, "llm"),
    ("files", {"../vision.onnx": _FILE, "llm/decoder.onnx": _FILE}, "../vision.onnx"),
    ("files", {"it's\n/../../x": _FILE, "llm/decoder.onnx": _FILE}, "/../../x"),
    *[("prompt", _PROMPT | {"video_token_id": value}, "prompt") for value in ("4", 2**64 - 1, 2**40)],
    *[("prompt", _PROMPT | {"eos_token_ids": [value]}, "prompt") for value in (2.5, 2**64 - 1)],
    ("prompt", _PROMPT | {"around_question": ["a"]}, "prompt"),
    *[("prompt", _PROMPT | {"repetition_penalty": value}, "prompt") for value in (0, -1.5, 9e-4, 1001, "1.1", True, None)],
    ("preprocessing", {}, "preprocessing"),
    *[
        ("preprocessing", _PREPROCESSING | {field: value}, field)
        for field, value in (
            ("size", [9]),
            ("size", [0, 9]),
            ("size", [9, 32769]),
            ("size", [2**33, 2**33]),
            ("frames", [9]),
            ("frames", None),
            ("frames", [32769, 9]),
            ("resample", "bicubik"),
            ("resample", 6),
            ("resample", True),
            ("image_mean", [1, 2]),
            ("image_mean", None),
            ("image_mean", 1e300),
            ("image_std", [1, 0, 1]),
            ("rescale_factor", "x"),
            ("rescale_factor", 1e300),
        )
    ],
]


def _copy(bundle_path: Path, folder: Path, manifest: str) -> Path:
    """A copy of a bundle with another manifest; its files are links, but for one that a test may list under another name."""
    shutil.copytree(bundle_path, folder, copy_function=os.link)
    (folder / "manifest.json").unlink()
    (folder / "manifest.json").write_text(manifest)
    return folder


def _python_error(path: Path) -> dict[str, str]:
    def open_bundle() -> None:
        manifest = path / "manifest.json"
        if manifest.exists():
            check(json.loads(manifest.read_text()), str(manifest))
        Bundle.open(path)

    return error_of(open_bundle)


def test_a_wrong_manifest_is_refused_for_the_same_field(cpp: Path, bundle_path: Path, tmp_path: Path):
    good = json.loads((bundle_path / "manifest.json").read_text())
    folders = []
    for index, (field, value, _) in enumerate(FAULTS):
        values = good | {field: value}
        if value is None:
            del values[field]
        folders.append(_copy(bundle_path, tmp_path / str(index), json.dumps(values)))
    for folder, answer, fault in zip(folders, probe(cpp, "open", map(str, folders)), FAULTS, strict=True):
        assert answer, f"C++ takes {fault}"
        assert_same_error(answer, _python_error(folder), fault[2])


def test_values_that_nest_without_end_are_refused_or_not_looked_at(cpp: Path, bundle_path: Path, tmp_path: Path):
    good, deep = json.loads((bundle_path / "manifest.json").read_text()), "[" * 200_000 + "]" * 200_000
    fields = [*good, "later"]
    folders = []
    for field in fields:
        text = json.dumps(good | {field: "DEEP"}).replace('"DEEP"', deep)
        folders.append(str(_copy(bundle_path, tmp_path / field, text)))
    text = json.dumps(good | {"preprocessing": good["preprocessing"] | {"resample": "DEEP"}}).replace('"DEEP"', deep)
    folders.append(str(_copy(bundle_path, tmp_path / "nested", text)))
    for field, answer in zip([*fields, "nested"], probe(cpp, "open", folders), strict=True):
        assert answer.get("kind") == (None if field == "later" else "BundleError"), (field, answer)
        assert len(answer.get("error", "")) < 500


def test_altered_files_are_refused_by_name(cpp: Path, bundle_path: Path, tmp_path: Path):
    size = (bundle_path / "vision.onnx").stat().st_size
    faults: dict[str, tuple[str, Callable[[Path], object]]] = {
        "missing": ("llm/tokenizer.json", lambda folder: (folder / "llm/tokenizer.json").unlink()),
        "cut": ("vision.onnx", lambda folder: (folder / "vision.onnx").write_bytes(b"x")),
        "altered": ("vision.onnx", lambda folder: (folder / "vision.onnx").write_bytes(bytes(size))),
        "no manifest": ("manifest.json", lambda folder: (folder / "manifest.json").unlink()),
        "none": ("", lambda folder: None),
    }
    for name, (named, break_it) in faults.items():
        folder = tmp_path / name
        shutil.copytree(bundle_path, folder)
        break_it(folder)
        (answer,) = probe(cpp, "open", [str(folder)])
        assert bool(answer) == (name != "none")
        assert_same_error(answer, _python_error(folder), named)


def test_manifests_that_are_not_json_are_refused(cpp: Path, tmp_path: Path):
    texts = [b"", b"{", b"[]", b"nul", b'{"a":}', b"\xff\xfe", b"[" * 100_000, b'{"schema_version": 1e999}', b"1" * 10_000]
    for index, text in enumerate(texts):
        (tmp_path / str(index)).mkdir()
        (tmp_path / str(index) / "manifest.json").write_bytes(text)
    for answer in probe(cpp, "open", [str(tmp_path / str(index)) for index in range(len(texts))]):
        assert answer["kind"] == "BundleError" and "manifest.json" in answer["error"]


def test_what_one_runtime_verified_the_other_does_not_hash_again(
    cpp: Path, bundle_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    folder = tmp_path / "bundle"
    shutil.copytree(bundle_path, folder)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert probe(cpp, "open", [str(folder)]) == [{}]
    (stamp,) = (tmp_path / "cache").rglob("*.json")
    written = stamp.read_text()
    Bundle.open(folder)
    assert stamp.read_text() == written  # Python did not hash again
    stamp.unlink()
    Bundle.open(folder)
    before = stamp.stat().st_mtime_ns
    assert probe(cpp, "open", [str(folder)]) == [{}]
    assert stamp.stat().st_mtime_ns == before  # and neither did C++


def test_a_clip_of_other_frames_than_the_graph_takes_is_refused(cpp: Path, frames_bundle_path: Path, clip: Path, tmp_path: Path):
    folder = tmp_path / "bundle"
    shutil.copytree(frames_bundle_path, folder)
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["preprocessing"]["frames"] = [50, 60]
    (folder / "manifest.json").write_text(json.dumps(manifest))
    words = ("tokens", folder, clip, "-o", tmp_path / "tokens.npz")
    for done in (gridpool(cpp, *words), python(*words)):
        assert "50x60" in refusal(done)
