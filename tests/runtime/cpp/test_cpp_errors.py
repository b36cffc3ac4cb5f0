"""What a user can do wrong is said by both runtimes in the same words, with the same exit code."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from cpp_build import gridpool, probe, python

from runtime.bundle import Bundle
from runtime.core.errors import UserError
from runtime.media.preprocess import Preprocessor

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
    "words",
    [
        "run BUNDLE FOLDER/none.mp4 Q",
        "run BUNDLE FOLDER/text.mp4 Q",
        "run BUNDLE FOLDER/empty.mp4 Q",
        "run BUNDLE FOLDER/cut.mp4 Q",
        "run BUNDLE FOLDER Q",
        "run BUNDLE/none CLIP Q",
        "run FOLDER/nothing CLIP Q",
        "run CLIP CLIP Q",
        "run FOLDER/layers CLIP Q",
        "run BUNDLE CLIP EMPTY",
        "run BUNDLE CLIP LONG",
        "run BUNDLE CLIP BYTES",
        "run BUNDLE CLIP Q --temperature -1",
        "run BUNDLE CLIP Q --top-p 0",
        "run BUNDLE CLIP Q --max-new-tokens 0",
        "run BUNDLE CLIP Q --threads x",
        "run BUNDLE CLIP Q --top_p 0.5",
        "run BUNDLE CLIP Q --seed 1.5",
        "run BUNDLE CLIP Q --backend tensorrt",
        "run BUNDLE CLIP",
        "tokens BUNDLE CLIP",
        "tokens BUNDLE CLIP -o FOLDER",
        "tokens BUNDLE CLIP -o CLIP/out.npz",
        "tokens BUNDLE FOLDER/text.mp4 -o FOLDER/out.npz",
        "bench BUNDLE --rounds 0",
        "bench BUNDLE --max-new-tokens 0",
        "bench BUNDLE --max-new-tokens 9999",
        "bench BUNDLE --video FOLDER/text.mp4",
    ],
)
def test_faults_read_like_those_of_python(words: str, cpp: Path, places: dict[str, Path]):
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
    said, expected = gridpool(cpp, *typed), python(*typed)
    assert said.returncode == expected.returncode == 2
    assert said.stdout == expected.stdout == ""
    assert said.stderr.replace("gridpool ", "python -m runtime ") == expected.stderr
    assert said.stderr.startswith("error: ") and said.stderr.count("\n") == 1


def _edited(name: str, value: Any) -> dict[str, Any]:
    return {name: value}


FAULTS: list[dict[str, Any]] = [
    *[
        _edited(name, None)
        for name in ("family", "frames", "grid", "prompt", "llm", "files", "stages", "precision", "limits", "opset")
    ],
    *[_edited("frames", value) for value in (0, -1, True, 1.5, "16", [16])],
    *[_edited("grid", value) for value in ([9], [9, 0], [9, "9"], [True, 9])],
    *[_edited("schema_version", value) for value in (0, 2, "1", None, True)],
    *[_edited("llm", value) for value in ({}, {"layers": 4}, {"layers": 0, "kv_heads": 2, "head_dim": 32})],
    *[_edited("llm", {"layers": 4, "kv_heads": 2, "head_dim": 32, "precision": value}) for value in ("int2", 4)],
    _edited("checkpoint", {"id": "x"}),
    _edited("compression", {"preset": "x", "spec": 1, "place": "x"}),
    _edited("precision", "int4"),
    _edited("limits", {"max_context": 0}),
    _edited("files", {}),
    _edited("files", {"vision.onnx": {"size": "1", "sha256": "x"}}),
    _edited("files", {"vision.onnx": {"size": 1, "sha256": "x"}}),
    _edited("files", {"../vision.onnx": {"size": 1, "sha256": "x"}, "vision.onnx": {"size": 1, "sha256": "x"}}),
    _edited("files", {"it's\n/../../x": {"size": 1, "sha256": "x"}, "vision.onnx": {"size": 1, "sha256": "x"}}),
    _edited("prompt", {"chat_template": "x", "video_token": "y", "video_token_id": "4", "eos_token_ids": [2]}),
    _edited("prompt", {"chat_template": "x", "video_token": "y", "video_token_id": 4, "eos_token_ids": [2.5]}),
    _edited(
        "prompt", {"chat_template": "x", "video_token": "y", "video_token_id": 4, "eos_token_ids": [2], "around_question": ["a"]}
    ),
    *[
        _edited(
            "prompt",
            {"chat_template": "x", "video_token": "y", "video_token_id": 4, "eos_token_ids": [2], "repetition_penalty": value},
        )
        for value in (0, -1.5, 9e-4, 1001, "1.1", True, None)
    ],
    _edited("preprocessing", {}),
    *[
        {"preprocessing": {"size": [9, 9], "resample": 3, "rescale_factor": 1, "image_mean": 0, "image_std": 1} | change}
        for change in (
            {"size": [9]},
            {"size": [0, 9]},
            {"frames": [9]},
            {"frames": None},
            {"resample": "bicubik"},
            {"resample": 6},
            {"resample": True},
            {"image_mean": [1, 2]},
            {"image_mean": None},
            {"image_std": [1, 0, 1]},
            {"rescale_factor": "x"},
        )
    ],
]


def _python_says(path: Path) -> str:
    try:
        Preprocessor(Bundle.open(path).manifest.preprocessing)
    except UserError as error:
        return str(error)
    return "nothing"


def test_a_wrong_manifest_is_refused_in_the_same_words(cpp: Path, bundle_path: Path, tmp_path: Path):
    good = json.loads((bundle_path / "manifest.json").read_text())
    folders = []
    for index, change in enumerate(FAULTS):
        folder = tmp_path / str(index)
        shutil.copytree(bundle_path, folder, copy_function=lambda source, goal: Path(goal).symlink_to(source))
        (folder / "manifest.json").unlink()
        lacking = {key for key, value in change.items() if value is None}
        changed = {key: value for key, value in (good | change).items() if key not in lacking}
        (folder / "manifest.json").write_text(json.dumps(changed))
        for name in ("vision.onnx",):  # a link to a file elsewhere lies outside the bundle
            (folder / name).unlink()
            shutil.copyfile(bundle_path / name, folder / name)
        folders.append(folder)
    answers = probe(cpp, "open", map(str, folders))
    for folder, answer, change in zip(folders, answers, FAULTS, strict=True):
        assert answer.get("error", "nothing") == _python_says(folder), change


def test_altered_files_are_refused_in_the_same_words(cpp: Path, bundle_path: Path, tmp_path: Path):
    faults = {
        "missing": lambda folder: (folder / "llm/tokenizer.json").unlink(),
        "cut": lambda folder: (folder / "vision.onnx").write_bytes(b"x"),
        "altered": lambda folder: (folder / "vision.onnx").write_bytes(bytes((bundle_path / "vision.onnx").stat().st_size)),
        "no manifest": lambda folder: (folder / "manifest.json").unlink(),
        "none": lambda folder: None,
    }
    for name, break_it in faults.items():
        folder = tmp_path / name
        shutil.copytree(bundle_path, folder)
        break_it(folder)
        (answer,) = probe(cpp, "open", [str(folder)])
        assert answer.get("error", "nothing") == _python_says(folder), name


def test_manifests_that_are_no_json_are_refused(cpp: Path, tmp_path: Path):
    texts = [b"", b"{", b"[]", b"nul", b'{"a":}', b"\xff\xfe", b"[" * 100_000, b'{"schema_version": 1e999}', b"1" * 10_000]
    for index, text in enumerate(texts):
        (tmp_path / str(index)).mkdir()
        (tmp_path / str(index) / "manifest.json").write_bytes(text)
    for answer in probe(cpp, "open", [str(tmp_path / str(index)) for index in range(len(texts))]):
        assert "manifest.json" in answer["error"] and "export the bundle again" in answer["error"]


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
    assert stamp.read_text() == written  # Python took C++'s word
    stamp.unlink()
    Bundle.open(folder)
    before = stamp.stat().st_mtime_ns
    assert probe(cpp, "open", [str(folder)]) == [{}]
    assert stamp.stat().st_mtime_ns == before  # and C++ Python's


def test_a_clip_of_other_frames_than_the_graph_takes_is_refused_in_the_same_words(
    cpp: Path, frames_bundle_path: Path, clip: Path, tmp_path: Path
):
    folder = tmp_path / "bundle"
    shutil.copytree(frames_bundle_path, folder)
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["preprocessing"]["frames"] = [50, 60]
    (folder / "manifest.json").write_text(json.dumps(manifest))
    words = ("tokens", folder, clip, "-o", tmp_path / "tokens.npz")
    said, expected = gridpool(cpp, *words), python(*words)
    assert "the bundle takes 50x60 and resizes them itself" in said.stderr
    assert (said.returncode, said.stderr) == (expected.returncode, expected.stderr)
