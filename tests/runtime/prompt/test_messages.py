"""Messages become the chat template's ids; what a person writes is text, special tokens' spellings included."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from transformers import AutoTokenizer

from export.demo import CHECKPOINT
from runtime.core.errors import PromptError
from runtime.prompt.messages import ids_of_messages
from runtime.prompt.template import Prompt


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


class Spelled:
    """A prompt of a token a character, 4 for a clip; the template writes "role:", the parts, and a full stop. Text that is to be read
    literally has negative ids."""

    def __init__(self, *specials: str, lost: int = 0):
        self.facts = {"video_token_id": 4}
        added = {n: SimpleNamespace(content=text, special=True) for n, text in enumerate(specials)}
        added[99] = SimpleNamespace(content="b", special=False)
        self.tokenizer = SimpleNamespace(get_added_tokens_decoder=lambda: added)
        self.lost, self.encoded = lost, []

    def render(self, messages: list[dict]) -> str:
        parts = lambda one: "".join(part.get("text", "\x04") for part in one["content"])  # noqa: E731
        return "".join(f"{one['role']}:{parts(one)}." for one in messages)[self.lost :]

    def encode(self, text: str) -> list[int]:
        self.encoded.append(text)
        return [ord(letter) for letter in text]

    def literal_ids(self, text: str) -> list[int]:
        return [-ord(letter) for letter in text]


@pytest.mark.parametrize(
    ("specials", "parts", "texts"),
    [
        ([], ["abc"], ["u:abc."]),
        ([], ["<clip>", "ab", "<clip>", "<clip>"], ["u:", "ab", "", "."]),
        (["<x>"], ["a<x>b<x>"], ["u:a-<-x->b-<-x->."]),
        (["<x>"], ["<x>", "<clip>", "<y>"], ["u:-<-x->", "<y>."]),
        (["<x>", "<x>y"], ["<x>y<x>z"], ["u:-<-x->-y-<-x->z."]),  # the longest of them
        (["<x>y", "<x>"], ["<x>y<x>z"], ["u:-<-x->-y-<-x->z."]),
        (["a|c", "."], ["abac a|c"], ["u:abac -a-|-c."]),  # signs of a pattern are those of the text
        (["<x>"], [""], ["u:."]),
    ],
)
def test_ids_stand_between_the_clips_and_spellings_are_text(specials, parts, texts):
    ids = ids_of_messages(Spelled(*specials), [{"role": "u", "content": _user(*parts)["content"]}])
    assert ["".join("-" * (token < 0) + chr(abs(token)) for token in text) for text in ids.texts] == texts
    assert (ids.clips, ids.text_tokens) == (parts.count("<clip>"), sum(map(len, ids.texts)))


@pytest.mark.parametrize(("specials", "encoded"), [([], ["u:ab."]), (["<x>"], ["u:ab."]), (["b"], ["u:a", "."])])
def test_text_is_read_in_one_piece_but_for_spellings(specials, encoded):
    prompt = Spelled(*specials)
    ids_of_messages(prompt, [{"role": "u", "content": _user("ab")["content"]}])
    assert prompt.encoded == encoded


@pytest.mark.parametrize("text", ["\ud800", "a\udfff", "\udcff a"])
def test_text_that_is_not_unicode_is_refused_wherever_it_stands(text):
    with pytest.raises(PromptError) as raised:
        ids_of_messages(Spelled(), [_user("ü 🎬"), _user("a", text)])
    assert str(raised.value) == "a message is not valid Unicode; expected UTF-8 text without lone surrogates"


def test_messages_keep_their_order_and_their_roles():
    messages = [_user("a", "<clip>"), {"role": "assistant", "content": [{"type": "text", "text": "b<x>"}]}, _user("<clip>")]
    found = ids_of_messages(Spelled("<x>"), messages)
    assert ["".join(map(chr, map(abs, text))) for text in found.texts] == ["user:a", ".assistant:b<x>.user:", "."]


@pytest.mark.parametrize(
    ("parts", "lost", "counts"), [(["<clip>", "a"], 6, (0, 1)), (["a\x04"], 0, (1, 0)), (["\x04", "<clip>"], 0, (2, 1))]
)
def test_clips_that_the_template_loses_or_adds_are_counted(parts, lost, counts):
    message = "^the chat template puts {} clips into the prompt, the messages have {}$".format(*counts)
    with pytest.raises(PromptError, match=message):
        ids_of_messages(Spelled(lost=lost), [_user(*parts)])
