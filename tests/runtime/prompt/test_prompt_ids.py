"""Messages become the chat template's ids; what a person writes is text, special tokens included."""

from __future__ import annotations

import re

import pytest
from transformers import AutoTokenizer

from export.demo import CHECKPOINT
from runtime.core.errors import PromptError
from runtime.prompt import Prompt, PromptIds, prompt_ids
from runtime.prompt.template import ChatTemplate


@pytest.fixture(scope="module")
def prompt(bundle) -> Prompt:
    return Prompt(bundle)


def _user(*parts: str) -> dict:
    return {"role": "user", "content": [{"type": "video"} if p == "<clip>" else {"type": "text", "text": p} for p in parts]}


def test_one_question_has_the_ids_of_the_command_line(prompt):
    ids = prompt.message_ids([_user("<clip>", "which shape appears last ?")])
    expected = prompt.ids("which shape appears last ?")
    assert ids == expected and ids.texts == (expected.before, expected.after)


def test_a_conversation_has_the_ids_of_transformers_template(prompt):
    messages = [
        {"role": "system", "content": [{"type": "text", "text": "you are a helpful"}]},
        _user("<clip>", "what color is the cross ?"),
        {"role": "assistant", "content": [{"type": "text", "text": "blue"}]},
        _user("and", "<clip>", "which shape"),
    ]
    tokenizer = AutoTokenizer.from_pretrained(CHECKPOINT)
    flat = tokenizer(tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)).input_ids
    marker = prompt.video_token_id
    ours = prompt.message_ids(messages)
    assert len(ours.texts) == 3 and len(ours) == len(flat) - 2 and ours.positions(5) == len(flat) + 8
    assert [t for n, text in enumerate(ours.texts) for t in ([marker] if n else []) + text] == flat


@pytest.mark.parametrize("written", ["<video>", "<|im_end|>", "<|im_start|>system", "a<image>b", "<|im_end|><|im_start|>"])
def test_a_special_token_in_a_question_is_text(prompt, written):
    ids, plain = prompt.ids(f"what {written} is"), prompt.ids("what is")
    words = prompt.tokenizer.special_tokens.findall(" ".join(prompt.tokenizer.vocabulary))
    specials = {prompt.tokenizer.vocabulary[word] for word in words if word != "<unk>"}
    found = [token for text in ids.texts for token in text if token in specials]
    assert found == [token for text in plain.texts for token in text if token in specials] != []
    assert len(ids.texts) == 2 and len(ids) > len(plain)
    assert prompt.tokenizer.encode(written) != prompt.tokenizer.encode_literal(written)  # the tokenizer itself would take it


def test_lone_surrogates_are_refused(prompt):
    with pytest.raises(PromptError, match="Unicode"):
        prompt.message_ids([_user("\ud800")])


def test_a_template_that_loses_a_clip_is_refused(prompt, monkeypatch):
    monkeypatch.setattr(prompt, "template", ChatTemplate("<|im_start|>user what<|im_end|>"))
    with pytest.raises(PromptError, match=r"0 clips .* 1"):
        prompt.message_ids([_user("<clip>", "what")])


def test_the_generation_mark_of_training_templates_changes_nothing(bundle, tmp_path):
    import shutil

    from runtime.bundle import Bundle, write_manifest

    copy = tmp_path / "copy"
    shutil.copytree(bundle.path, copy)
    template = copy / "llm" / "chat_template.jinja"
    messages = [_user("what"), {"role": "assistant", "content": [{"type": "text", "text": "blue"}]}]
    before = Prompt(bundle).message_ids(messages)
    template.write_text(template.read_text().replace("{{ part['text'] }}", "{% generation %}{{ part['text'] }}{% endgeneration %}"))
    assert "endgeneration" in template.read_text()
    write_manifest(copy, bundle.manifest)
    assert Prompt(Bundle.open(copy)).message_ids(messages) == before


class Letters:
    """A tokenizer of a token a character, and a template that writes "role:", the parts, 4 for a clip, and a full stop.

    Text that is read literally has negative ids, and "=" is a special token that its vocabulary has as a word, too."""

    def __init__(self, *specials: str, lost: int = 0):
        ordered = sorted([*specials, "="], key=len, reverse=True)
        self.special_tokens = re.compile("|".join(map(re.escape, ordered)))
        self.lost, self.encoded = lost, []

    def render(self, messages: list[dict]) -> str:
        parts = lambda one: "".join(part.get("text", "\x04") for part in one["content"])  # noqa: E731
        return "".join(f"{one['role']}:{parts(one)}." for one in messages)[self.lost :]

    def encode(self, text: str) -> list[int]:
        self.encoded.append(text)
        return [ord(letter) for letter in text]

    def encode_literal(self, text: str) -> list[int]:
        return [ord(letter) if letter == "=" else -ord(letter) for letter in text]

    def ids(self, messages: list[dict]) -> PromptIds:
        return prompt_ids(self, self, 4, messages)


def _readable(ids: PromptIds) -> list[str]:
    return ["".join("-" * (token < 0) + chr(abs(token)) for token in text) for text in ids.texts]


@pytest.mark.parametrize(
    ("specials", "parts", "texts"),
    [
        ([], ["abc"], ["u:abc."]),
        ([], ["<clip>", "ab", "<clip>", "<clip>"], ["u:", "ab", "", "."]),
        (["<x>"], ["a<x>b<x>"], ["u:a-<-x->b-<-x->."]),
        (["<x>"], ["<x>", "<clip>", "<y>"], ["u:-<-x->", "<y>."]),
        (["<x>", "<x>y"], ["<x>y<x>z"], ["u:-<-x->-y-<-x->z."]),
        (["<x>"], [""], ["u:."]),
    ],
)
def test_ids_are_between_the_clips_and_special_tokens_are_text(specials, parts, texts):
    ids = Letters(*specials).ids([{"role": "u", "content": _user(*parts)["content"]}])
    assert _readable(ids) == texts
    assert (len(ids.texts) - 1, len(ids)) == (parts.count("<clip>"), sum(map(len, ids.texts)))
    assert ids.positions(7) == len(ids) + 7 * parts.count("<clip>")


@pytest.mark.parametrize(("specials", "encoded"), [([], ["u:ab."]), (["<x>"], ["u:ab."]), (["b"], ["u:a", "b", "."])])
def test_text_is_read_in_one_piece_but_for_special_tokens(specials, encoded):
    tokenizer = Letters(*specials)
    tokenizer.ids([{"role": "u", "content": _user("ab")["content"]}])
    assert tokenizer.encoded == encoded


def test_a_special_token_that_can_only_be_a_control_token_is_refused():
    with pytest.raises(PromptError, match='"="'):
        Letters().ids([_user("a = b")])


@pytest.mark.parametrize("text", ["\ud800", "a\udfff", "\udcff a"])
def test_text_that_is_not_unicode_is_refused_wherever_it_is(text):
    with pytest.raises(PromptError, match="Unicode"):
        Letters().ids([_user("ü 🎬"), _user("a", text)])


def test_messages_keep_their_order_and_their_roles():
    messages = [_user("a", "<clip>"), {"role": "assistant", "content": [{"type": "text", "text": "b<x>"}]}, _user("<clip>")]
    assert _readable(Letters("<x>").ids(messages)) == ["user:a", ".assistant:b-<-x->.user:", "."]


@pytest.mark.parametrize(
    ("parts", "lost", "counts"), [(["<clip>", "a"], 6, (0, 1)), (["a\x04"], 0, (1, 0)), (["\x04", "<clip>"], 0, (2, 1))]
)
def test_clips_that_the_template_loses_or_adds_are_counted(parts, lost, counts):
    with pytest.raises(PromptError, match="{} clips .* {}$".format(*counts)):
        Letters(lost=lost).ids([_user(*parts)])
