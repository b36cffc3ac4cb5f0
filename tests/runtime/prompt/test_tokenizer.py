"""The tokenizer's two ways to read special tokens, and text that streams without broken characters."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap
from pathlib import Path
from types import SimpleNamespace

import pytest
from tokenizers import Tokenizer as HuggingFaceTokenizer
from tokenizers import decoders, models, pre_tokenizers, processors

from export.demo import CHECKPOINT
from runtime.core.errors import BundleError, UserError
from runtime.prompt.tokenizer import TextStream, Tokenizer


@pytest.fixture(scope="module")
def shipped() -> Tokenizer:
    return Tokenizer(CHECKPOINT / "tokenizer.json")


def test_a_special_token_is_a_control_token_or_its_characters(shipped):
    (token,) = shipped.encode("<video>")
    assert token == 4 and token not in shipped.encode_literal("<video>")
    assert shipped.encode_literal("what is it ?") == shipped.encode("what is it ?")


def test_ids_that_are_generated_are_text_without_special_tokens(shipped):
    assert shipped.decode([*shipped.encode("which shape"), *shipped.encode("<|im_end|>")]).split() == ["which", "shape"]
    assert shipped.longest_token == len("<|endoftext|>")


def test_special_tokens_are_found_in_text(shipped):
    assert shipped.special_tokens.findall("a<|im_end|><video> <videos> <|im_end|") == ["<|im_end|>", "<video>"]


@pytest.mark.parametrize(
    ("specials", "text", "found"),
    [
        ([], "<x> ", []),
        (["<x>", "<x>y"], "<x>y<x>z", ["<x>y", "<x>"]),  # the longest of them
        (["<x>y", "<x>"], "<x>y<x>z", ["<x>y", "<x>"]),
        (["a|c", "."], "abac a|c.", ["a|c", "."]),  # operators of a regular expression are characters
    ],
)
def test_a_special_token_is_matched_as_it_is_written(specials, text, found):
    added = {n: SimpleNamespace(content=text, special=True) for n, text in enumerate(specials)}
    added[99] = SimpleNamespace(content="z", special=False)
    one = Tokenizer(Path("unused"))
    one.__dict__["_control"] = SimpleNamespace(get_added_tokens_decoder=lambda: added)
    assert one.special_tokens.findall(text) == found


@pytest.mark.parametrize("content", ["{}", "", "\x00"])
def test_a_file_that_is_not_a_tokenizer_is_named(tmp_path, content):
    (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(BundleError, match=r"tokenizer\.json[^\n]+$"):
        Tokenizer(tmp_path / "tokenizer.json").encode("a")


def test_a_tokenizer_adds_no_token_of_its_own(framed):
    assert framed.encode("a b") == framed.encode_literal("a b") == [2, 3]
    assert framed.longest_token == 7 and framed.decode([2, 1, 0, 3]) == "a b"


@pytest.fixture
def framed(tmp_path) -> Tokenizer:
    """A tokenizer of words that puts <s> (0) before every text unless it is told not to."""
    words = ["<s>", "<video>", "a", "b", "longest"]
    tokenizer = HuggingFaceTokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, unk_token="b"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.add_special_tokens(["<s>", "<video>"])
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    return Tokenizer(tmp_path / "tokenizer.json")


def test_without_its_package_the_error_names_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(UserError, match='"tokenizers"'):
        Tokenizer(CHECKPOINT / "tokenizer.json").encode("a")


class _Texts:
    """A tokenizer whose text of n ids is the n-th of these."""

    def __init__(self, *texts: str):
        self.texts = texts

    def decode(self, ids: list[int]) -> str:
        return self.texts[len(ids) - 1]


def test_text_that_becomes_shorter_is_not_sent_twice():
    stream = TextStream(_Texts("ab\ufffd", "abc", "ab", "abcd", "abcde\ufffd"))
    assert [stream.push(7) for _ in range(5)] == ["", "abc", "", "d", ""]
    assert stream.finish() == "e\ufffd" and stream.ids == [7] * 5


@pytest.fixture
def of_bytes(tmp_path) -> Tokenizer:
    """A tokenizer with one token a byte, so that characters span tokens."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = HuggingFaceTokenizer(models.BPE({letter: index for index, letter in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    return Tokenizer(tmp_path / "tokenizer.json")


@pytest.mark.parametrize("text", ["plain", "naïve – 視頻 🎬 done", "🎬"])
def test_a_stream_gives_complete_characters_only(of_bytes, text):
    stream = TextStream(of_bytes)
    pieces = [stream.push(token) for token in of_bytes.encode(text)]
    assert "".join(pieces) == text
    assert not any("\ufffd" in piece for piece in pieces)
    assert stream.finish() == ""


def test_a_stream_that_ends_inside_a_character_ends_with_a_replacement(of_bytes):
    stream = TextStream(of_bytes)
    pieces = [stream.push(token) for token in of_bytes.encode("ok 🎬")[:-1]]
    assert "".join(pieces) == "ok "
    assert stream.finish() == "\ufffd"


def test_an_id_far_beyond_the_others_takes_no_memory(of_bytes):
    """Where memory runs out the tokenizers library aborts the process, which can't be caught."""
    values = json.loads(of_bytes.path.read_text())
    values["model"]["vocab"]["far"] = 2**31
    of_bytes.path.write_text(json.dumps(values))
    code = textwrap.dedent("""
        import resource, sys
        from pathlib import Path
        import tokenizers
        from runtime.prompt.tokenizer import Tokenizer
        one = Tokenizer(Path(sys.argv[1]))
        assert one.encode("ab")
        size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize() + (1 << 29)
        resource.setrlimit(resource.RLIMIT_AS, (size, size))
        assert one.encode_literal("ab") == one.encode("ab")
    """)
    command = [sys.executable, "-c", code, str(of_bytes.path)]
    done = subprocess.run(command, cwd=Path(__file__).parents[3], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
