"""Text that can't fit a context is refused by its length, before all of it is tokenized.

No token is longer than the longest of the vocabulary, so a text of more characters than positions times that can't fit. What
passes is counted piece by piece, which ends soon after the context is full or the client has gone: tokenizing a text of some
megabytes takes many seconds and can't be interrupted.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from runtime.core.errors import ContextError
from runtime.prompt.tokenizer import Tokenizer

_PIECE = 1 << 15  # characters tokenized at once
_CUT = 8  # tokens that a cut between two pieces may add to the count


def check_length(
    tokenizer: Tokenizer, messages: Sequence[dict[str, Any]], positions: int, gone: Callable[[], bool] = lambda: False
) -> None:
    """ContextError where the text of `messages` surely needs more than `positions` tokens; returns early once `gone()`."""
    texts = [part["text"] for message in messages for part in message["content"] if part["type"] == "text"]
    characters = sum(map(len, texts))
    most = positions * tokenizer.longest_token
    if characters > most:
        raise ContextError(f"the messages have {characters} characters, and {positions} positions hold at most {most}; ask less")
    if characters <= _PIECE:
        return
    count = 0
    for text in texts:
        for start in range(0, len(text), _PIECE):
            count += max(0, len(tokenizer.encode_literal(text[start : start + _PIECE])) - _CUT)
            if gone():
                return
            if count > positions:
                raise ContextError(f"the messages need more than {positions} positions, all that the context has; ask less")
