"""The family against transformers: the same weights in both key layouts, the same features, projections and prompts."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from refusal import naming
from safetensors.torch import load_file, save_file
from transformers import LlavaOnevisionConfig, LlavaOnevisionForConditionalGeneration, Qwen2Config, SiglipVisionConfig

from export.checkpoint import open_checkpoint
from export.demo import CHECKPOINT
from export.families import llava_ov
from runtime.core.errors import CheckpointError


@pytest.fixture(scope="module")
def hf():
    return LlavaOnevisionForConditionalGeneration.from_pretrained(CHECKPOINT, dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def vision():
    return llava_ov.load_vision(open_checkpoint(None))


@pytest.fixture
def pixels():
    return torch.randn(3, 3, 126, 126, generator=torch.Generator().manual_seed(0))


def _copy(tmp_path: Path) -> Path:
    goal = tmp_path / "checkpoint"
    shutil.copytree(CHECKPOINT, goal)
    return goal


def test_export_spelling_of_the_encoder_equals_transformers(vision, hf, pixels):
    expected = hf.model.vision_tower(pixels, output_hidden_states=True).hidden_states[-1]
    torch.testing.assert_close(vision.encoder(pixels), expected, rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(vision.reference_encoder(pixels), expected, rtol=0, atol=0)


def test_flash_attention_in_the_encoder_is_one_operator_and_equals_the_written_out_one(vision, pixels, monkeypatch):
    calls, attention = [], torch.onnx.ops.attention
    monkeypatch.setattr(torch.onnx.ops, "attention", lambda *tensors, **more: calls.append(more) or attention(*tensors, **more))
    flash = llava_ov.load_vision(open_checkpoint(None), "flash").encoder
    torch.testing.assert_close(flash(pixels), vision.encoder(pixels), rtol=1e-5, atol=1e-4)
    assert (
        len(calls) == len(flash.layers) and calls[0]["q_num_heads"] == calls[0]["kv_num_heads"] == flash.layers[0].self_attn.heads
    )


def test_features_are_taken_before_post_layernorm(vision, hf, pixels):
    after = hf.model.vision_tower(pixels).last_hidden_state
    assert (vision.encoder(pixels) - after).abs().max() > 0.1


def test_projector_and_newline_are_the_checkpoints(vision, hf, pixels):
    patches = vision.encoder(pixels)
    torch.testing.assert_close(vision.projector(patches), hf.model.multi_modal_projector(patches))
    torch.testing.assert_close(vision.newline[0], hf.model.image_newline)


@pytest.mark.parametrize("compress", ["llava-ov"])
def test_own_compression_equals_get_video_features(vision, hf, pixels, compress):
    from export.compress import make
    from export.trace import Vision

    module = Vision(vision, make(compress, frames=3, height=9, width=9), "after-projector")
    with torch.inference_mode():
        expected = hf.model.get_video_features(
            pixels[None], vision_feature_layer=-1, vision_feature_select_strategy="full"
        ).pooler_output
        tokens = module(pixels)[0]
    assert tokens.shape == (25 * 3 + 1, 128)
    torch.testing.assert_close(tokens, expected[0], rtol=1e-5, atol=1e-4)


def test_the_llm_equals_transformers(hf):
    causal_lm = llava_ov.load_llm(open_checkpoint(None))
    ids = torch.arange(6, 20)[None]
    with torch.inference_mode():
        torch.testing.assert_close(causal_lm(ids).logits, hf(input_ids=ids).logits)
    prompt = llava_ov.describe_llm(open_checkpoint(None)).chat
    assert prompt.video_token == "<video>" and prompt.eos_token_ids == [2]


@pytest.mark.parametrize("layout", ["published", "today's", "sharded"])
def test_every_key_layout_gives_the_same_weights(layout, tmp_path, vision, pixels):
    path = _copy(tmp_path)
    weights = load_file(path / "model.safetensors")
    if layout == "published":
        renamed = {
            key.replace("vision_tower.", "vision_tower.vision_model."): value.clone()
            for key, value in weights.items()
            if not key.startswith("lm_head")
        }
        save_file(renamed, path / "model.safetensors")
    elif layout == "today's":
        renamed = {}
        for key, value in weights.items():
            key = key.replace("language_model.model.", "language_model.")
            renamed[key if key.startswith("lm_head") else f"model.{key}"] = value.clone()
        save_file(renamed, path / "model.safetensors")
    else:
        (path / "model.safetensors").unlink()
        shards = {f"model-{n + 1:05d}-of-00002.safetensors": dict(list(sorted(weights.items()))[n::2]) for n in range(2)}
        for name, shard in shards.items():
            save_file({key: value.clone() for key, value in shard.items()}, path / name)
        index = {"weight_map": {key: name for name, shard in shards.items() for key in shard}}
        (path / "model.safetensors.index.json").write_text(json.dumps(index))
    again = llava_ov.load_vision(open_checkpoint(str(path)))
    torch.testing.assert_close(again.encoder(pixels), vision.encoder(pixels), rtol=0, atol=0)
    ids = torch.arange(6, 20)[None]
    expected = llava_ov.load_llm(open_checkpoint(None))(ids).logits
    torch.testing.assert_close(llava_ov.load_llm(open_checkpoint(str(path)))(ids).logits, expected, rtol=0, atol=0)


def test_several_feature_layers_are_concatenated(tmp_path):
    torch.manual_seed(0)
    config = LlavaOnevisionConfig(
        vision_config=SiglipVisionConfig(
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=4,
            num_attention_heads=2,
            image_size=126,
            patch_size=14,
            vision_use_head=False,
        ),
        text_config=Qwen2Config(
            vocab_size=60,
            hidden_size=64,
            intermediate_size=96,
            num_hidden_layers=1,
            num_attention_heads=2,
            num_key_value_heads=1,
            eos_token_id=2,
        ),
        vision_feature_layer=[1, -2],
        vision_feature_select_strategy="full",
        image_token_index=3,
        video_token_index=4,
        tie_word_embeddings=False,
    )
    model = LlavaOnevisionForConditionalGeneration(config).eval()
    for name in ("tokenizer.json", "preprocessor_config.json", "chat_template.jinja"):
        shutil.copyfile(CHECKPOINT / name, tmp_path / name)
    model.save_pretrained(tmp_path)
    vision = llava_ov.load_vision(open_checkpoint(str(tmp_path)))
    pixels = torch.randn(2, 3, 126, 126)
    states = model.model.vision_tower(pixels, output_hidden_states=True).hidden_states
    features = torch.cat([states[1], states[-2]], dim=-1)
    torch.testing.assert_close(vision.reference_encoder(pixels), features, rtol=0, atol=0)
    expected = model.model.multi_modal_projector(features)
    torch.testing.assert_close(vision.projector(vision.encoder(pixels)), expected, rtol=1e-5, atol=1e-5)
    # the untied head is read from the file, not copied from the embeddings
    ids = torch.arange(6, 20)[None]
    torch.testing.assert_close(llava_ov.load_llm(open_checkpoint(str(tmp_path)))(ids).logits, model(input_ids=ids).logits)


def test_frames_of_the_encoders_size_are_required(tmp_path):
    path = _copy(tmp_path)
    for name in ("preprocessor_config.json", "video_preprocessor_config.json"):
        values = json.loads((path / name).read_text())
        values["size"] = {"height": 384, "width": 384}
        (path / name).write_text(json.dumps(values))
    with pytest.raises(CheckpointError, match=naming(path, [384, 384], [126, 126])):
        llava_ov.load_vision(open_checkpoint(str(path)))


def test_a_checkpoint_that_says_no_number_of_frames_is_given_32(tmp_path):
    path = _copy(tmp_path)
    info = llava_ov.describe_vision(open_checkpoint(str(path)))
    assert (info.grid, info.frames, info.hidden_size, info.closing_tokens) == ((9, 9), 16, 128, 1)
    (path / "video_preprocessor_config.json").unlink()
    assert llava_ov.describe_vision(open_checkpoint(str(path))).frames == 32


@pytest.mark.parametrize("part", ["vision_config", "text_config"])
def test_a_config_may_have_a_thousand_layers(tmp_path, part):
    path = _copy(tmp_path)
    config = json.loads((path / "config.json").read_text())
    config["text_config"].pop("layer_types", None)
    for layers in (1000, 1001):
        config[part]["num_hidden_layers"] = layers
        (path / "config.json").write_text(json.dumps(config))
        if layers == 1000:
            assert getattr(llava_ov._config(open_checkpoint(str(path))), part).num_hidden_layers == 1000
        else:
            with pytest.raises(CheckpointError, match=f"{part} has num_hidden_layers 1001; expected at most 1000"):
                llava_ov._config(open_checkpoint(str(path)))


@pytest.mark.parametrize(
    ("key", "check", "other"),
    [
        ("vision_tower.encoder.layers.0.mlp.fc1.weight", llava_ov.check_vision_weights, llava_ov.check_llm_weights),
        ("multi_modal_projector.linear_1.bias", llava_ov.check_vision_weights, llava_ov.check_llm_weights),
        ("language_model.layers.2.mlp.up_proj.weight", llava_ov.check_llm_weights, llava_ov.check_vision_weights),
    ],
)
def test_each_half_is_checked_for_its_own_weights(tmp_path, key, check, other):
    path = _copy(tmp_path)
    weights = load_file(path / "model.safetensors")
    (name,) = [name for name in weights if name.endswith(key.removeprefix("language_model."))]
    del weights[name]
    save_file(weights, path / "model.safetensors")
    with pytest.raises(CheckpointError, match=f"lacks weights: {key};"):
        check(open_checkpoint(str(path)))
    other(open_checkpoint(str(path)))


def test_values_of_the_llm_are_looked_at_where_that_is_asked_for(tmp_path):
    path = _copy(tmp_path)
    weights = load_file(path / "model.safetensors")
    weights[next(name for name in weights if name.endswith("layers.2.mlp.up_proj.weight"))][3, 5] = float("nan")
    save_file(weights, path / "model.safetensors")
    llava_ov.check_llm_weights(open_checkpoint(str(path)))
    with pytest.raises(CheckpointError, match="has NaN or infinite values"):
        llava_ov.check_llm_weights(open_checkpoint(str(path)), values=True)


@pytest.mark.parametrize("where", ["top level", "text_config"])
def test_a_file_without_a_head_uses_the_embeddings_where_either_config_ties_them(tmp_path, where):
    path = _copy(tmp_path)
    config = json.loads((path / "config.json").read_text())
    config["tie_word_embeddings"] = where == "top level"
    config["text_config"]["tie_word_embeddings"] = where == "text_config"
    (path / "config.json").write_text(json.dumps(config))
    assert "lm_head.weight" not in load_file(path / "model.safetensors")
    ids = torch.arange(6, 20)[None]
    expected = llava_ov.load_llm(open_checkpoint(None))(ids).logits
    torch.testing.assert_close(llava_ov.load_llm(open_checkpoint(str(path)))(ids).logits, expected, rtol=0, atol=0)


def test_a_head_in_the_file_is_used_though_the_config_ties_it(tmp_path):
    path = _copy(tmp_path)
    weights = load_file(path / "model.safetensors")
    head = torch.randn(66, 128, generator=torch.Generator().manual_seed(0))
    save_file(weights | {"lm_head.weight": head}, path / "model.safetensors")
    torch.testing.assert_close(llava_ov.load_llm(open_checkpoint(str(path))).lm_head.weight.data, head)
