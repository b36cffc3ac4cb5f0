"""The prompt of a question about a clip: chat template, tokenizer, and where the visual tokens are spliced in.

D hidden, N visual tokens, S prompt positions, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from runtime.bundle import Bundle
from runtime.core.errors import BundleError, PromptError, UserError, missing_package
from runtime.prompt.embeddings import Embeddings

_T = TypeVar("_T")


@dataclass(frozen=True)
class PromptIds:
    """Token ids before and after the visual tokens."""

    before: list[int]
    after: list[int]

    def __len__(self) -> int:
        return len(self.before) + len(self.after)


class TextPrompt:
    """Text in and out of an LLM: its tokenizer and its chat template.

    facts: the manifest's `prompt`; tokenizer_file: its tokenizer.json; template: the chat template's text.
    """

    def __init__(self, facts: dict[str, Any], tokenizer_file: Path, template: str):
        self.facts, self.tokenizer_file, self.template = facts, tokenizer_file, template

    @cached_property
    def tokenizer(self):
        """The checkpoint's own tokenizer (Hugging Face tokenizers)."""
        return self._read_tokenizer()

    @cached_property
    def _literal_tokenizer(self):
        """The same tokenizer reading special tokens as the text they are; one of its own, because the flag is not thread-safe."""
        tokenizer = self._read_tokenizer()
        tokenizer.encode_special_tokens = True
        return tokenizer

    def _read_tokenizer(self):
        """From the file: `to_str` lists every id that a vocabulary leaves out, 16 GB where a damaged one has an id near 2^32."""
        try:
            from tokenizers import Tokenizer
        except ImportError:
            raise missing_package("tokenizers", "asking a question", "runtime") from None
        return self._of_tokenizer(lambda: Tokenizer.from_file(str(self.tokenizer_file)))

    def encode(self, text: str) -> list[int]:
        """Ids of text in which special tokens are read as such."""
        return self._of_tokenizer(lambda: self.tokenizer.encode(text, add_special_tokens=False).ids)

    def _of_tokenizer(self, call: Callable[[], _T]) -> _T:
        """What the tokenizers library returns; a BundleError where it raises or panics: it is the file that is wrong."""
        try:
            return call()
        except (KeyboardInterrupt, SystemExit, UserError):
            raise
        except BaseException as error:  # the library raises Exception itself, and a Rust panic is no Exception
            reason = " ".join(str(error).split())
            raise BundleError(
                f"{self.tokenizer_file} is no tokenizer ({reason}); copy the checkpoint's own and export again"
            ) from None

    def literal_ids(self, text: str) -> list[int]:
        """Ids of text in which special tokens' spellings are text."""
        return self._of_tokenizer(lambda: self._literal_tokenizer.encode(text, add_special_tokens=False).ids)

    @cached_property
    def longest_token(self) -> int:
        """Characters of the longest token; of byte-level tokens, bytes."""
        return max(map(len, self.tokenizer.get_vocab()))

    def ids(self, question: str) -> PromptIds:
        """Ids of the chat-template prompt around one clip.

        PromptError for an empty question, and for one that contains a special token of the model: as text it would be
        taken for the token.
        """
        if not question.strip():
            raise PromptError("the question is empty; expected some text")
        if any("\ud800" <= character <= "\udfff" for character in question):  # bytes of a command line that were no UTF-8
            raise PromptError("the question is not valid Unicode; expected UTF-8 text")
        for token in sorted(added.content for added in self.tokenizer.get_added_tokens_decoder().values() if added.special):
            if token in question:
                raise PromptError(f'the question contains "{token}", a special token of this model; leave it out')
        ids = self.encode(self.render_question(question))
        marker = self.facts["video_token_id"]
        if ids.count(marker) != 1:
            raise PromptError(
                f'the chat template puts "{self.facts["video_token"]}" {ids.count(marker)} times into the prompt, expected once'
            )
        at = ids.index(marker)
        return PromptIds(ids[:at], ids[at + 1 :])

    def around_question(self) -> list[str] | None:
        """The prompt's text before and after a question, for the C++ runtime, which renders no templates.

        None where the template does not leave questions as they are, or says more than once what was asked.
        """
        marks = (" \t first mark ", "second\nmark")
        before, found, after = self.render_question(marks[0]).partition(marks[0])
        return [before, after] if found and all(self.render_question(mark) == before + mark + after for mark in marks) else None

    def render_question(self, question: str) -> str:
        """The prompt of a question about one clip as text, the video token in the clip's place."""
        return self.render([{"role": "user", "content": [{"type": "video"}, {"type": "text", "text": question}]}])

    @cached_property
    def _template(self):
        """The chat template, compiled once, under Hugging Face's rules for templates."""
        try:
            from jinja2 import TemplateError
            from jinja2.ext import Extension, loopcontrols
            from jinja2.sandbox import ImmutableSandboxedEnvironment
        except ImportError:
            raise missing_package("jinja2", "asking a question", "runtime") from None

        def refuse(message: str):
            raise PromptError(f"the chat template refuses the messages: {message}")

        class Generation(Extension):
            """`{% generation %}` marks, for training, what the model said; for a prompt it means nothing."""

            tags = {"generation"}  # noqa: RUF012

            def parse(self, parser):
                next(parser.stream)
                return parser.parse_statements(("name:endgeneration",), drop_needle=True)

        extensions = [loopcontrols, Generation]
        environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=extensions)
        environment.globals["raise_exception"] = refuse
        try:
            return environment.from_string(self.template)
        except (TemplateError, ValueError, RecursionError, OverflowError) as error:
            raise _broken_template(error) from None

    def render(self, messages: list[dict]) -> str:
        """The chat template on `messages`, with the generation prompt."""
        template = self._template
        try:
            return template.render(messages=messages, add_generation_prompt=True)
        except UserError:
            raise
        except Exception as error:  # a template is a program: it raises whatever Python does
            raise _broken_template(error) from None

    def decode(self, ids: list[int]) -> str:
        """Text of generated ids, special tokens left out."""
        return self._of_tokenizer(lambda: self.tokenizer.decode(ids, skip_special_tokens=True))


class Prompt(TextPrompt):
    """The same of one bundle, with the embeddings of its LLM."""

    def __init__(self, bundle: Bundle):
        self.bundle = bundle
        facts = bundle.manifest.prompt
        self.eos = frozenset(facts["eos_token_ids"])
        self.repetition_penalty: float = facts.get("repetition_penalty", 1.0)
        try:
            template = bundle.file(f"llm/{facts['chat_template']}").read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise _broken_template(error) from None
        super().__init__(facts, bundle.file("llm/tokenizer.json"), template)

    @cached_property
    def embeddings(self) -> Embeddings:
        """[V, D]: `embeddings[ids]`."""
        return Embeddings(self.bundle)

    def embed(self, ids: PromptIds, visual_tokens: np.ndarray) -> np.ndarray:
        """[1, S, D]: embeddings of the prompt with the visual tokens [N, D] in their place."""
        table = self.embeddings
        return np.concatenate([table[ids.before], visual_tokens.astype(table.dtype, copy=False), table[ids.after]])[None]

    def seen(self, ids: PromptIds) -> set[int]:
        """Token ids of a prompt around one clip, that of the video token included: what a repetition penalty counts."""
        return {*ids.before, *ids.after, self.facts["video_token_id"]}


def _broken_template(error: Exception) -> PromptError:
    reason = " ".join(f"{type(error).__name__}: {error}".split())
    return PromptError(f"the chat template does not work ({reason}); copy the checkpoint's own and export again")


class TextStream:
    """Ids in, finished text out: a character whose bytes span several tokens is held back until it is whole."""

    def __init__(self, prompt: Prompt):
        self.prompt = prompt
        self.ids: list[int] = []
        self.sent = 0  # characters handed out

    def push(self, token: int) -> str:
        """The text that `token` completes, "" where none is complete yet."""
        self.ids.append(token)
        text = self.prompt.decode(self.ids)
        return self._take(text) if not text.endswith("\ufffd") else ""

    def finish(self) -> str:
        """What was held back when the answer ended."""
        return self._take(self.prompt.decode(self.ids))

    def _take(self, text: str) -> str:
        piece, self.sent = text[self.sent :], max(self.sent, len(text))
        return piece
