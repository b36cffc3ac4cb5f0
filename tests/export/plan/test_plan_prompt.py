"""What chat template, tokenizer and generation settings make impossible is refused before a weight file is opened."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from refusal import change_config, change_json

from export.checkpoint import open_checkpoint
from export.families import family
from export.options import ExportOptions
from export.plan import make_plan

IMAGES_ONLY = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }} {% for c in m['content'] %}{% if c['type'] == 'image' %}<image> "
    "{% elif c['type'] == 'text' %}{{ c['text'] }}{% endif %}{% endfor %}<|im_end|>{% endfor %}<|im_start|>assistant "
)


class TestChatTemplate:
    @pytest.mark.parametrize(
        "file", ["chat_template.jinja", "chat_template.json", "processor_config.json", "tokenizer_config.json"]
    )
    def test_one_for_images_only_is_named_with_its_file(self, checkpoint: Path, refusal: Callable[..., str], file: str) -> None:
        (checkpoint / "chat_template.jinja").unlink()
        if file.endswith("jinja"):
            (checkpoint / file).write_text(IMAGES_ONLY)
        else:
            change_json(checkpoint / file, chat_template=IMAGES_ONLY) if (checkpoint / file).exists() else (
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
        change_json(checkpoint / "tokenizer_config.json", chat_template=named)
        chat = family("llava-ov").describe_llm(open_checkpoint(str(checkpoint))).chat
        assert (chat.template, chat.template_file) == (template, "tokenizer_config.json")


class TestTokenizer:
    def test_a_file_that_is_no_tokenizer(self, checkpoint: Path, refusal: Callable[..., str]) -> None:
        added = json.loads((checkpoint / "tokenizer.json").read_text())["added_tokens"]
        (checkpoint / "tokenizer.json").write_text(json.dumps({"added_tokens": added}))
        assert refusal().startswith(f"{checkpoint / 'tokenizer.json'} is not a tokenizer (")

    def test_one_without_the_video_token(self, checkpoint: Path, refusal: Callable[..., str]) -> None:
        tokenizer = json.loads((checkpoint / "tokenizer.json").read_text())
        change_json(
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
        change_json(checkpoint / "generation_config.json", eos_token_id=[66, 151645])
        assert "eos_token_id is [66, 151645], none of them a token of the LLM (its vocab_size is 66)" in refusal()

    @pytest.mark.parametrize("name", ["tokenizer.json", "config.json"])
    def test_a_pointer_of_git_lfs(self, checkpoint: Path, refusal: Callable[..., str], name: str) -> None:
        (checkpoint / name).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
        assert f"{checkpoint / name} is a Git LFS pointer, not the file itself; run git lfs pull" in refusal()


class TestGeneration:
    @pytest.mark.parametrize("penalty", [0, -1.5, 1e-320, "1.1", True, 10**400], ids=lambda penalty: str(penalty)[:6])
    def test_a_repetition_penalty_out_of_range(self, checkpoint: Path, refusal: Callable[..., str], penalty: object) -> None:
        change_json(checkpoint / "generation_config.json", repetition_penalty=penalty)
        line = refusal()
        assert line.startswith(
            f"{checkpoint / 'generation_config.json'}: repetition_penalty is {penalty!r}; expected a number from 0.001"
        )

    def test_a_repetition_penalty_goes_into_the_bundle(self, checkpoint: Path, capsys: pytest.CaptureFixture) -> None:
        change_json(checkpoint / "generation_config.json", repetition_penalty=1.1)
        source = open_checkpoint(str(checkpoint))
        plan = make_plan(ExportOptions(), family("llava-ov"), source)
        assert plan.llm.prompt.repetition_penalty == 1.1
        assert "generation_config.json: repetition_penalty 1.1 goes into the bundle" in capsys.readouterr().err
        assert make_plan(ExportOptions(), family("llava-ov"), open_checkpoint(None)).llm.prompt.repetition_penalty is None

    def test_what_is_not_json(self, checkpoint: Path, refusal: Callable[..., str]) -> None:
        (checkpoint / "generation_config.json").write_text("{eos_token_id: 2}")
        assert f"{checkpoint / 'generation_config.json'} is not valid JSON" in refusal()

    def test_settings_that_are_not_applied_are_named_and_those_that_change_nothing_are_not(
        self, checkpoint: Path, capsys: pytest.CaptureFixture
    ) -> None:
        neutral = {"no_repeat_ngram_size": 0, "num_beams": 1, "suppress_tokens": None, "do_sample": True, "temperature": 0.7}
        effective = {"min_new_tokens": 5, "bad_words_ids": [[7]]}
        change_json(checkpoint / "generation_config.json", **neutral, **effective)
        plan = make_plan(ExportOptions(), family("llava-ov"), open_checkpoint(str(checkpoint)))
        assert plan.not_applied == ["bad_words_ids", "min_new_tokens"]
        assert (
            "generation_config.json sets bad_words_ids, min_new_tokens, which the runtime does not apply" in capsys.readouterr().err
        )
