"""What the configs make impossible is refused before a weight file is opened."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from refusal import change_config, change_json, naming

from export.checkpoint import open_checkpoint
from export.families import family


class TestLLM:
    @pytest.mark.parametrize(
        ("values", "layers"),
        [
            ({"use_sliding_window": True, "sliding_window": 512, "max_window_layers": 1, "layer_types": None}, 3),
            ({"use_sliding_window": True, "sliding_window": 512, "max_window_layers": 0, "layer_types": None}, 4),
            ({"use_sliding_window": True, "sliding_window": 512, "layer_types": [*["full_attention"] * 3, "sliding_attention"]}, 1),
            ({"layer_types": ["sliding_attention"] * 4}, 4),  # of what width is not said
        ],
    )
    def test_layers_that_slide(self, checkpoint: Path, refusal: Callable[..., str], values: dict[str, Any], layers: int) -> None:
        change_config(checkpoint, "text_config", **values)
        line = refusal()
        assert line.startswith(f"{checkpoint / 'config.json'}: {layers} of the LLM's 4 layers are of type sliding_attention")
        assert "choose a checkpoint with full attention" in line

    @pytest.mark.parametrize(
        "values",
        [
            {"use_sliding_window": True, "sliding_window": 512, "max_window_layers": 24, "layer_types": None},
            {"use_sliding_window": True, "sliding_window": 512, "layer_types": ["full_attention"] * 4},
            {"use_sliding_window": True, "sliding_window": 4096, "max_window_layers": 0, "layer_types": None},
            {"use_sliding_window": False, "sliding_window": 512, "max_window_layers": 0, "layer_types": None},
        ],
        ids=["past the last layer", "no layer", "as wide as the context", "switched off"],
    )
    def test_a_window_in_which_no_layer_slides_is_full_attention(self, checkpoint: Path, values: dict[str, Any]) -> None:
        import torch

        from export.decoder import Decoder

        change_config(checkpoint, "text_config", **values)
        llm = family("llava-ov").load_llm(open_checkpoint(str(checkpoint)))
        expected = family("llava-ov").load_llm(open_checkpoint(None))
        ids = torch.arange(6, 60)[None]
        torch.testing.assert_close(llm(ids).logits, expected(ids).logits, rtol=0, atol=1e-5)
        Decoder(llm, 64)

    def test_a_rotation_that_depends_on_the_prompts_length(self, checkpoint: Path, refusal: Callable[..., str]) -> None:
        factors = [1.0] * 16
        longrope = {"rope_type": "longrope", "rope_theta": 1e4, "short_factor": factors, "long_factor": factors, "factor": 4.0}
        change_config(checkpoint, "text_config", rope_parameters=longrope | {"original_max_position_embeddings": 1024})
        assert naming(checkpoint / "config.json", "rope_type", "longrope").match(refusal())

    @pytest.mark.parametrize(
        "rope",
        [{"rope_theta": 0}, {"rope_theta": -1.0}, {"rope_theta": float("nan")}],
        ids=str,
    )
    def test_a_rotation_that_is_not_finite(self, checkpoint: Path, refusal: Callable[..., str], rope: dict[str, Any]) -> None:
        change_config(checkpoint, "text_config", rope_parameters={"rope_type": "default", "rope_theta": 1e4} | rope)
        line = refusal()
        assert line.startswith(f"{checkpoint / 'config.json'}: rope_parameters ") and "not finite" in line

    @pytest.mark.parametrize("part", ["vision_config", "text_config"])
    def test_more_layers_than_any_model_has(self, checkpoint: Path, refusal: Callable[..., str], part: str) -> None:
        change_config(checkpoint, part, num_hidden_layers=1001)
        assert f"{checkpoint / 'config.json'}: {part} has num_hidden_layers 1001; expected at most 1000" in refusal()

    def test_heads_that_kv_heads_do_not_divide(self, checkpoint: Path, refusal: Callable[..., str]) -> None:
        change_config(checkpoint, "text_config", num_key_value_heads=3)
        assert f"{checkpoint / 'config.json'}: the LLM's 4 attention heads can't share 3 KV heads evenly" in refusal()


class TestVision:
    @pytest.mark.parametrize(
        ("part", "values", "message"),
        [
            (None, {"vision_feature_layer": -9}, "vision_feature_layer is [-9], the encoder has 3 layers"),
            (None, {"vision_feature_layer": []}, "vision_feature_layer is []"),
            (None, {"vision_feature_select_strategy": "default"}, 'vision_feature_select_strategy is "default"'),
            (None, {"projector_hidden_act": "swosh"}, "does not describe a model that transformers can make"),
            ("vision_config", {"num_channels": 4}, "the encoder takes 4 channels; expected 3"),
            ("vision_config", {"num_attention_heads": -1}, "the encoder has -1 attention heads; expected at least 1"),
            ("vision_config", {"layer_norm_eps": float("nan")}, "layer_norm_eps is nan; expected a small number from 0 on"),
        ],
    )
    def test_values_of_the_config(
        self, checkpoint: Path, refusal: Callable[..., str], part: str | None, values: dict[str, Any], message: str
    ) -> None:
        change_config(checkpoint, part, **values)
        line = refusal()
        assert line.startswith(str(checkpoint / "config.json"))
        assert message in line

    @pytest.mark.parametrize(
        ("values", "message"),
        [
            ({"do_resize": False}, "do_resize is false"),
            ({"do_center_crop": True, "crop_size": {"height": 112, "width": 112}}, "do_center_crop with crop_size"),
            ({"resample": 9}, "resample is 9"),
            ({"rescale_factor": 10**400}, "rescale_factor is 1000000"),
            ({"image_mean": 10**400}, "image_mean is 1000000"),
            ({"num_frames": 5000}, "num_frames of its preprocessor config is 5000"),
        ],
    )
    def test_preprocessing(self, checkpoint: Path, refusal: Callable[..., str], values: dict[str, Any], message: str) -> None:
        change_json(checkpoint / "video_preprocessor_config.json", **values)
        assert message in refusal()

    def test_int8_of_clips_of_one_frame(self, checkpoint: Path, refusal: Callable[..., str]) -> None:
        change_json(checkpoint / "video_preprocessor_config.json", num_frames=1)
        assert "--precision int8 splits a clip into frames" in refusal("--precision", "int8")

    def test_steps_that_are_switched_off_are_left_out(self, checkpoint: Path) -> None:
        change_json(checkpoint / "video_preprocessor_config.json", do_rescale=False, do_normalize=False, do_pad=True)
        preprocessing = family("llava-ov").describe_vision(open_checkpoint(str(checkpoint))).preprocessing
        assert preprocessing.rescale_factor == 1
        assert (preprocessing.image_mean, preprocessing.image_std) == (0, 1)

    @pytest.mark.parametrize(
        "values",
        [
            {"do_center_crop": False, "crop_size": {"height": 112, "width": 112}},
            {"do_center_crop": True, "crop_size": {"height": 126, "width": 126}},
            {"do_center_crop": True},
        ],
        ids=["switched off", "of the whole frame", "of no size"],
    )
    def test_a_crop_that_cuts_nothing_is_left_out(self, checkpoint: Path, values: dict[str, Any]) -> None:
        expected = family("llava-ov").describe_vision(open_checkpoint(str(checkpoint))).preprocessing
        change_json(checkpoint / "video_preprocessor_config.json", **values)
        assert family("llava-ov").describe_vision(open_checkpoint(str(checkpoint))).preprocessing == expected
