"""A checkpoint's chat template: messages -> the prompt's text, under Hugging Face's rules for templates.

Messages are {"role", "content": [{"type": "text", "text"} | {"type": "video"}]}.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any

from runtime.core.errors import PromptError, UserError, import_package


class ChatTemplate:
    """A Jinja template, compiled when first used. PromptError where it does not work."""

    def __init__(self, text: str):
        self.text = text

    def render(self, messages: Sequence[dict[str, Any]]) -> str:
        """The prompt of `messages`, with the generation prompt."""
        template = self._compiled
        try:
            return template.render(messages=messages, add_generation_prompt=True)
        except UserError:
            raise
        except Exception as error:  # a template is a program: it raises whatever Python does
            raise broken_template(error) from None

    def prefix_and_suffix(self) -> tuple[str, str] | None:
        """The prompt's text before and after a question about one clip, for the C++ runtime, which renders no templates.

        None where the template changes questions, or repeats them.
        """
        first, second = " \t first mark ", "second\nmark"
        prefix, found, suffix = self.render(question_about_clip(first)).partition(first)
        is_kept = found and all(self.render(question_about_clip(mark)) == prefix + mark + suffix for mark in (first, second))
        return (prefix, suffix) if is_kept else None

    @cached_property
    def _compiled(self):
        import_package("jinja2", "asking a question", "runtime")
        from jinja2 import TemplateError
        from jinja2.ext import Extension, loopcontrols
        from jinja2.sandbox import ImmutableSandboxedEnvironment

        def refuse(message: str):
            raise PromptError(f"the chat template refuses the messages: {message}")

        class Generation(Extension):
            """`{% generation %}` marks, for training, what the model wrote; for a prompt it means nothing."""

            tags = {"generation"}  # noqa: RUF012

            def parse(self, parser):
                next(parser.stream)
                return parser.parse_statements(("name:endgeneration",), drop_needle=True)

        extensions = [loopcontrols, Generation]
        environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=extensions)
        environment.globals["raise_exception"] = refuse
        try:
            return environment.from_string(self.text)
        except (TemplateError, ValueError, RecursionError, OverflowError) as error:
            raise broken_template(error) from None


def question_about_clip(question: str) -> list[dict[str, Any]]:
    """The messages of a question about one clip; PromptError for an empty one."""
    if not question.strip():
        raise PromptError("the question is empty; expected some text")
    return [{"role": "user", "content": [{"type": "video"}, {"type": "text", "text": question}]}]


def broken_template(error: Exception) -> PromptError:
    reason = " ".join(f"{type(error).__name__}: {error}".split())
    return PromptError(f"the chat template does not work ({reason}); copy the checkpoint's and export again")
