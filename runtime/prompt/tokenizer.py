"""A checkpoint's tokenizer.json: text to ids and back, and ids to text as an answer streams.

Special tokens are control tokens only in `encode`, which is for what a chat template writes. `encode_literal` reads the same
characters as the text that they are.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import TypeVar

from runtime.core.errors import BundleError, UserError, import_package

_T = TypeVar("_T")


class Tokenizer:
    """Hugging Face's tokenizers, loaded when first used. Its errors become a BundleError: it is the file that is wrong."""

    def __init__(self, path: Path):
        self.path = path

    def encode(self, text: str) -> list[int]:
        """Ids of text whose special tokens are control tokens."""
        return self._call(lambda: self._control.encode(text, add_special_tokens=False).ids)

    def encode_literal(self, text: str) -> list[int]:
        """Ids of text that holds no control tokens, whatever its characters are."""
        return self._call(lambda: self._literal.encode(text, add_special_tokens=False).ids)

    def decode(self, ids: list[int]) -> str:
        """Text of generated ids, special tokens left out."""
        return self._call(lambda: self._control.decode(ids, skip_special_tokens=True))

    @cached_property
    def vocabulary(self) -> dict[str, int]:
        """{token: id}, added tokens included."""
        return self._control.get_vocab(with_added_tokens=True)

    @cached_property
    def longest_token(self) -> int:
        """Characters of the longest token; of byte-level tokens, bytes."""
        return max(map(len, self.vocabulary))

    @cached_property
    def special_tokens(self) -> re.Pattern[str]:
        """Matches the text of each special token, of two that begin alike the longer; matches nothing where there are none."""
        added = self._control.get_added_tokens_decoder().values()
        texts = sorted((token.content for token in added if token.special), key=len, reverse=True)
        return re.compile("|".join(map(re.escape, texts)) or "(?!)")

    @cached_property
    def _control(self):
        return self._read()

    @cached_property
    def _literal(self):
        """A second one, because the flag is not thread-safe."""
        tokenizer = self._read()
        tokenizer.encode_special_tokens = True
        return tokenizer

    def _read(self):
        """From the file: `to_str` lists every id that a vocabulary leaves out, 16 GB where a damaged one has an id near 2^32."""
        tokenizers = import_package("tokenizers", "asking a question", "runtime")
        return self._call(lambda: tokenizers.Tokenizer.from_file(str(self.path)))

    def _call(self, call: Callable[[], _T]) -> _T:
        try:
            return call()
        except (KeyboardInterrupt, SystemExit, UserError):
            raise
        except BaseException as error:  # the library raises Exception itself, and a Rust panic is not even that
            reason = " ".join(str(error).split())
            raise BundleError(f"{self.path} is not a tokenizer ({reason}); copy the checkpoint's and export again") from None


class TextStream:
    """Ids in, finished text out: a character whose bytes span several tokens is held back until it is complete."""

    def __init__(self, tokenizer: Tokenizer):
        self.tokenizer = tokenizer
        self.ids: list[int] = []
        self.sent = 0  # characters returned

    def push(self, token: int) -> str:
        """The text that `token` completes, "" where none is complete yet."""
        self.ids.append(token)
        text = self.tokenizer.decode(self.ids)
        return self._take(text) if not text.endswith("\ufffd") else ""

    def finish(self) -> str:
        """What was held back when the answer ended."""
        return self._take(self.tokenizer.decode(self.ids))

    def _take(self, text: str) -> str:
        piece, self.sent = text[self.sent :], max(self.sent, len(text))
        return piece
