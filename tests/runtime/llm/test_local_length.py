"""Text that can't fit is refused by its length, without being tokenized to its end."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from runtime.core.errors import ContextError
from runtime.llm.local import check_length
from runtime.prompt import Prompt
from runtime.prompt.tokenizer import Tokenizer


@pytest.fixture
def tokenizer(bundle, monkeypatch) -> Tokenizer:
    """One that counts the characters it tokenizes."""
    one = Prompt(bundle).tokenizer
    one.tokenized = 0
    encode_literal = one.encode_literal

    def counted(text):
        one.tokenized += len(text)
        return encode_literal(text)

    monkeypatch.setattr(one, "encode_literal", counted)
    return one


def _messages(*texts: str) -> list[dict]:
    return [{"role": "user", "content": [{"type": "video"}, {"type": "text", "text": text}]} for text in texts]


def test_the_longest_token_is_the_vocabulary_s(tokenizer):
    assert tokenizer.longest_token == len("<|endoftext|>") == 13


@pytest.mark.parametrize("texts", [("a" * 20_001,), ("a" * 10_001, "b" * 10_000)])
def test_text_longer_than_the_longest_tokens_of_all_positions_is_refused_unread(tokenizer, texts):
    with pytest.raises(ContextError, match=r"20001 .* 1538 .* 19994"):
        check_length(tokenizer, _messages(*texts), 1538)
    assert not tokenizer.tokenized


def test_text_that_fits_by_its_length_is_counted_only_until_the_context_is_full(tokenizer):
    with pytest.raises(ContextError, match="30000"):
        check_length(tokenizer, _messages("a " * 190_000), 30_000)
    assert 60_000 < tokenizer.tokenized < 100_000
    check_length(tokenizer, _messages("a " * 20_000), 30_000)


def test_counting_ends_when_nobody_waits(tokenizer):
    check_length(tokenizer, _messages("a " * 190_000), 30_000, gone=lambda: True)
    assert tokenizer.tokenized < 40_000


def test_short_texts_are_left_to_the_tokenizer(tokenizer):
    check_length(tokenizer, _messages("a " * 2000), 1536)
    assert not tokenizer.tokenized


A_LETTER = SimpleNamespace(longest_token=2, encode_literal=list)  # a token a character, though there are longer ones


@pytest.mark.parametrize(
    ("texts", "positions", "refused"),
    [
        (["a" * 10], 5, False),  # as many characters as five of the longest tokens have
        (["a" * 11], 5, True),
        (["a" * 4, "b" * 7], 5, True),
        (["a" * 32_768], 16_384, False),  # not tokenized
        (["a" * 32_769], 32_760, False),  # pieces of 32768 and 1; a cut may add eight tokens to each
        (["a" * 32_769], 32_759, True),
        (["b", "a" * 32_768], 32_760, False),
        (["b", "a" * 32_768], 32_759, True),
        (["a" * 32_768, "b" * 9], 32_761, False),
        (["a" * 32_768, "b" * 9], 32_760, True),
        ([], 0, False),
    ],
)
def test_a_text_is_refused_from_the_first_token_too_many_on(texts, positions, refused):
    """An even longer one is: what a cut adds to the count is left to the tokenizer."""
    if not refused:
        return check_length(A_LETTER, _messages(*texts), positions)
    with pytest.raises(ContextError, match=f"{positions} positions"):
        check_length(A_LETTER, _messages(*texts), positions)


def test_a_long_text_is_tokenized_in_pieces_until_its_asker_has_gone():
    read, answers = [], [False, False, True]
    tokenizer = SimpleNamespace(longest_token=2, encode_literal=lambda text: read.append(len(text)) or list(text))
    check_length(tokenizer, _messages("a" * 70_000, "b" * 40_000), 65_536, gone=lambda: answers.pop(0))
    assert read == [32_768, 32_768, 4_464] and not answers
