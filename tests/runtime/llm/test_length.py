"""Text that can't fit is refused by its length, without being tokenized to its end."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from runtime.core.errors import ContextError
from runtime.llm.length import check_length
from runtime.prompt.template import Prompt


@pytest.fixture
def prompt(bundle, monkeypatch):
    """A prompt that counts the characters it tokenizes."""
    one = Prompt(bundle)
    one.tokenized = 0
    literal_ids = one.literal_ids

    def counted(text):
        one.tokenized += len(text)
        return literal_ids(text)

    monkeypatch.setattr(one, "literal_ids", counted)
    return one


def _messages(*texts: str) -> list[dict]:
    return [{"role": "user", "content": [{"type": "video"}, {"type": "text", "text": text}]} for text in texts]


def test_the_longest_token_is_the_vocabulary_s(prompt):
    assert prompt.longest_token == len("<|endoftext|>") == 13


@pytest.mark.parametrize("texts", [("a" * 20_001,), ("a" * 10_001, "b" * 10_000)])
def test_text_longer_than_the_longest_tokens_of_all_positions_is_refused_unread(prompt, texts):
    with pytest.raises(ContextError, match="20001 characters, and 1538 positions hold at most 19994"):
        check_length(prompt, _messages(*texts), 1538)
    assert not prompt.tokenized


def test_text_that_fits_by_its_length_is_counted_only_until_the_context_is_full(prompt):
    with pytest.raises(ContextError, match="more than 30000 positions"):
        check_length(prompt, _messages("a " * 190_000), 30_000)
    assert 60_000 < prompt.tokenized < 100_000
    check_length(prompt, _messages("a " * 20_000), 30_000)


def test_counting_ends_when_nobody_waits(prompt):
    check_length(prompt, _messages("a " * 190_000), 30_000, gone=lambda: True)
    assert prompt.tokenized < 40_000


def test_short_texts_are_left_to_the_tokenizer(prompt):
    check_length(prompt, _messages("a " * 2000), 1536)
    assert not prompt.tokenized


A_LETTER = SimpleNamespace(longest_token=2, literal_ids=list)  # a token a character, though there are longer ones


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
    prompt = SimpleNamespace(longest_token=2, literal_ids=lambda text: read.append(len(text)) or list(text))
    check_length(prompt, _messages("a" * 70_000, "b" * 40_000), 65_536, gone=lambda: answers.pop(0))
    assert read == [32_768, 32_768, 4_464] and not answers
