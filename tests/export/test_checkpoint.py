"""Where a checkpoint is found and what is asked of the hub for it."""

from __future__ import annotations

import json
from contextlib import nullcontext
from pathlib import Path

import pytest
from refusal import naming

from export import checkpoint as module
from export.checkpoint import ADAPTER, Checkpoint, open_checkpoint, refuse_lfs_pointer
from export.demo import CHECKPOINT
from runtime.core.errors import CheckpointError


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """A hub that has everything, in a snapshot named after its commit; what it was asked for."""
    asked: list[tuple] = []

    def snapshot_download(hub_id: str, revision: str | None = "none given", allow_patterns: list[str] | None = None) -> str:
        asked.append((hub_id, revision, allow_patterns))
        return str(tmp_path / "c0ffee")

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    module._download.cache_clear()
    yield asked
    module._download.cache_clear()


def test_a_checkpoint_is_neither_the_demo_nor_on_the_hub_unless_it_says_so(tmp_path, monkeypatch):
    assert (Checkpoint(tmp_path, "x").demo, Checkpoint(tmp_path, "x").hub) == (False, False)
    (tmp_path / "mine").mkdir()
    assert open_checkpoint(str(tmp_path / "mine")) == Checkpoint(tmp_path / "mine", "mine", demo=False, hub=False)
    monkeypatch.chdir(tmp_path / "mine")
    assert open_checkpoint(".") == Checkpoint(Path(), "mine", demo=False, hub=False)
    assert open_checkpoint(None) == Checkpoint(CHECKPOINT, "st-gridpool-demo", demo=True, hub=False)


def test_of_a_hub_id_the_small_files_come_first_and_the_rest_of_the_same_commit_when_asked_for(hub, tmp_path):
    source = open_checkpoint("some-one/A_model.v1")
    assert source == Checkpoint(tmp_path / "c0ffee", "some-one/A_model.v1", demo=False, hub=True)
    small = ["*.safetensors.index.json", "*config.json", "tokenizer.json", "chat_template.*"]
    assert hub == [("some-one/A_model.v1", None, small)]
    source.fetch(["*.safetensors"])
    assert hub[1:] == [("some-one/A_model.v1", "c0ffee", ["*.safetensors"])]


def test_nothing_is_downloaded_of_a_local_checkpoint(hub, tmp_path):
    open_checkpoint(str(tmp_path)).fetch(["*.safetensors"])
    open_checkpoint(None).fetch(["*.safetensors"])
    assert hub == []


def test_a_file_is_no_checkpoint(tmp_path):
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    with pytest.raises(CheckpointError, match=naming(tmp_path / "model.gguf", "directory")):
        open_checkpoint(str(tmp_path / "model.gguf"))


@pytest.mark.parametrize("source", ["nothing", "a/b/c", "/a/b", "-a/b", "a/b c", "a/"])
def test_what_is_no_directory_and_no_hub_id_is_refused(hub, tmp_path, monkeypatch, source):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CheckpointError, match=naming(source, "llava-hf/NAME")):
        open_checkpoint(source)
    assert hub == []


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (ValueError("  first line\nsecond line"), "first line"),
        (OSError("one line"), "one line"),
        (KeyError(), "KeyError"),
        (RuntimeError(" \n"), "RuntimeError"),
    ],
)
def test_a_download_that_fails_says_why_in_one_line(hub, monkeypatch, error, reason):
    def fail(*args: object, **named: object) -> str:
        raise error

    monkeypatch.setattr("huggingface_hub.snapshot_download", fail)
    with pytest.raises(CheckpointError) as raised:
        open_checkpoint("a/b")
    assert naming("a/b", reason).match(str(raised.value))


class TestFiles:
    def test_an_object_is_read_and_a_missing_file_is_none(self, tmp_path):
        (tmp_path / "config.json").write_text('{"é": [1, null]}', encoding="utf-8")
        assert Checkpoint(tmp_path, "x").json("config.json") == {"é": [1, None]}
        assert Checkpoint(tmp_path, "x").json("other.json") is None

    @pytest.mark.parametrize(
        ("content", "named"),
        [
            ("version https://git-lfs.github.com/spec/v1\n", ("Git LFS", "git lfs pull")),
            ("{", ("JSON",)),
            ("[" * 100_000, ("JSON",)),
        ],
        ids=["pointer", "cut off", "deep"],
    )
    def test_what_is_no_json_is_refused(self, tmp_path, content, named):
        (tmp_path / "a.json").write_text(content)
        with pytest.raises(CheckpointError, match=naming(tmp_path / "a.json", *named)):
            Checkpoint(tmp_path, "x").json("a.json")

    @pytest.mark.parametrize(("content", "said"), [("[1]", "JSON list"), ("3", "JSON int"), ('""', "JSON str")])
    def test_other_values_are_refused_by_their_kind(self, tmp_path, content, said):
        (tmp_path / "a.json").write_text(content)
        with pytest.raises(CheckpointError, match=naming(tmp_path / "a.json", said)):
            Checkpoint(tmp_path, "x").json("a.json")

    def test_a_directory_in_a_files_place_can_not_be_read(self, tmp_path):
        (tmp_path / "a.json").mkdir()
        with pytest.raises(CheckpointError, match=naming(tmp_path / "a.json", "Is a directory")):
            Checkpoint(tmp_path, "x").json("a.json")

    @pytest.mark.parametrize(
        ("content", "pointer"),
        [
            (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", True),
            (b"version https://git-lfs.github.com/spec/", True),
            (b"version https://git-lfs.github.com/spec", False),
            (b" version https://git-lfs.github.com/spec/v1", False),
            (b"", False),
        ],
    )
    def test_a_pointer_of_git_lfs_is_told_by_its_first_words(self, tmp_path, content, pointer):
        (tmp_path / "f").write_bytes(content)
        with pytest.raises(CheckpointError, match=naming(tmp_path / "f", "git lfs pull")) if pointer else nullcontext():
            refuse_lfs_pointer(tmp_path / "f")

    def test_a_config_counts_though_an_adapter_lies_beside_it(self, tmp_path):
        for name in ("config.json", ADAPTER):
            (tmp_path / name).write_text(json.dumps({"name": name}))
        assert Checkpoint(tmp_path, "x").config() == {"name": "config.json"}

    @pytest.mark.parametrize(("base", "named"), [("a/base", " a/base"), ("", ""), (7, ""), (None, "")])
    def test_an_adapter_alone_names_its_base_where_it_has_one(self, tmp_path, base, named):
        (tmp_path / ADAPTER).write_text(json.dumps({"base_model_name_or_path": base}))
        with pytest.raises(CheckpointError) as raised:
            Checkpoint(tmp_path, "x").config()
        assert naming(tmp_path, "adapter", f"model{named} ({ADAPTER})").match(str(raised.value))

    def test_without_a_config_those_one_level_below_are_named_three_at_most(self, tmp_path):
        with pytest.raises(CheckpointError, match=naming(tmp_path, "config.json", "directory")) as alone:
            Checkpoint(tmp_path, "x").config()
        for name in "dacb":
            (tmp_path / name).mkdir()
            (tmp_path / name / "config.json").write_text("{}")
        with pytest.raises(CheckpointError) as raised:
            Checkpoint(tmp_path, "x").config()
        assert str(raised.value).startswith(str(alone.value)) and str(tmp_path / "d") not in str(raised.value)
        assert naming(", ".join(str(tmp_path / name) for name in "abc")).match(str(raised.value))
