"""What a bundle's LLM reads: a question or a conversation as token ids, and their embeddings with visual tokens between them.

D hidden, N visual tokens of a clip, S prompt positions, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np

from runtime.bundle import Bundle
from runtime.prompt.embeddings import Embeddings
from runtime.prompt.ids import PromptIds, prompt_ids
from runtime.prompt.template import ChatTemplate, broken_template, question_about_clip
from runtime.prompt.tokenizer import Tokenizer


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
