"""What configs, tokenizer, chat template and options make impossible is refused before a weight file is opened."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from refusal import names_under, refused

from export.__main__ import main
from export.checkpoint import open_checkpoint
from export.demo import CHECKPOINT
from export.families import family
from export.options import ExportOptions
from export.plan import make_plan
from export.weights import _method

IMAGES_ONLY = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }} {% for c in m['content'] %}{% if c['type'] == 'image' %}<image> "
    "{% elif c['type'] == 'text' %}{{ c['text'] }}{% endif %}{% endfor %}<|im_end|>{% endfor %}<|im_start|>assistant "
)


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    return shutil.copytree(CHECKPOINT, tmp_path / "checkpoint")


@pytest.fixture
def refusal(checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """Export the checkpoint, which must be refused before a weight file is opened; the error line."""

    def opened(*args: object, **kwargs: object) -> None:
        raise AssertionError("a weight file was opened")

    monkeypatch.setattr("safetensors.safe_open", opened)
    monkeypatch.setattr("export.weights.sha256_of", opened)

    def run(*args: str | Path) -> str:
        (tmp_path / "out").mkdir()
        line = refused(capsys, main, "--checkpoint", checkpoint, "--out", tmp_path / "out" / "bundle", *args)
        assert names_under(tmp_path / "out") == []
        return line

    return run


def change(file: Path, **values: object) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


def change_config(checkpoint: Path, part: str | None = None, **values: object) -> None:
    file = checkpoint / "config.json"
    config = json.loads(file.read_text())
    (config if part is None else config[part]).update(values)
    file.write_text(json.dumps(config))


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
        assert f"{checkpoint / 'config.json'}: the rope_type of the LLM is longrope" in refusal()

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
            ({"resample": 9}, 'no resample "9"'),
            ({"rescale_factor": 10**400}, "rescale_factor 1000000"),
            ({"image_mean": 10**400}, "image_mean 1000000"),
            ({"num_frames": 5000}, "num_frames of its preprocessor config is 5000, expected 1 to 1024; pass --frames"),
        ],
    )
    def test_preprocessing(self, checkpoint: Path, refusal: Callable[..., str], values: dict[str, Any], message: str) -> None:
        change(checkpoint / "video_preprocessor_config.json", **values)
        assert message in refusal()

    def test_int8_of_clips_of_one_frame(self, checkpoint: Path, refusal: Callable[..., str]) -> None:
        change(checkpoint / "video_preprocessor_config.json", num_frames=1)
        assert "--precision int8 splits a clip into frames" in refusal("--precision", "int8")

    def test_steps_that_are_switched_off_are_left_out(self, checkpoint: Path) -> None:
        change(checkpoint / "video_preprocessor_config.json", do_rescale=False, do_normalize=False, do_pad=True)
        preprocessing = family("llava-ov").describe_vision(open_checkpoint(str(checkpoint))).preprocessing
        assert preprocessing["rescale_factor"] == 1
        assert (preprocessing["image_mean"], preprocessing["image_std"]) == (0, 1)

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
        change(checkpoint / "video_preprocessor_config.json", **values)
        assert family("llava-ov").describe_vision(open_checkpoint(str(checkpoint))).preprocessing == expected


class TestChatTemplate:
    @pytest.mark.parametrize(
        "file", ["chat_template.jinja", "chat_template.json", "processor_config.json", "tokenizer_config.json"]
    )
    def test_one_for_images_only_is_named_with_its_file(self, checkpoint: Path, refusal: Callable[..., str], file: str) -> None:
        (checkpoint / "chat_template.jinja").unlink()
        if file.endswith("jinja"):
            (checkpoint / file).write_text(IMAGES_ONLY)
        else:
            change(checkpoint / file, chat_template=IMAGES_ONLY) if (checkpoint / file).exists() else (
                checkpoint / file
            ).write_text(json.dumps({"chat_template": IMAGES_ONLY}))
        line = refusal()
        assert line.startswith(f"{checkpoint / file}: the chat template puts 0 clips into the prompt")
        assert "copy the chat template of a checkpoint for video, such as llava-hf/llava-onevision-qwen2-0.5b-ov-hf" in line

    @pytest.mark.parametrize(
        ("template", "message"),
        [
            ("{% for m in messages %}", "the chat template does not work (TemplateSyntaxError: Unexpected end of template"),
            ("{{ raise_exception('no video') }}", "the chat template refuses the messages: no video"),
            ("{{ messages[0].content + 1 }}", "the chat template does not work (TypeError: can only concatenate list"),
            (
                "{{ messages[0].content | strftime }}",
                "the chat template does not work (TemplateAssertionError: No filter named 'strftime'",
            ),
            ("{% for m in messages %}{{ m.role }} {{ m.content }}{% endfor %}", "puts 0 clips into the prompt"),
            ("{% for m in messages %}<video> <video> {{ m.content[1].text }}{% endfor %}", "puts 2 clips into the prompt"),
        ],
    )
    def test_one_that_makes_no_prompt(self, checkpoint: Path, refusal: Callable[..., str], template: str, message: str) -> None:
        (checkpoint / "chat_template.jinja").write_text(template)
        line = refusal()
        assert line.startswith(f"{checkpoint / 'chat_template.jinja'}: ")
        assert message in line

    def test_the_default_of_several_is_read(self, checkpoint: Path) -> None:
        template = (checkpoint / "chat_template.jinja").read_text()
        (checkpoint / "chat_template.jinja").unlink()
        named = [{"name": "tool_use", "template": "{{ 1 }}"}, {"name": "default", "template": template}]
        change(checkpoint / "tokenizer_config.json", chat_template=named)
        chat = family("llava-ov").describe_llm(open_checkpoint(str(checkpoint))).chat
        assert (chat.template, chat.template_file) == (template, "tokenizer_config.json")


class TestTokenizer:
    def test_a_file_that_is_no_tokenizer(self, checkpoint: Path, refusal: Callable[..., str]) -> None:
        added = json.loads((checkpoint / "tokenizer.json").read_text())["added_tokens"]
        (checkpoint / "tokenizer.json").write_text(json.dumps({"added_tokens": added}))
        assert refusal().startswith(f"{checkpoint / 'tokenizer.json'} is not a tokenizer (")

    def test_one_without_the_video_token(self, checkpoint: Path, refusal: Callable[..., str]) -> None:
        tokenizer = json.loads((checkpoint / "tokenizer.json").read_text())
        change(
            checkpoint / "tokenizer.json", added_tokens=[one for one in tokenizer["added_tokens"] if one["content"] != "<video>"]
        )
        line = refusal()
        assert "config's video token id 4 is not a special token of tokenizer.json" in line
        assert "copy the tokenizer of a checkpoint for video, such as llava-hf/" in line

    def test_tokens_that_the_llm_has_no_embedding_for(self, checkpoint: Path, refusal: Callable[..., str]) -> None:
        change_config(checkpoint, "text_config", vocab_size=60)
        line = refusal()
        assert line.startswith(f"{checkpoint / 'tokenizer.json'} has ")
        assert "as token 65, the LLM has 60 (vocab_size in config.json)" in line

    def test_ends_that_the_llm_can_not_choose(self, checkpoint: Path, refusal: Callable[..., str]) -> None:
        change(checkpoint / "generation_config.json", eos_token_id=[66, 151645])
        assert "eos_token_id is [66, 151645], none of them a token of the LLM (its vocab_size is 66)" in refusal()

    @pytest.mark.parametrize("name", ["tokenizer.json", "config.json"])
    def test_a_pointer_of_git_lfs(self, checkpoint: Path, refusal: Callable[..., str], name: str) -> None:
        (checkpoint / name).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
        assert f"{checkpoint / name} is a Git LFS pointer, not the file itself; run git lfs pull" in refusal()


class TestGeneration:
    @pytest.mark.parametrize("penalty", [0, -1.5, 1e-320, "1.1", True, 10**400], ids=lambda penalty: str(penalty)[:6])
    def test_a_repetition_penalty_out_of_range(self, checkpoint: Path, refusal: Callable[..., str], penalty: object) -> None:
        change(checkpoint / "generation_config.json", repetition_penalty=penalty)
        line = refusal()
        assert line.startswith(
            f"{checkpoint / 'generation_config.json'}: repetition_penalty is {penalty!r}; expected a number from 0.001"
        )

    def test_a_repetition_penalty_goes_into_the_bundle(self, checkpoint: Path, capsys: pytest.CaptureFixture) -> None:
        change(checkpoint / "generation_config.json", repetition_penalty=1.1)
        source = open_checkpoint(str(checkpoint))
        plan = make_plan(ExportOptions(), family("llava-ov"), source)
        assert plan.llm.prompt["repetition_penalty"] == 1.1
        assert "generation_config.json: repetition_penalty 1.1 goes into the bundle" in capsys.readouterr().err
        assert "repetition_penalty" not in make_plan(ExportOptions(), family("llava-ov"), open_checkpoint(None)).llm.prompt

    def test_what_is_not_json(self, checkpoint: Path, refusal: Callable[..., str]) -> None:
        (checkpoint / "generation_config.json").write_text("{eos_token_id: 2}")
        assert f"{checkpoint / 'generation_config.json'} is not valid JSON" in refusal()

    def test_settings_that_are_not_applied_are_named_and_those_that_change_nothing_are_not(
        self, checkpoint: Path, capsys: pytest.CaptureFixture
    ) -> None:
        neutral = {"no_repeat_ngram_size": 0, "num_beams": 1, "suppress_tokens": None, "do_sample": True, "temperature": 0.7}
        effective = {"min_new_tokens": 5, "bad_words_ids": [[7]]}
        change(checkpoint / "generation_config.json", **neutral, **effective)
        plan = make_plan(ExportOptions(), family("llava-ov"), open_checkpoint(str(checkpoint)))
        assert plan.not_applied == ["bad_words_ids", "min_new_tokens"]
        assert (
            "generation_config.json sets bad_words_ids, min_new_tokens, which the runtime does not apply" in capsys.readouterr().err
        )


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
