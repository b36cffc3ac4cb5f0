"""A checkpoint that can't be exported is refused by one line, before anything is traced, and nothing is written."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from refusal import change_json, names_under, refused
from safetensors.torch import load_file, save_file

from export.__main__ import main
from export.checkpoint import open_checkpoint
from export.demo import CHECKPOINT
from export.families import family
from runtime.core.errors import CheckpointError

LLM_WEIGHT = "layers.2.mlp.up_proj.weight"
VISION_WEIGHT = "vision_tower.encoder.layers.0.mlp.fc1.weight"


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    return shutil.copytree(CHECKPOINT, tmp_path / "checkpoint")


@pytest.fixture
def refusal(checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """Export the checkpoint, which must be refused before a graph is traced; the error line."""

    def traced(*args: object) -> None:
        raise AssertionError("the export went on to tracing")

    monkeypatch.setattr("export.vision.trace_vision", traced)

    def run(*args: str) -> str:
        (tmp_path / "out").mkdir()
        line = refused(capsys, main, "--checkpoint", checkpoint, "--out", tmp_path / "out" / "bundle", *args)
        assert names_under(tmp_path / "out") == []
        return line

    return run


def change_weights(checkpoint: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    weights = load_file(checkpoint / "model.safetensors")
    change(weights)
    save_file(weights, checkpoint / "model.safetensors")


def key_of(checkpoint: Path, ending: str) -> str:
    return next(key for key in load_file(checkpoint / "model.safetensors") if key.endswith(ending))


class TestWeights:
    @pytest.mark.parametrize("ending", [LLM_WEIGHT, VISION_WEIGHT, "image_newline"])
    def test_a_missing_weight_is_named(self, checkpoint: Path, refusal: Callable[..., str], ending: str) -> None:
        change_weights(checkpoint, lambda weights: weights.pop(key_of(checkpoint, ending)))
        line = refusal()
        assert line.startswith(f"{checkpoint} lacks weights: ")
        assert line.endswith(f"{ending}; its config and weights do not belong together")

    def test_of_many_missing_weights_three_are_named_and_the_rest_counted(
        self, checkpoint: Path, refusal: Callable[..., str]
    ) -> None:
        change_json(
            checkpoint / "config.json",
            vision_config=json.loads((checkpoint / "config.json").read_text())["vision_config"] | {"num_hidden_layers": 4},
        )
        assert "lacks weights: vision_tower.encoder.layers.3." in (line := refusal())
        assert "and 13 more" in line

    @pytest.mark.parametrize("key", ["model.language_model.layers.9.mlp.up_proj.weight", "model.vision_tower.extra", "stranger"])
    def test_an_extra_weight_is_named(self, checkpoint: Path, refusal: Callable[..., str], key: str) -> None:
        change_weights(checkpoint, lambda weights: weights.update({key: torch.zeros(2)}))
        assert f"has unknown weights: {key};" in refusal()

    @pytest.mark.parametrize("ending", [LLM_WEIGHT, VISION_WEIGHT])
    def test_a_wrong_shape_is_named_with_both_shapes(self, checkpoint: Path, refusal: Callable[..., str], ending: str) -> None:
        key = key_of(checkpoint, ending)
        change_weights(checkpoint, lambda weights: weights.update({key: weights[key][:-1].clone()}))
        assert f"{key} has shape [" in (line := refusal())
        assert ", the config asks for [" in line

    @pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
    def test_a_value_that_is_not_finite_is_found(self, checkpoint: Path, refusal: Callable[..., str], value: float) -> None:
        key = key_of(checkpoint, VISION_WEIGHT)
        change_weights(checkpoint, lambda weights: weights[key][3].__setitem__(5, value))
        assert f"{key} has NaN or infinite values" in refusal()

    def test_nan_in_the_llm_half_is_found(self, checkpoint: Path) -> None:
        key = key_of(checkpoint, LLM_WEIGHT)
        change_weights(checkpoint, lambda weights: weights[key][0].fill_(float("nan")))
        with pytest.raises(CheckpointError, match=f"{key} has NaN or infinite values"):
            family("llava-ov").load_llm(open_checkpoint(str(checkpoint)))

    def test_nan_in_the_llm_is_found_before_the_vision_encoder_is_exported(
        self, checkpoint: Path, refusal: Callable[..., str]
    ) -> None:
        key = key_of(checkpoint, LLM_WEIGHT)
        change_weights(checkpoint, lambda weights: weights[key][0].fill_(float("nan")))
        assert f"{key} has NaN or infinite values" in refusal()

    def test_quantized_weights_are_refused(self, checkpoint: Path, refusal: Callable[..., str]) -> None:
        key = key_of(checkpoint, VISION_WEIGHT)
        change_weights(checkpoint, lambda weights: weights.update({key: weights[key].to(torch.int8)}))
        assert f"{key} is of type I8, expected one of F32, F16, BF16, F64" in refusal()

    @pytest.mark.parametrize("keep", [0, 4, 1000, 100_000, -1])
    def test_a_truncated_file_is_named(self, checkpoint: Path, refusal: Callable[..., str], keep: int) -> None:
        file = checkpoint / "model.safetensors"
        file.write_bytes(file.read_bytes()[:keep])
        assert f"{file} is not a readable safetensors file" in refusal()

    def test_a_shard_that_the_index_lists_must_be_there(self, checkpoint: Path, refusal: Callable[..., str]) -> None:
        (checkpoint / "model.safetensors").rename(checkpoint / "model-00001-of-00002.safetensors")
        index = {"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}
        (checkpoint / "model.safetensors.index.json").write_text(json.dumps(index))
        assert f"{checkpoint / 'model-00002-of-00002.safetensors'} is missing" in refusal()

    @pytest.mark.parametrize("index", [{}, {"weight_map": []}, {"weight_map": {"a": 1}}])
    def test_an_index_without_a_map_is_refused(self, checkpoint: Path, refusal: Callable[..., str], index: object) -> None:
        (checkpoint / "model.safetensors").unlink()
        (checkpoint / "model.safetensors.index.json").write_text(json.dumps(index))
        assert "has no weight_map of file names" in refusal()

    def test_no_weights_at_all(self, checkpoint: Path, refusal: Callable[..., str]) -> None:
        (checkpoint / "model.safetensors").unlink()
        assert "has no *.safetensors" in refusal()

    def test_the_half_that_is_not_asked_for_may_lack_weights(self, checkpoint: Path) -> None:
        change_weights(checkpoint, lambda weights: weights.pop(key_of(checkpoint, LLM_WEIGHT)))
        family("llava-ov").load_vision(open_checkpoint(str(checkpoint)))


class TestConfig:
    @pytest.mark.parametrize("content", ["", "{", "[1]", "\ufeff\x00", '{"a": NaN,}', "[" * 100_000])
    def test_what_is_no_json_object_is_refused(self, checkpoint: Path, refusal: Callable[..., str], content: str) -> None:
        (checkpoint / "config.json").write_text(content)
        assert f"{checkpoint / 'config.json'} " in refusal()

    def test_a_missing_config_is_named(self, checkpoint: Path, refusal: Callable[..., str]) -> None:
        (checkpoint / "config.json").unlink()
        assert "has no config.json; expected a Hugging Face checkpoint directory" in refusal()

    @pytest.mark.parametrize("kind", ["qwen2_vl", None, 7])
    def test_an_unknown_family_lists_those_known(self, checkpoint: Path, refusal: Callable[..., str], kind: object) -> None:
        change_json(checkpoint / "config.json", model_type=kind)
        line = refusal()
        assert f'is of model_type "{kind}"' in line
        assert "families known: llava-ov (model_type llava_onevision)" in line

    @pytest.mark.parametrize(
        ("part", "key", "value"),
        [
            ("vision_config", "hidden_size", "wide"),
            ("vision_config", "hidden_size", 7),
            ("vision_config", "hidden_act", "swosh"),
            ("vision_config", "patch_size", 0),
            ("text_config", "num_attention_heads", 0),
            ("text_config", "intermediate_size", -1),
            ("text_config", "rope_parameters", {"rope_theta": "big", "rope_type": "default"}),
        ],
    )
    def test_values_that_make_no_model(
        self, checkpoint: Path, refusal: Callable[..., str], part: str, key: str, value: object
    ) -> None:
        config = json.loads((checkpoint / "config.json").read_text())
        change_json(checkpoint / "config.json", **{part: config[part] | {key: value}})
        assert "does not describe a model that transformers can make" in refusal()

    @pytest.mark.parametrize("part", ["vision_config", "text_config"])
    def test_another_encoder_or_llm_is_refused_by_name(self, checkpoint: Path, refusal: Callable[..., str], part: str) -> None:
        config = json.loads((checkpoint / "config.json").read_text())
        change_json(checkpoint / "config.json", **{part: config[part] | {"model_type": "llama"}})
        assert f'{part} is of model_type "llama"; llava-ov knows "' in refusal()

    def test_a_feature_layer_that_the_encoder_lacks(self, checkpoint: Path, refusal: Callable[..., str]) -> None:
        change_json(checkpoint / "config.json", vision_feature_layer=-9)
        assert "vision_feature_layer is [-9], the encoder has 3 layers" in refusal()


class TestProcessorAndTokenizer:
    @pytest.mark.parametrize(
        ("values", "message"),
        [
            ({"size": 112}, "preprocessor size is 112"),
            ({"size": {"shortest_edge": 112}}, "preprocessor size is {'shortest_edge': 112}"),
            ({"size": {"height": 64, "width": 64}}, "frames are resized to [64, 64], the encoder takes [126, 126]"),
            ({"resample": 9}, "resample"),
            ({"image_std": [1, 0, 1]}, "image_std is"),
            ({"image_mean": "grey"}, 'image_mean is "grey"'),
            ({"num_frames": "many"}, "num_frames is 'many'"),
            ({"num_frames": 5000}, "5000"),
        ],
    )
    def test_preprocessing_that_makes_no_sense(
        self, checkpoint: Path, refusal: Callable[..., str], values: dict[str, object], message: str
    ) -> None:
        change_json(checkpoint / "video_preprocessor_config.json", **values)
        assert message in refusal()

    @pytest.mark.parametrize("content", ["{", "[]", "{}", '{"added_tokens": 3}', '{"added_tokens": [{}]}'])
    def test_a_tokenizer_without_its_tokens(self, checkpoint: Path, refusal: Callable[..., str], content: str) -> None:
        (checkpoint / "tokenizer.json").write_text(content)
        assert "tokenizer.json" in refusal()

    @pytest.mark.parametrize(
        ("name", "message"), [("tokenizer.json", "no tokenizer.json"), ("chat_template.jinja", "no chat template")]
    )
    def test_a_missing_file_is_named(self, checkpoint: Path, refusal: Callable[..., str], name: str, message: str) -> None:
        (checkpoint / name).unlink()
        change_json(checkpoint / "processor_config.json", chat_template=None)
        change_json(checkpoint / "tokenizer_config.json", chat_template=None)
        assert f"has {message}" in refusal()

    @pytest.mark.parametrize("eos", [None, "</s>", [], [2, "x"]])
    def test_an_end_that_is_no_token_id(self, checkpoint: Path, refusal: Callable[..., str], eos: object) -> None:
        change_json(checkpoint / "generation_config.json", eos_token_id=eos)
        assert "names no eos_token_id" in refusal()


class TestSource:
    def test_no_such_directory(self, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
        line = refused(capsys, main, "--checkpoint", tmp_path / "nothing", "--out", tmp_path / "out")
        assert f"no checkpoint at {tmp_path / 'nothing'}: no such directory" in line

    def test_a_file(self, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
        (tmp_path / "model.gguf").write_bytes(b"GGUF")
        line = refused(capsys, main, "--checkpoint", tmp_path / "model.gguf", "--out", tmp_path / "out")
        assert "model.gguf is a file; expected a Hugging Face checkpoint directory or a hub id" in line

    def test_a_hub_id_offline(self, tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
        line = refused(capsys, main, "--checkpoint", "llava-hf/nobody-has-this", "--out", tmp_path / "out")
        assert line.startswith("llava-hf/nobody-has-this could not be downloaded (")
        assert line.endswith("check the id and the network, or pass a local directory to --checkpoint")

    def test_a_hub_id_without_a_network(
        self, tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        import socket

        def unknown_host(*args: object, **kwargs: object) -> None:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

        monkeypatch.setattr(socket, "getaddrinfo", unknown_host)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
        for proxy in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
            monkeypatch.delenv(proxy, raising=False)
            monkeypatch.delenv(proxy.lower(), raising=False)
        line = refused(capsys, main, "--checkpoint", "llava-hf/nobody-has-this", "--out", tmp_path / "out")
        assert line.startswith("llava-hf/nobody-has-this could not be downloaded (")
