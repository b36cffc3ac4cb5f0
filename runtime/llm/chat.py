"""What a server asks of an LLM, local or remote: `async for piece in llm.answer(chat)`.

N visual tokens of a clip, D hidden.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from runtime.core.errors import UserError
from runtime.llm.sampling import Sampling


class DeadlineError(UserError):
    """A request that was not answered before its deadline."""


class Cancelled(UserError):
    """A request whose client went away."""


@dataclass(frozen=True)
class ClipTokens:
    """key: identifies the clip; tokens [N, D]."""

    key: str
    tokens: np.ndarray


@dataclass
class Usage:
    """What an answer cost, filled in while it runs; cached: prompt tokens whose KV was there already; seconds: by stage."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0
    seconds: dict[str, float] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)


@dataclass
class Chat:
    """messages: as in runtime/prompt/template.py, their video parts in the order of `clips`; max_tokens: cut to what the context has
    room for; deadline: of time.monotonic()."""

    messages: Sequence[dict[str, Any]]
    clips: Sequence[ClipTokens]
    max_tokens: int | None = None
    sampling: Sampling = field(default_factory=Sampling)
    stop: Sequence[str] = ()
    deadline: float = float("inf")
    usage: Usage = field(default_factory=Usage)


@dataclass(frozen=True)
class Piece:
    """text: what is new in the answer; finish: "stop" or "length" in the last piece; error: why there is no more."""

    text: str = ""
    finish: str | None = None
    error: Exception | None = None

    @property
    def last(self) -> bool:
        return self.finish is not None or self.error is not None


class LanguageModel(Protocol):
    """max_context: positions that prompt and answer may have together, None where only the remote knows;
    shared: the same object in all LLMs that share one decoder, each for a bundle."""

    max_context: int | None

    @property
    def shared(self) -> object: ...

    def check(self, messages: Sequence[dict[str, Any]], gone: Callable[[], bool] = lambda: False) -> int:
        """Refuse what can't be answered before any clip is decoded; return the prompt's tokens, clips included.

        gone: whether nobody waits for the result any more; long texts are then not read to their end.
        """

    def answer(self, chat: Chat) -> AsyncGenerator[Piece, None]:
        """Pieces of the answer; the last has `finish`. Closing the iterator stops the work. Errors are raised."""

    def busy(self) -> dict[str, float]:
        """{"running", "waiting", "kv_positions"} for the metrics."""

    @property
    def healthy(self) -> bool: ...

    def close(self) -> None: ...
