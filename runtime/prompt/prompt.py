"""What a bundle's LLM reads: a question or a conversation as token ids, and their embeddings with visual tokens between them.

What people write is text, whatever it contains: the characters of a special token in it become the tokens of these characters,
never the special token. Only the chat template writes control tokens. For that, a marker stands for each such text while the
template is rendered, and its ids are put there afterwards; text without special tokens is tokenized in one piece.

D hidden, N visual tokens of a clip, S prompt positions, V vocabulary.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from runtime.bundle import Bundle
from runtime.core.errors import PromptError
from runtime.prompt.embeddings import Embeddings
from runtime.prompt.template import ChatTemplate, broken_template, question_about_clip
from runtime.prompt.tokenizer import Tokenizer


@dataclass(frozen=True)
class PromptIds:
    """texts: the ids before, between and after the clips, one list more than there are clips; `len` counts these ids."""

    texts: tuple[list[int], ...]

    @property
    def before(self) -> list[int]:
        return self.texts[0]

    @property
    def after(self) -> list[int]:
        """The ids after the last clip."""
        return self.texts[-1]

    def __len__(self) -> int:
        return sum(map(len, self.texts))

    def positions(self, tokens_per_clip: int) -> int:
        """S: positions of the prompt, clips included."""
        return len(self) + (len(self.texts) - 1) * tokens_per_clip


class Prompt:
    """A bundle's tokenizer, chat template and word embeddings, each read when it is first used."""

    def __init__(self, bundle: Bundle):
        self.bundle, info = bundle, bundle.prompt
        self.video_token_id = info.video_token_id
        self.eos = frozenset(info.eos_token_ids)
        self.repetition_penalty = info.repetition_penalty or 1.0
        self.tokenizer = Tokenizer(bundle.file("llm/tokenizer.json"))
        try:
            self.template = ChatTemplate(bundle.file(f"llm/{info.chat_template}").read_text(encoding="utf-8"))
        except UnicodeDecodeError as error:
            raise broken_template(error) from None

    @cached_property
    def embeddings(self) -> Embeddings:
        """[V, D]: `embeddings[ids]`."""
        return Embeddings(self.bundle)

    def ids(self, question: str) -> PromptIds:
        """Ids of a question about one clip. PromptError for an empty one, and as `prompt_ids` raises it."""
        return self.message_ids(question_about_clip(question))

    def message_ids(self, messages: Sequence[dict[str, Any]]) -> PromptIds:
        """Ids of messages as the chat template takes them, see runtime/prompt/template.py."""
        return prompt_ids(self.tokenizer, self.template, self.video_token_id, messages)

    def embed(self, ids: PromptIds, *clips: np.ndarray) -> np.ndarray:
        """[1, S, D]: embeddings of a prompt, with the visual tokens [N, D] of each clip in its place."""
        table = self.embeddings
        rows = [table[ids.before]]
        for tokens, text in zip(clips, ids.texts[1:], strict=True):
            rows += [tokens.astype(table.dtype, copy=False), table[text]]
        return np.concatenate(rows)[None]


def prompt_ids(tokenizer: Tokenizer, template: ChatTemplate, video_token_id: int, messages: Sequence[dict[str, Any]]) -> PromptIds:
    """Ids of the chat template's prompt. PromptError for text that is not Unicode and for a template that loses or adds a clip."""
    nonce, literals = secrets.token_hex(8), []

    def hide(match: re.Match[str]) -> str:
        literals.append(match.group())
        return f"\x00{nonce}:{len(literals) - 1}\x00"

    def hidden(part: dict[str, Any]) -> dict[str, Any]:
        if part["type"] != "text":
            return {"type": "video"}
        if any("\ud800" <= character <= "\udfff" for character in part["text"]):  # such as bytes of a command line
            raise PromptError("the question is not valid Unicode; expected UTF-8 text")
        return {"type": "text", "text": tokenizer.special_tokens.sub(hide, part["text"])}

    messages = [{"role": message["role"], "content": list(map(hidden, message["content"]))} for message in messages]
    first, *others = template.render(messages).split(f"\x00{nonce}:")
    ids = tokenizer.encode(first)
    for other in others:
        number, _, text = other.partition("\x00")
        ids += _literal(tokenizer, literals[int(number)]) + tokenizer.encode(text)
    texts: list[list[int]] = [[]]
    for token in ids:
        if token == video_token_id:
            texts.append([])
        else:
            texts[-1].append(token)
    clips = sum(part["type"] == "video" for message in messages for part in message["content"])
    if len(texts) - 1 != clips:
        raise PromptError(f"the chat template puts {len(texts) - 1} clips into the prompt, the messages have {clips}")
    return PromptIds(tuple(texts))


def _literal(tokenizer: Tokenizer, text: str) -> list[int]:
    """Ids of a special token's text; PromptError where the vocabulary has that text as a word, too."""
    ids = tokenizer.encode_literal(text)
    if ids == tokenizer.encode(text):
        raise PromptError(f'the text contains "{text}", which this model knows as a special token only; leave it out')
    return ids
