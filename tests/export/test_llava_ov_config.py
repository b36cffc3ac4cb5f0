"""LLaVA-OneVision: which values of a config are refused, and today's names of weights, without a model."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from refusal import naming

from export.checkpoint import Checkpoint, open_checkpoint
from export.families import FAMILIES, _original, check_model_type, family, llava_ov, reading_config
from runtime.core.errors import CheckpointError, ExportError

C: Any = SimpleNamespace(path=Path("C"))


def text(**values: Any) -> SimpleNamespace:
    plain = {"sliding_window": None, "max_position_embeddings": 100, "layer_types": ["full_attention"] * 3, "num_hidden_layers": 3}
    return SimpleNamespace(**(plain | values))


@pytest.mark.parametrize(
    ("given", "layers"), [(-1, [-1]), (0, [0]), (3, [3]), (-4, [-4]), ([-4, 3], [-4, 3]), ((1,), [1]), (4, None), (-5, None),
                          ([0, 4], None), ([-5, 0], None), ([], None)],
)  # fmt: skip
def test_feature_layers_are_the_embeddings_and_every_layer_from_either_end(given, layers):
    config = SimpleNamespace(vision_feature_layer=given, vision_config=SimpleNamespace(num_hidden_layers=3))
    if layers is not None:
        assert llava_ov._feature_layers(C, config) == layers
    else:
        with pytest.raises(CheckpointError, match=naming("3 layers", "config.json")):
            llava_ov._feature_layers(C, config)


SLIDING = ["full_attention", "sliding_attention", "sliding_attention"]


@pytest.mark.parametrize(
    "values",
    [{}, {"sliding_window": 5}, {"layer_types": SLIDING, "sliding_window": 100}, {"layer_types": SLIDING, "sliding_window": 101}],
)
def test_a_window_as_wide_as_the_context_is_full_attention(values):
    llava_ov._refuse_sliding_window(C, text(**values))


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"layer_types": SLIDING, "sliding_window": 99}, ["2 of the LLM's 3 layers", "sliding_attention (sliding_window 99)"]),
        ({"layer_types": SLIDING}, ["2 of the LLM's 3 layers", "sliding_attention (sliding_window None)"]),
        ({"layer_types": ["chunked_attention", *SLIDING], "sliding_window": 100}, ["1 of the LLM's 3 layers", "chunked_attention"]),
        ({"layer_types": ["chunked_attention", *SLIDING], "sliding_window": 9}, ["3 of the LLM's 3 layers", "chunked_attention"]),
    ],
)
def test_other_attention_is_refused_by_its_kind(values, named):
    with pytest.raises(CheckpointError, match=naming("C/config.json", *named)):
        llava_ov._refuse_sliding_window(C, text(**values))


@pytest.mark.parametrize("parameters", [None, {}, {"rope_type": "yarn"}, {"rope_type": "longrope"}])
def test_of_the_rotations_longrope_alone_depends_on_the_prompts_length(monkeypatch, parameters):
    made = SimpleNamespace(inv_freq=torch.ones(2), attention_scaling=1.0)
    monkeypatch.setattr("transformers.models.qwen2.modeling_qwen2.Qwen2RotaryEmbedding", lambda config: made)
    if parameters != {"rope_type": "longrope"}:
        llava_ov._refuse_rotation(C, text(rope_parameters=parameters))
    else:
        with pytest.raises(CheckpointError, match=naming("rope_type", "longrope")):
            llava_ov._refuse_rotation(C, text(rope_parameters=parameters))


@pytest.mark.parametrize(
    ("frequencies", "scaling", "refused"),
    [
        ([1.0, 0.5], 1.0, False),
        ([1.0, math.inf], 1.0, True),
        ([math.nan, 1.0], 1.0, True),
        ([1.0, 0.5], math.inf, True),
        ([1.0, 0.5], math.nan, True),
    ],
)
def test_every_frequency_and_the_scale_of_a_rotation_are_finite(monkeypatch, frequencies, scaling, refused):
    made = SimpleNamespace(inv_freq=torch.tensor(frequencies), attention_scaling=scaling)
    monkeypatch.setattr("transformers.models.qwen2.modeling_qwen2.Qwen2RotaryEmbedding", lambda config: made)
    if refused:
        with pytest.raises(CheckpointError, match=naming("rotations", "finite")):
            llava_ov._refuse_rotation(C, text(rope_parameters={}))
    else:
        llava_ov._refuse_rotation(C, text(rope_parameters={}))


@pytest.mark.parametrize(
    ("value", "refused"), [(0, False), (1e-6, False), (1e300, False), (-1e-9, True), (math.inf, True), (math.nan, True)]
)
def test_an_epsilon_is_finite_and_not_negative(value, refused):
    if refused:
        with pytest.raises(CheckpointError, match=naming(f"rms_norm_eps is {value}")):
            llava_ov._refuse_epsilon(C, "rms_norm_eps", value)
    else:
        llava_ov._refuse_epsilon(C, "rms_norm_eps", value)


@pytest.mark.parametrize(
    ("key", "vision", "llm"),
    [
        ("model.vision_tower.encoder.a", "vision_tower.encoder.a", None),
        ("vision_tower.vision_model.encoder.a", "vision_tower.encoder.a", None),
        ("model.vision_tower.vision_model.a", "vision_tower.a", None),
        ("multi_modal_projector.linear_1.bias", "multi_modal_projector.linear_1.bias", None),
        ("model.image_newline", "image_newline", None),
        ("language_model.model.layers.0.a", None, "language_model.layers.0.a"),
        ("model.language_model.layers.0.a", None, "language_model.layers.0.a"),
        ("language_model.lm_head.weight", None, "lm_head.weight"),
        ("lm_head.weight", None, "lm_head.weight"),
        ("language_model.model.layers.0.self_attn.rotary_emb.inv_freq", None, None),
        ("vision_tower.vision_model.embeddings.position_ids", None, None),
        ("vision_tower.vision_model.head.probe", None, None),
        ("stranger.weight", "stranger.weight", "stranger.weight"),  # unknown: either half refuses it
        ("model.stranger", "model.stranger", "model.stranger"),
    ],
)
def test_each_half_knows_its_weights_by_todays_names(key, vision, llm):
    assert (llava_ov._vision_name(key), llava_ov._llm_name(key)) == (vision, llm)


def test_only_a_tied_head_may_be_absent():
    assert llava_ov._tied(SimpleNamespace(tie_word_embeddings=False)) == {}
    tied = llava_ov._tied(SimpleNamespace(tie_word_embeddings=True))
    assert tied == {"lm_head.weight": "language_model.embed_tokens.weight"}


def test_the_defaults_of_the_family():
    assert family("llava-ov") is llava_ov and list(FAMILIES) == ["llava-ov"]
    assert (llava_ov.NAME, llava_ov.MODEL_TYPE, llava_ov.FRAMES, llava_ov.COMPRESS) == (
        "llava-ov",
        "llava_onevision",
        32,
        "st-gridpool",
    )
    with pytest.raises(ExportError, match=naming('"llava_ov"', '"llava-ov"')):
        family("llava_ov")


ORIGINAL = {"mm_vision_tower": "siglip", "architectures": ["LlavaQwenForCausalLM", "Other"], "hidden_size": 896}


@pytest.mark.parametrize(
    ("config", "layout", "advice"),
    [
        (ORIGINAL, "LlavaQwenForCausalLM", "qwen2-0.5b-ov-hf"),
        (ORIGINAL | {"hidden_size": 8192, "mm_newline_position": "one_token"}, "LlavaQwenForCausalLM", "qwen2-72b-ov-hf"),
        ({"mm_projector_type": "mlp"}, "LLaVA", "qwen2-7b-ov-hf"),
        (ORIGINAL | {"architectures": [], "hidden_size": 3584}, "LLaVA", "qwen2-7b-ov-hf"),
        (ORIGINAL | {"architectures": "LlavaQwen"}, "LLaVA", "qwen2-0.5b-ov-hf"),
        (ORIGINAL | {"mm_newline_position": "grid"}, "LlavaQwenForCausalLM", "with a newline token in every row of a frame"),
    ],
)
def test_a_checkpoint_of_the_original_repository_is_told_its_conversion(config, layout, advice):
    said = _original(config)
    assert said.startswith(f": it is {layout} in LLaVA-NeXT's own layout") and advice in said
    assert ("(LLaVA-Video)" in said) is ("newline" in advice)


def test_any_other_checkpoint_is_told_nothing_of_conversions():
    assert _original({"architectures": ["LlavaQwenForCausalLM"], "hidden_size": 896}) == ""


def test_the_config_of_the_right_family_is_passed_on(monkeypatch):
    looked_at = []
    monkeypatch.setattr("export.families.refuse_quantized", looked_at.append)
    source: Any = SimpleNamespace(path=Path("C"), config=lambda: {"model_type": "llava_onevision", "a": 1})
    assert check_model_type(source, "llava_onevision") == {"model_type": "llava_onevision", "a": 1}
    assert looked_at == [source]
    with pytest.raises(CheckpointError, match=naming("C", 'model_type "llava_onevision"', '"other"', "llava-ov")):
        check_model_type(source, "other")


def test_what_the_library_raises_about_a_config_is_said_in_one_line_and_our_own_errors_pass():
    with pytest.raises(CheckpointError) as raised, reading_config(C):
        raise ValueError("two\n lines")
    assert naming("C/config.json", "ValueError: two lines").match(str(raised.value))
    with pytest.raises(ExportError, match=r"^ours$"), reading_config(C):
        raise ExportError("ours")
    with reading_config(C):
        pass


@pytest.mark.parametrize(
    ("config", "named"),
    [
        ({"text_config": "x"}, ["text_config", "'x'", "object"]),
        ({"vision_config": [1]}, ["vision_config", "[1]", "object"]),
        ({"text_config": {"model_type": "llama"}}, ["text_config", '"llama"', '"qwen2"']),
        ({"vision_config": {"model_type": "clip"}}, ["vision_config", '"clip"', '"siglip_vision_model"']),
        ({"text_config": {"num_hidden_layers": 1001}}, ["text_config", "num_hidden_layers", 1001, 1000]),
    ],
)
def test_parts_of_another_kind_are_refused(monkeypatch, config, named):
    monkeypatch.setattr(llava_ov, "check_model_type", lambda checkpoint, expected: {"model_type": expected} | config)
    with pytest.raises(CheckpointError, match=naming("C/config.json", *named)):
        llava_ov._config(C)


@pytest.mark.parametrize(
    ("config", "tied"),
    [
        ({"tie_word_embeddings": True}, True),
        ({"tie_word_embeddings": False, "text_config": {"tie_word_embeddings": True}}, True),
        ({"tie_word_embeddings": False, "text_config": {"tie_word_embeddings": False}}, False),
        ({"tie_word_embeddings": False, "text_config": None, "vision_config": None}, False),
    ],
)
def test_a_head_is_tied_where_either_config_says_so(monkeypatch, config, tied):
    monkeypatch.setattr(llava_ov, "check_model_type", lambda checkpoint, expected: {"model_type": expected} | config)
    made = llava_ov._config(C)
    assert (made.tie_word_embeddings, made.text_config.tie_word_embeddings) == (tied, tied)
    assert (made.vision_config._attn_implementation, made.text_config._attn_implementation) == ("sdpa", "sdpa")


def shipped(monkeypatch: pytest.MonkeyPatch, part: str | None = None, **values: Any) -> Checkpoint:
    """The shipped checkpoint with other values in its config."""
    source = open_checkpoint(None)
    raw = source.config()
    (raw[part] if part else raw).update(values)
    monkeypatch.setattr(llava_ov, "check_model_type", lambda checkpoint, expected: raw)
    return source


def test_the_halves_of_the_shipped_checkpoint_are_described(monkeypatch):
    vision = llava_ov.describe_vision(shipped(monkeypatch, "vision_config", num_attention_heads=1, layer_norm_eps=0.0))
    assert (vision.grid, vision.frames, vision.hidden_size, vision.closing_tokens) == ((9, 9), 16, 128, 1)
    assert all(type(side) is int for side in vision.grid) and vision.preprocessing.size == (126, 126)
    llm = llava_ov.describe_llm(shipped(monkeypatch, "text_config", num_key_value_heads=1, rms_norm_eps=0.0))
    assert (llm.max_positions, llm.vocabulary, llm.chat.video_token_id) == (4096, 66, 4)


@pytest.mark.parametrize(
    ("part", "values", "named"),
    [
        (None, {"vision_feature_select_strategy": "default"}, ["vision_feature_select_strategy", '"default"', '"full"']),
        (None, {"vision_feature_layer": 4}, ["vision_feature_layer", "[4]", "3 layers"]),
        ("vision_config", {"num_channels": 4}, ["4 channels", 3]),
        ("vision_config", {"num_channels": 1}, ["1 channels", 3]),
        ("vision_config", {"num_attention_heads": 0}, ["0 attention heads", 1]),
        ("vision_config", {"layer_norm_eps": -1.0}, ["layer_norm_eps", "-1.0"]),
        ("vision_config", {"image_size": 140}, ["[126, 126]", "[140, 140]"]),
        (None, {"projector_hidden_act": "swosh"}, ["config.json", "swosh"]),
    ],
)
def test_an_encoder_that_can_not_be_exported_is_refused(monkeypatch, part, values, named):
    with pytest.raises(CheckpointError, match=naming(*named)):
        llava_ov.describe_vision(shipped(monkeypatch, part, **values))


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"layer_types": ["sliding_attention"] * 3, "sliding_window": 8, "num_hidden_layers": 3}, ["sliding_attention"]),
        ({"rope_parameters": {"rope_type": "default", "rope_theta": 0.0}}, ["rope_parameters", "rotations", "finite"]),
        ({"rms_norm_eps": math.inf}, ["rms_norm_eps", "inf"]),
        ({"hidden_act": "swosh"}, ["config.json", "swosh"]),
        ({"num_key_value_heads": 3}, ["4 attention heads", "3 KV heads"]),
        ({"vocab_size": 2}, ["eos_token_id", "vocab_size is 2"]),
    ],
)
def test_an_llm_that_can_not_be_exported_is_refused(monkeypatch, values, named):
    with pytest.raises(CheckpointError, match=naming(*named)):
        llava_ov.describe_llm(shipped(monkeypatch, "text_config", **values))
