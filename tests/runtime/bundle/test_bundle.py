"""Which bundles open, what is said of those that don't, and when files are hashed."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from refusal import naming, refused

import runtime.bundle.files
from runtime.__main__ import main
from runtime.bundle import DECODER, SCHEMA_VERSION, VISION, Bundle, foreign_files, write_manifest
from runtime.core.errors import BundleError

QUESTION = "what color is the cross ?"


@pytest.fixture
def copy(bundle_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A bundle of one's own, which nobody has opened before."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return shutil.copytree(bundle_path, tmp_path / "bundle")


@pytest.fixture
def hashed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the files that are hashed while the test runs, the manifest left out."""
    names: list[str] = []

    def counted(path: Path) -> str:
        if path.name != "manifest.json":
            names.append(path.name)
        return sha256_of(path)

    sha256_of = runtime.bundle.files.sha256_of
    monkeypatch.setattr(runtime.bundle.files, "sha256_of", counted)
    return names


def alter(file: Path, keep_time: bool = False) -> None:
    """Change one byte in the middle of a file; its size stays."""
    stat = file.stat()
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns + (0 if keep_time else 1)))


def change_manifest(bundle: Path, change: Callable[[dict[str, Any]], object]) -> None:
    values = json.loads((bundle / "manifest.json").read_text())
    change(values)
    (bundle / "manifest.json").write_text(json.dumps(values))


class TestHashes:
    def test_files_are_hashed_at_the_first_load_and_not_again(self, copy: Path, hashed: list[str]) -> None:
        files = sorted(Path(name).name for name in Bundle.open(copy).manifest.files)
        assert sorted(hashed) == files
        hashed.clear()
        Bundle.open(copy)
        Bundle.open(str(copy))
        assert hashed == []

    def test_verify_hashes_again(self, copy: Path, hashed: list[str]) -> None:
        Bundle.open(copy)
        hashed.clear()
        said: list[str] = []
        bundle = Bundle.open(copy, verify=True, progress=said.append)
        assert len(hashed) == len(bundle.manifest.files)
        assert said == [f"checking {name}" for name in bundle.manifest.files]

    def test_a_changed_time_hashes_again_and_then_not(self, copy: Path, hashed: list[str]) -> None:
        Bundle.open(copy)
        os.utime(copy / "vision.onnx", ns=(0, 0))
        hashed.clear()
        Bundle.open(copy)
        assert "vision.onnx" in hashed
        hashed.clear()
        Bundle.open(copy)
        assert hashed == []

    def test_a_file_altered_before_the_first_load_is_named(self, copy: Path) -> None:
        alter(copy / "llm" / "decoder.onnx", keep_time=True)
        with pytest.raises(BundleError, match=naming("llm/decoder.onnx", "altered", "SHA-256")):
            Bundle.open(copy)

    def test_a_file_altered_later_is_found_by_its_time(self, copy: Path) -> None:
        Bundle.open(copy)
        alter(copy / "vision.onnx")
        for _ in range(2):  # a failed check is not remembered as one that passed
            with pytest.raises(BundleError, match=r"vision\.onnx was altered"):
                Bundle.open(copy)

    def test_a_file_altered_without_a_trace_is_found_by_inspect_verify(self, copy: Path, capsys: pytest.CaptureFixture) -> None:
        Bundle.open(copy)
        alter(copy / "vision.onnx", keep_time=True)
        Bundle.open(copy)
        line = refused(capsys, main, "inspect", copy, "--verify")
        assert f"{copy / 'vision.onnx'} was altered" in line

    def test_another_manifest_is_another_bundle(self, copy: Path, hashed: list[str]) -> None:
        Bundle.open(copy)
        change_manifest(copy, lambda values: values["files"]["vision.onnx"].update(sha256="0" * 64))
        with pytest.raises(BundleError, match=r"vision\.onnx was altered"):
            Bundle.open(copy)

    def test_without_a_writable_cache_every_load_hashes(
        self, copy: Path, hashed: list[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (copy.parent / "file").write_text("")
        monkeypatch.setenv("XDG_CACHE_HOME", str(copy.parent / "file"))
        Bundle.open(copy)
        hashed.clear()
        Bundle.open(copy)
        assert "vision.onnx" in hashed

    def test_a_spoilt_memory_of_checks_is_no_memory(self, copy: Path, hashed: list[str]) -> None:
        Bundle.open(copy)
        (stamp,) = (copy.parent / "cache").rglob("*.json")
        stamp.write_text("{")
        hashed.clear()
        Bundle.open(copy)
        assert "vision.onnx" in hashed


class TestFiles:
    @pytest.mark.parametrize("name", ["vision.onnx", "llm/embed_tokens.npy", "reference/torch.json"])
    def test_a_missing_file_is_named(self, copy: Path, capsys: pytest.CaptureFixture, clip: Path, name: str) -> None:
        (copy / name).unlink()
        line = refused(capsys, main, "run", copy, clip, QUESTION)
        assert naming(copy / name, "missing").match(line)

    def test_a_truncated_file_is_named_with_both_sizes_though_it_was_checked_before(self, copy: Path) -> None:
        Bundle.open(copy)
        file = copy / "vision.onnx"
        size = file.stat().st_size
        stat = file.stat()
        file.write_bytes(file.read_bytes()[:-7])
        os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))
        with pytest.raises(BundleError, match=naming("vision.onnx", size - 7, size)):
            Bundle.open(copy)

    def test_a_directory_is_no_file(self, copy: Path) -> None:
        (copy / "vision.onnx").unlink()
        (copy / "vision.onnx").mkdir()
        with pytest.raises(BundleError, match=r"vision\.onnx is missing"):
            Bundle.open(copy)

    @pytest.mark.parametrize("name", ["../secret", "/etc/hostname", "llm/../../secret", "a\0b", "link"])
    def test_a_name_that_leads_out_of_the_bundle_is_refused(self, copy: Path, name: str) -> None:
        (copy.parent / "secret").write_text("secret")
        (copy / "link").symlink_to(copy.parent / "secret")
        change_manifest(copy, lambda values: values["files"].update({name: {"size": 6, "sha256": "0" * 64}}))
        with pytest.raises(BundleError, match="outside the bundle"):
            Bundle.open(copy)

    def test_a_graph_that_was_not_exported_says_how_to_get_it(self, copy: Path) -> None:
        def without_llm(values: dict[str, Any]) -> None:
            values.update(llm={}, prompt={}, limits={})
            values["files"] = {name: entry for name, entry in values["files"].items() if not name.startswith("llm/")}

        change_manifest(copy, without_llm)
        bundle = Bundle.open(copy)
        assert not bundle.has_llm
        with pytest.raises(BundleError, match=naming(DECODER, "--only")):
            bundle.model(DECODER)
        with pytest.raises(BundleError, match=naming(DECODER, "--only")):
            bundle.sha256(DECODER)

    def test_engines_are_keyed_by_graph_and_external_data(self, copy: Path) -> None:
        before = Bundle.open(copy).sha256(VISION)
        (copy / "vision.onnx.data").write_bytes(b"weights")
        manifest = Bundle.open(copy).manifest
        with_data = Bundle(copy, write_manifest(copy, manifest))
        assert with_data.sha256(VISION) != before
        assert Bundle.open(copy).sha256(DECODER) == with_data.sha256(DECODER)

    def test_built_engines_are_not_in_the_manifest_and_foreign_files_are_told(self, copy: Path) -> None:
        (copy / "engines").mkdir()
        (copy / "engines" / "vision.engine").write_bytes(b"")
        assert foreign_files(copy) == []
        (copy / "llm" / "notes.txt").write_text("")
        assert foreign_files(copy) == ["llm/notes.txt"]
        written = write_manifest(copy, Bundle.open(copy).manifest)
        assert "llm/notes.txt" in written.files
        assert not any(name.startswith("engines") for name in written.files)


class TestManifest:
    def test_a_newer_schema_asks_for_an_update(self, copy: Path, capsys: pytest.CaptureFixture, clip: Path) -> None:
        change_manifest(copy, lambda values: values.update(schema_version=SCHEMA_VERSION + 1, families=["of a future kind"]))
        line = refused(capsys, main, "run", copy, clip, QUESTION)
        assert naming("schema", SCHEMA_VERSION + 1, SCHEMA_VERSION).match(line)

    @pytest.mark.parametrize(
        "content", [b"", b"{", b"[1]", b"\xff\xfe", b"null", b"[" * 100_000, b'{"schema_version": "1"}', b'{"schema_version": NaN}']
    )
    def test_what_is_no_manifest(self, copy: Path, capsys: pytest.CaptureFixture, clip: Path, content: bytes) -> None:
        (copy / "manifest.json").write_bytes(content)
        assert f"{copy / 'manifest.json'} " in refused(capsys, main, "run", copy, clip, QUESTION)

    def test_missing_keys_are_named(self, copy: Path) -> None:
        change_manifest(copy, lambda values: [values.pop("grid"), values.pop("opset")])
        with pytest.raises(BundleError, match=naming("manifest.json", "grid", "opset")):
            Bundle.open(copy)

    def test_keys_that_a_later_revision_adds_are_no_concern(self, copy: Path) -> None:
        change_manifest(copy, lambda values: values.update(colour="blue"))
        assert not hasattr(Bundle.open(copy).manifest, "colour")

    @pytest.mark.parametrize(
        ("path", "value"),
        [
            (["frames"], "sixteen"),
            (["frames"], True),
            (["frames"], 0),
            (["schema_version"], 0),
            (["schema_version"], True),
            (["grid"], [8]),
            (["grid"], [8, "8"]),
            (["precision"], "fp12"),
            (["checkpoint"], {}),
            (["compression", "spec"], None),
            (["stages", 0], "vision/encoder"),
            (["stages", 0, "rounding"], "fp16"),
            (["stages", 0, "rounding"], None),
            (["stages", 0, "rounding"], -1),
            pytest.param(["stages", 0, "rounding"], 10**400, id="rounding-10**400"),
            (["files"], []),
            (["files"], {}),
            (["files", "vision.onnx"], "1 MB"),
            (["files", "vision.onnx", "size"], "1"),
            (["files", "vision.onnx", "sha256"], None),
            (["llm"], {}),
            (["llm", "layers"], "4"),
            (["llm", "head_dim"], None),
            (["limits"], {}),
            (["limits", "max_context"], 1.5),
            (["prompt"], {}),
            (["prompt", "video_token_id"], "4"),
            (["prompt", "eos_token_ids"], [None]),
            (["prompt", "repetition_penalty"], 0),
            (["prompt", "repetition_penalty"], "1.1"),
            (["prompt", "repetition_penalty"], True),
            pytest.param(["prompt", "repetition_penalty"], 10**400, id="penalty-10**400"),
            (["preprocessing", "size"], 112),
            (["preprocessing", "image_mean"], []),
        ],
    )
    def test_a_value_of_a_wrong_kind_is_named(
        self, copy: Path, capsys: pytest.CaptureFixture, clip: Path, path: list[Any], value: object
    ) -> None:
        def change(values: dict[str, Any]) -> None:
            for key in path[:-1]:
                values = values[key]
            values[path[-1]] = value

        change_manifest(copy, change)
        assert str(path[0]) in refused(capsys, main, "run", copy, clip, QUESTION)


class TestPlace:
    @pytest.mark.parametrize(
        ("make", "message"),
        [
            (lambda path: None, "no bundle at .*: no such directory; write one with"),
            (lambda path: path.mkdir(), r"is not a bundle: it has no manifest\.json"),
            (lambda path: path.write_text(""), "is a file; expected the bundle's directory"),
            (lambda path: (path / "manifest.json").mkdir(parents=True), "can't be read: Is a directory"),
        ],
    )
    def test_what_is_no_bundle(self, tmp_path: Path, make: Callable[[Path], object], message: str) -> None:
        make(tmp_path / "bundle")
        with pytest.raises(BundleError, match=message):
            Bundle.open(tmp_path / "bundle")

    def test_a_bundle_answers_elsewhere_read_only_and_through_a_link(
        self, copy: Path, capsys: pytest.CaptureFixture, clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        moved = copy.rename(tmp_path / "another name, with spaces")
        (tmp_path / "link").symlink_to(moved)
        files = [moved, *moved.rglob("*")]
        before = {path: path.stat().st_mtime_ns for path in files}
        try:
            for path in files:
                path.chmod(0o500 if path.is_dir() else 0o400)
            monkeypatch.chdir("/")
            assert main(["run", str(tmp_path / "link"), str(clip), QUESTION]) == 0
            assert capsys.readouterr().out.strip()
            assert {path: path.stat().st_mtime_ns for path in [moved, *moved.rglob("*")]} == before  # nothing was written
        finally:
            for path in files:
                path.chmod(0o700)
