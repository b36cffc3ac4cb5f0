"""Quantized checkpoints, other layouts, and options that don't fit the checkpoint are refused before a weight file is opened."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from refusal import change_config

from export.weights import _method


class TestQuantized:
    @pytest.mark.parametrize(
        ("part", "quantization", "method"),
        [
            (None, {"quant_method": "bitsandbytes", "_load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}, "bitsandbytes"),
            (None, {"load_in_8bit": True}, "bitsandbytes"),
            ("text_config", {"quant_method": "awq", "bits": 4, "group_size": 128}, "awq, 4 bits"),
            (None, {"quant_method": "gptq", "bits": 8}, "gptq, 8 bits"),
            ("text_config", {"quant_method": "compressed-tensors", "format": "float-quantized"}, "compressed-tensors"),
            ("vision_config", {"quant_method": "torchao", "quant_type": {"default": {}}}, "torchao"),
            (None, {"quant_method": "hqq"}, "hqq"),
        ],
    )
    def test_the_method_is_named(
        self, checkpoint: Path, refusal: Callable[..., str], part: str | None, quantization: dict[str, Any], method: str
    ) -> None:
        change_config(checkpoint, part, quantization_config=quantization)
        line = refusal()
        assert line.startswith(
            f"{checkpoint / 'config.json'}: quantization_config says that the weights are quantized ({method}); "
        )
        assert "pass the checkpoint that has not been quantized" in line

    @pytest.mark.parametrize(
        ("quantization", "said"),
        [
            ({"load_in_4bit": True}, "quantized (bitsandbytes)"),
            ({"w_bit": 4, "q_group_size": 128}, "quantized (4 bits)"),  # AWQ's own
            ({"quant_method": "gptq", "bits": 8, "w_bit": 4}, "quantized (gptq, 8 bits)"),
            ({"quant_method": 7, "bits": "4"}, "quantized"),
            ({"bits": True}, "quantized"),
            (True, "quantized"),
        ],
        ids=str,
    )
    def test_what_a_config_does_not_say_is_not_made_up(self, quantization: object, said: str) -> None:
        assert _method(quantization) == said

    def test_the_other_key_is_looked_for_too(self, checkpoint: Path, refusal: Callable[..., str]) -> None:
        change_config(checkpoint, "text_config", quantization_config={}, compression_config={"quant_method": "sparse"})
        line = refusal()
        assert line.startswith(f"{checkpoint / 'config.json'}: compression_config says that the weights are quantized (sparse); ")

    @pytest.mark.parametrize(
        ("name", "method"), [("quantize_config.json", "GPTQ"), ("quant_config.json", "AWQ"), ("hf_quant_config.json", "ModelOpt")]
    )
    def test_a_file_of_the_quantizer_beside_the_config(
        self, checkpoint: Path, refusal: Callable[..., str], name: str, method: str
    ) -> None:
        (checkpoint / name).write_text('{"bits": 4}')
        assert refusal().startswith(f"{checkpoint / name} says that the weights are quantized ({method}); ")


class TestOtherLayouts:
    ORIGINAL = {  # noqa: RUF012
        "architectures": ["LlavaQwenForCausalLM"],
        "model_type": "llava",
        "hidden_size": 3584,
        "mm_vision_tower": "google/siglip-so400m-patch14-384",
        "mm_projector_type": "mlp2x_gelu",
    }

    def test_the_original_layout_has_a_conversion(self, checkpoint: Path, refusal: Callable[..., str]) -> None:
        (checkpoint / "config.json").write_text(json.dumps(self.ORIGINAL | {"mm_newline_position": "one_token"}))
        line = refusal()
        assert "LlavaQwenForCausalLM in LLaVA-NeXT's own layout" in line
        assert "use its conversion for transformers, llava-hf/llava-onevision-qwen2-7b-ov-hf" in line

    def test_llava_video_is_named(self, checkpoint: Path, refusal: Callable[..., str]) -> None:
        (checkpoint / "config.json").write_text(json.dumps(self.ORIGINAL | {"mm_newline_position": "grid"}))
        assert "(LLaVA-Video), which no family here reads; use a LLaVA-OneVision checkpoint such as" in refusal()

    def test_a_directory_of_checkpoints_names_them(self, checkpoint: Path, refusal: Callable[..., str]) -> None:
        (checkpoint / "checkpoint-500").mkdir()
        (checkpoint / "config.json").rename(checkpoint / "checkpoint-500" / "config.json")
        assert refusal().endswith(
            f"expected a Hugging Face checkpoint directory; pass one that has: {checkpoint / 'checkpoint-500'}"
        )

    def test_an_adapter_names_its_base(self, checkpoint: Path, refusal: Callable[..., str]) -> None:
        for file in checkpoint.iterdir():
            file.unlink()
        (checkpoint / "adapter_config.json").write_text('{"peft_type": "LORA", "base_model_name_or_path": "llava-hf/base"}')
        (checkpoint / "adapter_model.safetensors").write_bytes(b"")
        line = refusal()
        assert line.startswith(
            f"{checkpoint} is an adapter without its base model llava-hf/base (adapter_config.json); merge the two"
        )


class TestOptions:
    def test_a_clip_that_leaves_no_room_for_a_question(self, refusal: Callable[..., str]) -> None:
        line = refusal("--frames", "320", "--max-context", "4096")
        assert "the clip has 5121 visual tokens, the LLM was trained for 4096 positions; use fewer --frames" in line

    def test_a_context_without_room_for_a_question(self, refusal: Callable[..., str]) -> None:
        line = refusal("--max-context", "270")
        assert line.startswith("--max-context is 270, the clip has 257 visual tokens and a short question and answer ")
        least = line.rpartition("expected at least ")[2]
        assert int(least) > 257 + 16

    @pytest.mark.parametrize(
        "args", [("--precision", "int8"), ("--llm-precision", "int4"), ("--llm-precision", "int8", "--only", "llm")]
    )
    def test_a_video_that_can_not_calibrate(self, refusal: Callable[..., str], tmp_path: Path, args: tuple[str, ...]) -> None:
        (tmp_path / "clips").mkdir()
        (tmp_path / "clips" / "broken.mp4").write_bytes(b"not a video")
        assert "broken.mp4" in refusal("--calibrate", tmp_path / "clips", *args)

    def test_a_directory_without_videos(self, refusal: Callable[..., str], tmp_path: Path) -> None:
        (tmp_path / "clips").mkdir()
        assert "clips has no video" in refusal("--calibrate", tmp_path / "clips", "--precision", "int8")

    def test_frames_that_the_graph_can_not_take(self, refusal: Callable[..., str]) -> None:
        assert "--input frames:9000x10: a frame has 1 to 8192 rows and columns" in refusal("--input", "frames:9000x10")

    def test_a_spec_that_does_not_fit_the_grid(self, refusal: Callable[..., str]) -> None:
        assert "nsp: window 10 does not fit a grid of 9x9 tokens" in refusal("--compress", "nsp:window=10")
