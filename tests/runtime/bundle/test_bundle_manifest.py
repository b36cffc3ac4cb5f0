"""What is written beside a bundle's files and what is counted from it, where no export is needed."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import pytest
from refusal import naming
from trt_bundle import make_bundle

import runtime.bundle.files
from runtime.bundle import DECODER, VISION, VISION_ENCODER, Bundle, foreign_files, write_manifest
from runtime.bundle.manifest import FileEntry
from runtime.core.errors import BundleError


@pytest.fixture
def bundle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bundle:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return make_bundle(tmp_path / "bundle")


def test_patch_tokens_are_those_of_all_frames_and_the_llm_may_have_a_precision_of_its_own(bundle: Bundle) -> None:
    manifest = replace(bundle.manifest, frames=2, grid=(3, 5), precision="fp16")
    assert manifest.patch_tokens == 30
    assert manifest.llm_precision == "fp16"
    assert replace(manifest, llm=replace(bundle.llm, precision="int4")).llm_precision == "int4"
    assert replace(manifest, llm=None).llm_precision == "fp16"


def test_a_manifest_lists_every_file_but_itself_and_built_engines(bundle: Bundle) -> None:
    directory = bundle.path
    for name, content in {"engines/a/b.engine": b"e", "llm/engines": b"abc", "vision.onnx.data": b""}.items():
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        (directory / name).write_bytes(content)
    written = write_manifest(directory, bundle.manifest)
    assert sorted(written.files) == ["llm/decoder.onnx", "llm/engines", "vision.onnx", "vision.onnx.data"]
    assert written.files["llm/engines"] == FileEntry(3, hashlib.sha256(b"abc").hexdigest())
    text = (directory / "manifest.json").read_text()
    assert text.startswith('{\n "schema_version": 1,\n "family": ') and text.endswith("\n}\n")
    assert Bundle.open(directory).manifest == written


@pytest.mark.parametrize("place", ["family", "files"])
def test_a_lone_surrogate_is_not_json_and_a_pair_is(bundle: Bundle, place: str) -> None:
    file = bundle.path / "manifest.json"
    (bundle.path / "\U0001f600").write_bytes(b"abc")
    before = json.loads(file.read_text())
    entry = {"size": 3, "sha256": hashlib.sha256(b"abc").hexdigest()}
    for escaped, right in ((r"\ud83d\ude00", True), (r"\ud83d", False), (r"\ude00 \ud83d", False)):
        changed = {"family": "HERE"} if place == "family" else {"files": before["files"] | {"HERE": entry}}
        file.write_text(json.dumps(before | changed).replace("HERE", escaped))
        if right:
            manifest = Bundle.open(bundle.path).manifest
            assert "\U0001f600" in (manifest.family, *manifest.files)
        else:
            with pytest.raises(BundleError, match=naming("manifest.json", "JSON", "surrogates not allowed")):
                Bundle.open(bundle.path)


def test_weights_belong_to_the_component_whose_graphs_share_them(bundle: Bundle) -> None:
    for name in ("vision.onnx.data", "vision.onnx.1", "vision.encoder.onnx", "llm/decoder.onnx.data", "vision.other"):
        (bundle.path / name).touch()
    bundle = Bundle(bundle.path, write_manifest(bundle.path, bundle.manifest))
    assert bundle.data_files(VISION) == bundle.data_files(VISION_ENCODER) == ["vision.onnx.1", "vision.onnx.data"]
    assert bundle.data_files(DECODER) == ["llm/decoder.onnx.data"]
    assert bundle.model(DECODER) == bundle.path / "llm" / "decoder.onnx"
    digests = [bundle.manifest.files[name].sha256 for name in ("vision.onnx", "vision.onnx.1", "vision.onnx.data")]
    assert bundle.sha256(VISION) == hashlib.sha256("".join(digests).encode()).hexdigest()
    assert (bundle.is_split, bundle.has_llm) == (True, True)


@pytest.mark.parametrize(
    "manifest", ["", "[]", "{}", '{"schema_version": true, "files": {}}', '{"schema_version": 1, "files": []}']
)
def test_in_a_directory_that_is_no_bundle_every_file_is_foreign(tmp_path: Path, manifest: str) -> None:
    for name in ("engines/a.engine", "sub/b"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).touch()
    (tmp_path / "dangling").symlink_to(tmp_path / "nothing")
    (tmp_path / "to a directory").symlink_to(tmp_path / "sub")
    others = ["dangling", "engines/a.engine", "sub/b", "to a directory"]
    assert foreign_files(tmp_path) == others
    (tmp_path / "manifest.json").write_text(manifest)
    assert foreign_files(tmp_path) == sorted([*others, "manifest.json"])
    (tmp_path / "manifest.json").write_text('{"schema_version": 9, "files": {"sub/b": {}}}')
    assert foreign_files(tmp_path) == ["dangling", "to a directory"]


def test_without_a_home_every_load_hashes_and_nothing_is_remembered(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    hashed = []
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(Path, "home", lambda: Path("/a home"))
    where = runtime.bundle.files._verified_file(Path("/b"))
    assert where.parent == Path("/a home/.cache/st-gridpool/verified") and where.suffix == ".json"
    assert where != runtime.bundle.files._verified_file(Path("/c"))

    def no_home() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", no_home)
    digests = {"manifest.json": ""} | {Path(name).name: entry.sha256 for name, entry in bundle.manifest.files.items()}
    monkeypatch.setattr(runtime.bundle.files, "sha256_of", lambda file: hashed.append(file.name) or digests[file.name])
    for _ in range(2):
        Bundle.open(bundle.path)
    assert [name for name in hashed if name != "manifest.json"] == ["decoder.onnx", "vision.onnx"] * 2


def test_a_file_that_can_not_be_read_is_named(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(file: Path) -> str:
        if file.name == "manifest.json":
            return "0"
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(runtime.bundle.files, "sha256_of", refuse)
    with pytest.raises(BundleError, match=naming("onnx", "Permission denied")):
        Bundle.open(bundle.path, verify=True)


def test_checks_are_told_to_who_asks_and_to_nobody_else(bundle: Bundle) -> None:
    said: list[str] = []
    Bundle.open(bundle.path, progress=said.append)
    Bundle.open(bundle.path, progress=said.append)
    assert said == []  # make_bundle has opened it
    Bundle.open(bundle.path, verify=True, progress=said.append)
    assert said == ["checking llm/decoder.onnx", "checking vision.onnx"]


@pytest.mark.parametrize(("version", "said"), [(0, "has no schema_version"), (2, "has schema 2"), (1, None)])
def test_the_schemas_that_are_read(bundle: Bundle, version: int, said: str | None) -> None:
    file = bundle.path / "manifest.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"schema_version": version}))
    if said is None:
        Bundle.open(bundle.path)
        return
    with pytest.raises(BundleError, match=said):
        Bundle.open(bundle.path)
