"""Which files of a directory are the model, as transformers chooses them, and what is said where there is none."""

from __future__ import annotations

import fnmatch
import json
import shutil
from pathlib import Path

import pytest
import torch
from refusal import naming
from safetensors.torch import load_file, save_file

from export import checkpoint as checkpoints
from export.checkpoint import open_checkpoint
from export.demo import CHECKPOINT
from export.families import family
from export.options import ExportOptions
from export.plan import make_plan
from export.weights import weight_files
from runtime.core.errors import CheckpointError

LORA = {"base_model.model.language_model.model.layers.0.self_attn.q_proj.lora_A.weight": torch.zeros(8, 128)}


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    return shutil.copytree(CHECKPOINT, tmp_path / "checkpoint")


def names(checkpoint: Path) -> list[str]:
    return [file.name for file in weight_files(open_checkpoint(str(checkpoint)))]


def shards(checkpoint: Path, count: int = 3) -> None:
    """The checkpoint's weights as shards, without an index."""
    weights = load_file(checkpoint / "model.safetensors")
    (checkpoint / "model.safetensors").unlink()
    for n in range(count):
        part = {key: weights[key] for key in list(weights)[n::count]}
        save_file(part, checkpoint / f"model-{n + 1:05d}-of-{count:05d}.safetensors")


def refused(checkpoint: Path) -> str:
    with pytest.raises(CheckpointError) as error:
        make_plan(ExportOptions(), family("llava-ov"), open_checkpoint(str(checkpoint)))
    assert "\n" not in str(error.value)
    return str(error.value)


class TestWhichFiles:
    def test_the_model_alone_is_read_where_other_files_lie_beside_it(self, checkpoint: Path) -> None:
        save_file(LORA, checkpoint / "adapter_model.safetensors")
        save_file(LORA, checkpoint / "consolidated.safetensors")
        save_file(LORA, checkpoint / "model.fp16.safetensors")
        save_file(LORA, checkpoint / "model-00001-of-00002.safetensors")
        (checkpoint / "checkpoint-500").mkdir()
        for name in ("pytorch_model.bin", "optimizer.pt", "model.safetensors.index.json", "checkpoint-500/model.safetensors"):
            (checkpoint / name).write_bytes(b"left over")
        assert names(checkpoint) == ["model.safetensors"]
        make_plan(ExportOptions(), family("llava-ov"), open_checkpoint(str(checkpoint)))

    def test_an_index_names_its_shards(self, checkpoint: Path) -> None:
        shards(checkpoint, 2)
        files = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
        (checkpoint / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": files[1], "b": files[0]}}))
        save_file(LORA, checkpoint / "adapter_model.safetensors")
        save_file(LORA, checkpoint / "model-00001-of-00009.safetensors")  # of an earlier save
        assert names(checkpoint) == files

    def test_shards_without_an_index_are_read_where_none_is_missing(self, checkpoint: Path) -> None:
        shards(checkpoint)
        save_file(LORA, checkpoint / "adapter_model.safetensors")
        make_plan(ExportOptions(), family("llava-ov"), open_checkpoint(str(checkpoint)))
        (checkpoint / "model-00002-of-00003.safetensors").unlink()
        assert naming(checkpoint / "model-00002-of-00003.safetensors", "missing").match(refused(checkpoint))


class TestWithoutWeights:
    @pytest.mark.parametrize(
        ("file", "named"),
        [
            ("consolidated.safetensors", ["model.safetensors", "model.safetensors.index.json", "only consolidated.safetensors"]),
            ("model.fp16.safetensors", ["model.safetensors", "model.safetensors.index.json", "only model.fp16.safetensors"]),
            ("pytorch_model.bin", ["*.safetensors", "only pytorch_model.bin", "save_pretrained"]),
            ("adapter_model.safetensors", ["adapter", "base model", "adapter_config.json"]),
        ],
    )
    def test_what_is_there_instead_is_named(self, checkpoint: Path, file: str, named: list[str]) -> None:
        (checkpoint / "model.safetensors").rename(checkpoint / file)
        assert naming(checkpoint, *named).match(refused(checkpoint))

    def test_a_pointer_of_git_lfs(self, checkpoint: Path) -> None:
        (checkpoint / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
        assert naming(checkpoint / "model.safetensors", "Git LFS pointer", "git lfs pull").match(refused(checkpoint))


class TestQuantizedWeights:
    """Of checkpoints whose config does not say so."""

    @pytest.mark.parametrize(
        "ending", ["qweight", "weight.absmax", "weight_packed", "weight_scale", "W_q", "weight.quant_state.bitsandbytes__nf4"]
    )
    def test_names_of_a_quantizer(self, checkpoint: Path, ending: str) -> None:
        weights = load_file(checkpoint / "model.safetensors")
        layer = next(key for key in weights if key.endswith("layers.1.mlp.up_proj.weight")).removesuffix("weight")
        weights[f"{layer}{ending}"] = weights.pop(f"{layer}weight")[:1].clone()
        save_file(weights, checkpoint / "model.safetensors")
        line = refused(checkpoint)
        assert naming(checkpoint, "quantized", f"{layer}{ending}").match(line), line

    @pytest.mark.parametrize(("dtype", "name"), [(torch.uint8, "U8"), (torch.float8_e4m3fn, "F8_E4M3"), (torch.int32, "I32")])
    def test_types_of_a_quantizer_come_before_their_shapes(self, checkpoint: Path, dtype: torch.dtype, name: str) -> None:
        weights = load_file(checkpoint / "model.safetensors")
        key = next(key for key in weights if key.endswith("layers.1.mlp.up_proj.weight"))
        weights[key] = weights[key].flatten()[::2].clone().to(dtype)
        save_file(weights, checkpoint / "model.safetensors")
        line = refused(checkpoint)
        assert naming(checkpoint, key, name, "F32, F16, BF16, F64", "quantized").match(line), line


class TestHub:
    @pytest.fixture
    def downloads(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
        """A hub with the demo checkpoint as llava-hf/demo; the names of the files that were downloaded."""
        snapshot, got = tmp_path / "snapshots" / "0123abcd", list[str]()
        snapshot.mkdir(parents=True)

        def snapshot_download(hub_id: str, revision: str | None, allow_patterns: list[str]) -> str:
            assert (hub_id, revision) in (("llava-hf/demo", None), ("llava-hf/demo", "0123abcd"))
            for file in sorted(CHECKPOINT.iterdir()):
                if any(fnmatch.fnmatch(file.name, pattern) for pattern in allow_patterns) and not (snapshot / file.name).exists():
                    shutil.copyfile(file, snapshot / file.name)
                    got.append(file.name)
            return str(snapshot)

        monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
        checkpoints._download.cache_clear()
        yield got
        checkpoints._download.cache_clear()

    def test_weights_are_downloaded_after_what_needs_none_was_checked(self, downloads: list[str]) -> None:
        source = open_checkpoint("llava-hf/demo")
        assert "config.json" in downloads and "model.safetensors" not in downloads
        (source.path / "chat_template.jinja").write_text("images only")
        with pytest.raises(CheckpointError, match=naming("0 clips", source.path / "chat_template.jinja")):
            make_plan(ExportOptions(), family("llava-ov"), source)
        assert "model.safetensors" not in downloads
        shutil.copyfile(CHECKPOINT / "chat_template.jinja", source.path / "chat_template.jinja")
        make_plan(ExportOptions(), family("llava-ov"), source)
        assert downloads[-1] == "model.safetensors"
