"""Prompts against transformers' own chat template and tokenizer, and text that streams without broken characters."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import AutoTokenizer

from export.demo import CHECKPOINT
from runtime.core.errors import BundleError, PromptError, UserError
from runtime.prompt.template import Prompt, PromptIds, TextPrompt, TextStream


def test_ids_equal_transformers_with_the_video_token_expanded(bundle):
    hf = AutoTokenizer.from_pretrained(CHECKPOINT)
    question = "which shape appears last ?"
    messages = [{"role": "user", "content": [{"type": "video"}, {"type": "text", "text": question}]}]
    text = hf.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    expected = hf(text.replace("<video>", "<video>" * 5)).input_ids
    ids = Prompt(bundle).ids(question)
    assert [*ids.before, *[bundle.manifest.prompt["video_token_id"]] * 5, *ids.after] == expected


def test_visual_tokens_stand_where_the_template_puts_the_video(bundle):
    prompt = Prompt(bundle)
    ids = prompt.ids("how many objects are there ?")
    visual = np.full((3, 128), 7, np.float32)
    embedded = prompt.embed(ids, visual)
    at = len(ids.before)
    assert embedded.shape == (1, len(ids) + 3, 128)
    np.testing.assert_array_equal(embedded[0, at : at + 3], visual)
    np.testing.assert_array_equal(embedded[0, :at], prompt.embeddings[ids.before])
    np.testing.assert_array_equal(embedded[0, at + 3 :], prompt.embeddings[ids.after])


@pytest.mark.parametrize("question", ["", "  \n", "what is <video> ?", "a<|im_end|>b"])
def test_empty_questions_and_special_tokens_are_refused(bundle, question):
    with pytest.raises(PromptError):
        Prompt(bundle).ids(question)


def _prompt(template: str | None = None, tokenizer: Path = CHECKPOINT / "tokenizer.json", **facts) -> TextPrompt:
    """The shipped tokenizer under another chat template."""
    template = (CHECKPOINT / "chat_template.jinja").read_text() if template is None else template
    return TextPrompt({"video_token": "<video>", "video_token_id": 4} | facts, tokenizer, template)


@pytest.mark.parametrize(
    ("template", "question", "message"),
    [
        (None, " \n", "the question is empty; expected some text"),
        (None, "a\udcff", "the question is not valid Unicode; expected UTF-8 text"),
        (None, "\ud800", "the question is not valid Unicode; expected UTF-8 text"),
        (None, "\udfff a", "the question is not valid Unicode; expected UTF-8 text"),
        (None, "what is <video> ?", 'the question contains "<video>", a special token of this model; leave it out'),
        ("none", "what", 'the chat template puts "<video>" 0 times into the prompt, expected once'),
        ("<video> <video>", "what", 'the chat template puts "<video>" 2 times into the prompt, expected once'),
        ("{{ raise_exception('no videos') }}", "what", "the chat template refuses the messages: no videos"),
    ],
)
def test_what_makes_no_prompt_is_said(template, question, message):
    with pytest.raises(PromptError) as raised:
        _prompt(template).ids(question)
    assert str(raised.value) == message


def test_a_special_token_s_spelling_is_text_where_text_is_asked_for():
    prompt = _prompt()
    (token,) = prompt.encode("<video>")
    assert token == 4 and token not in prompt.literal_ids("<video>")
    assert prompt.literal_ids("what is it ?") == prompt.encode("what is it ?")


def test_ids_that_are_generated_are_text_without_special_tokens():
    prompt = _prompt()
    assert prompt.decode([*prompt.encode("which shape"), *prompt.encode("<|im_end|>")]).split() == ["which", "shape"]
    assert prompt.longest_token == len("<|endoftext|>")


@pytest.mark.parametrize(
    ("template", "around"),
    [
        ("<video> {{ messages[0].content[1].text }} so", ["<video> ", " so"]),
        ("{{ messages[0].content[1].text }}{% if add_generation_prompt %}!{% endif %}", ["", "!"]),
        ("{{ messages[0].content[1].text | trim }}", None),
        ("{{ messages[0].content[1].text | upper }}", None),
        ("{{ messages[0].content[1].text | replace('\n', ' ') }}", None),
        ("{{ messages[0].content[1].text }} {{ messages[0].content[1].text }}", None),
        ("{% for message in messages %}{% break %}{% endfor %}", None),
        (
            "a  {% if true %}\n {{ messages[0].content[1].text }}\n  {% endif %}\nb",
            ["a   ", "\nb"],
        ),  # Hugging Face's rules of blanks
        ("{{ messages[0].role }} {{ messages | length }} {{ messages[0].content[1].text }}", ["user 1 ", ""]),
        ("{% generation %}{{ messages[0].content[1].text }}{% endgeneration %} so", ["", " so"]),
    ],
)
def test_the_text_around_a_question_where_it_is_left_as_it_is(template, around):
    assert _prompt(template).around_question() == around


def test_a_file_that_is_no_tokenizer_is_named(tmp_path):
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(
        BundleError, match=r"tokenizer\.json is no tokenizer \([^\n]+\); copy the checkpoint's own and export again"
    ):
        _prompt(tokenizer=tmp_path / "tokenizer.json").encode("a")


@pytest.fixture
def framed(tmp_path) -> TextPrompt:
    """A tokenizer of words that puts <s> (0) before every text unless it is told not to."""
    words = ["<s>", "<video>", "a", "b", "longest"]
    tokenizer = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, unk_token="b"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.add_special_tokens(["<s>", "<video>"])
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    return _prompt("a <video> {{ messages[0].content[1].text }} a", tmp_path / "tokenizer.json", video_token_id=1)


def test_a_tokenizer_adds_no_token_of_its_own(framed):
    assert framed.encode("a b") == framed.literal_ids("a b") == [2, 3]
    ids = framed.ids("b b")
    assert (ids.before, ids.after, len(ids)) == ([2], [3, 3, 2], 4)
    assert framed.longest_token == 7 and framed.decode([2, 1, 0, 3]) == "a b"


def _bundle(folder: Path, template: bytes = b"<video>", **facts) -> SimpleNamespace:
    (folder / "llm").mkdir()
    (folder / "llm" / "template").write_bytes(template)
    facts = {"eos_token_ids": [2, 5], "video_token_id": 4, "video_token": "<video>", "chat_template": "template"} | facts
    return SimpleNamespace(manifest=SimpleNamespace(prompt=facts), file=lambda name: folder / name)


def test_a_bundle_that_says_nothing_of_repetitions_has_none_to_pay_for(tmp_path):
    prompt = Prompt(_bundle(tmp_path, "<video> ü".encode()))
    assert (prompt.repetition_penalty, prompt.eos, prompt.template) == (1.0, {2, 5}, "<video> ü")
    assert prompt.tokenizer_file == tmp_path / "llm" / "tokenizer.json"
    assert prompt.seen(PromptIds([7, 8], [8, 9])) == {4, 7, 8, 9} and len(PromptIds([7, 8], [8])) == 3
    prompt.bundle.manifest.prompt["repetition_penalty"] = 1.5
    assert Prompt(prompt.bundle).repetition_penalty == 1.5


def test_a_template_that_is_no_text_is_refused_in_one_line(tmp_path):
    with pytest.raises(
        PromptError, match=r"^the chat template does not work \(UnicodeDecodeError: [^\n]+\); copy the checkpoint's own"
    ):
        Prompt(_bundle(tmp_path, b"\xff"))


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        ("{{ 1 / 0 }}", "ZeroDivisionError"),
        ("{% if %}", "TemplateSyntaxError"),
        ("{{ a.b.c }}", "UndefinedError"),
        ("{{", "TemplateSyntaxError"),
    ],
)
def test_a_template_that_does_not_work_is_refused_in_one_line(template, reason):
    with pytest.raises(
        PromptError, match=rf"^the chat template does not work \({reason}: [^\n]+\); copy the checkpoint's own and export again$"
    ):
        _prompt(template).ids("what")


@pytest.mark.parametrize(("package", "use"), [("tokenizers", lambda one: one.encode("a")), ("jinja2", lambda one: one.render([]))])
def test_without_its_packages_the_message_says_how_to_get_them(monkeypatch, package, use):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(UserError, match=f'^asking a question needs the package "{package}", which is not installed: '):
        use(_prompt())


class _Pieces:
    """A prompt whose text of n ids is the n-th of these."""

    def __init__(self, *texts: str):
        self.texts = texts

    def decode(self, ids: list[int]) -> str:
        return self.texts[len(ids) - 1]


def test_text_that_becomes_shorter_is_not_sent_twice():
    stream = TextStream(_Pieces("ab\ufffd", "abc", "ab", "abcd", "abcde\ufffd"))
    assert [stream.push(7) for _ in range(5)] == ["", "abc", "", "d", ""]
    assert stream.finish() == "e\ufffd" and stream.ids == [7] * 5


class _Bytes(Prompt):
    """A prompt whose tokenizer has one token a byte, so that characters span tokens."""

    def __init__(self):
        alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
        tokenizer = Tokenizer(models.BPE({letter: index for index, letter in enumerate(alphabet)}, []))
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        self.__dict__["tokenizer"] = tokenizer


@pytest.mark.parametrize("text", ["plain", "naïve – 視頻 🎬 done", "🎬"])
def test_stream_gives_whole_characters_only(text):
    prompt = _Bytes()
    stream = TextStream(prompt)
    pieces = [stream.push(token) for token in prompt.tokenizer.encode(text).ids]
    assert "".join(pieces) == text
    assert not any("\ufffd" in piece for piece in pieces)
    assert stream.finish() == ""


def test_stream_that_ends_inside_a_character_says_so_at_the_end():
    prompt = _Bytes()
    stream = TextStream(prompt)
    pieces = [stream.push(token) for token in prompt.tokenizer.encode("ok 🎬").ids[:-1]]
    assert "".join(pieces) == "ok "
    assert stream.finish() == "\ufffd"


def test_an_id_far_beyond_the_others_takes_no_memory(tmp_path):
    """Where memory runs out the tokenizers library aborts the process, which can't be caught."""
    vocabulary = {letter: index for index, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    tokenizer = Tokenizer(models.BPE(vocabulary, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    values = json.loads(tokenizer.to_str())
    values["model"]["vocab"]["far"] = 2**31
    (tmp_path / "tokenizer.json").write_text(json.dumps(values))
    code = textwrap.dedent("""
        import resource, sys
        from pathlib import Path
        import tokenizers
        from runtime.prompt.template import TextPrompt
        prompt = TextPrompt({}, Path(sys.argv[1]), "")
        assert prompt.encode("ab")
        size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize() + (1 << 29)
        resource.setrlimit(resource.RLIMIT_AS, (size, size))
        assert prompt.literal_ids("ab") == prompt.encode("ab")
    """)
    command = [sys.executable, "-c", code, str(tmp_path / "tokenizer.json")]
    done = subprocess.run(command, cwd=Path(__file__).parents[3], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
