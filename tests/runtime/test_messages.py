"""Messages become the chat template's ids; what a person writes is text, special tokens' spellings included."""

from __future__ import annotations

import pytest
from transformers import AutoTokenizer

from export.demo import CHECKPOINT
from runtime.errors import PromptError
from runtime.messages import ids_of_messages
from runtime.prompt import Prompt


@pytest.fixture(scope="module")
def prompt(bundle) -> Prompt:
    return Prompt(bundle)


def _user(*parts: str) -> dict:
    return {"role": "user", "content": [{"type": "video"} if p == "<clip>" else {"type": "text", "text": p} for p in parts]}


def test_one_question_has_the_ids_of_the_command_line(prompt):
    ids = ids_of_messages(prompt, [_user("<clip>", "which shape appears last ?")])
    expected = prompt.ids("which shape appears last ?")
    assert [list(text) for text in ids.texts] == [expected.before, expected.after]


def test_a_conversation_has_the_ids_of_transformers_template(prompt):
    messages = [
        {"role": "system", "content": [{"type": "text", "text": "you are a helpful"}]},
        _user("<clip>", "what color is the cross ?"),
        {"role": "assistant", "content": [{"type": "text", "text": "blue"}]},
        _user("and", "<clip>", "which shape"),
    ]
    tokenizer = AutoTokenizer.from_pretrained(CHECKPOINT)
    flat = tokenizer(tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)).input_ids
    marker = prompt.facts["video_token_id"]
    ours = ids_of_messages(prompt, messages)
    assert ours.clips == 2 and ours.text_tokens == len(flat) - 2
    assert [t for n, text in enumerate(ours.texts) for t in ([marker] if n else []) + list(text)] == flat


@pytest.mark.parametrize("spelled", ["<video>", "<|im_end|>", "<|im_start|>system", "a<image>b", "<|im_end|><|im_start|>"])
def test_a_special_tokens_spelling_is_text(prompt, spelled):
    ids = ids_of_messages(prompt, [_user("<clip>", f"what {spelled} is")])
    plain = ids_of_messages(prompt, [_user("<clip>", "what is")])
    specials = {token for token, added in prompt.tokenizer.get_added_tokens_decoder().items() if added.content != "<unk>"}
    found = [token for text in ids.texts for token in text if token in specials]
    assert found == [token for text in plain.texts for token in text if token in specials]
    assert ids.clips == 1 and ids.text_tokens > plain.text_tokens
    assert prompt.tokenizer.encode(spelled).ids != list(prompt.literal_ids(spelled))  # the tokenizer itself would take it


def test_lone_surrogates_are_refused(prompt):
    with pytest.raises(PromptError, match="not valid Unicode"):
        ids_of_messages(prompt, [_user("\ud800")])


def test_a_template_that_loses_a_clip_is_refused(prompt, monkeypatch):
    monkeypatch.setattr(prompt, "render", lambda messages: "<|im_start|>user what<|im_end|>")
    with pytest.raises(PromptError, match="puts 0 clips into the prompt, the messages have 1"):
        ids_of_messages(prompt, [_user("<clip>", "what")])


def test_the_generation_mark_of_training_templates_changes_nothing(bundle, tmp_path):
    import shutil

    from runtime.bundle import Bundle, write_manifest

    copy = tmp_path / "copy"
    shutil.copytree(bundle.path, copy)
    template = copy / "llm" / "chat_template.jinja"
    messages = [_user("what"), {"role": "assistant", "content": [{"type": "text", "text": "blue"}]}]
    before = ids_of_messages(Prompt(bundle), messages)
    template.write_text(template.read_text().replace("{{ part['text'] }}", "{% generation %}{{ part['text'] }}{% endgeneration %}"))
    assert "endgeneration" in template.read_text()
    write_manifest(copy, bundle.manifest)
    assert ids_of_messages(Prompt(Bundle.open(copy)), messages) == before
