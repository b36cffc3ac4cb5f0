"""Chat messages with clips in them -> token ids around the clips: `ids_of_messages(prompt, messages)`.

Messages are what a chat template takes: {"role", "content": [{"type": "text", "text"} | {"type": "video"}]}. What people write is
text whatever it looks like: a special token's spelling in it becomes the tokens of its characters, never the special token.
For that each such spelling stands as a marker in the rendered prompt and is tokenized apart; the boundaries are where the
special token's would have been, so text without one is tokenized as ever.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from runtime.core.errors import PromptError
from runtime.prompt.template import Prompt


@dataclass(frozen=True)
class MessageIds:
    """texts: the ids before, between and after the clips, one list more than there are clips."""

    texts: tuple[tuple[int, ...], ...]

    @property
    def clips(self) -> int:
        return len(self.texts) - 1

    @property
    def text_tokens(self) -> int:
        return sum(map(len, self.texts))


def ids_of_messages(prompt: Prompt, messages: Sequence[dict[str, Any]]) -> MessageIds:
    """Ids of the chat-template prompt. PromptError for text that is not Unicode and for a template that loses or adds a clip."""
    specials = sorted((a.content for a in prompt.tokenizer.get_added_tokens_decoder().values() if a.special), key=len, reverse=True)
    spelled = re.compile("|".join(map(re.escape, specials))) if specials else None
    nonce, literal = secrets.token_hex(8), []

    def hide(match: re.Match[str]) -> str:
        literal.append(match.group())
        return f"\x00{nonce}:{len(literal) - 1}\x00"

    clips, quoted = 0, []
    for message in messages:
        parts = []
        for part in message["content"]:
            if part["type"] == "text":
                if not _encodable(part["text"]):
                    raise PromptError("a message is not valid Unicode; expected UTF-8 text without lone surrogates")
                parts.append({"type": "text", "text": spelled.sub(hide, part["text"]) if spelled else part["text"]})
            else:
                clips += 1
                parts.append({"type": "video"})
        quoted.append({"role": message["role"], "content": parts})
    marker = prompt.facts["video_token_id"]

    def special(text: str) -> list[int | None]:
        return [None if token == marker else token for token in prompt.encode(text)]

    first, *others = prompt.render(quoted).split(f"\x00{nonce}:")
    ids = special(first)  # None where a clip stands
    for other in others:
        number, _, text = other.partition("\x00")
        ids += [*prompt.literal_ids(literal[int(number)]), *special(text)]
    if ids.count(None) != clips:
        raise PromptError(f"the chat template puts {ids.count(None)} clips into the prompt, the messages have {clips}")
    texts: list[list[int]] = [[]]
    for token in ids:
        if token is None:
            texts.append([])
        else:
            texts[-1].append(token)
    return MessageIds(tuple(map(tuple, texts)))


def _encodable(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
