"""One request while it is answered: logits in, pieces of text out.

`keys` identify what is at each prompt position: a token id, or (clip, row) for a visual token. S prompt positions, D hidden,
V vocabulary.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field

import numpy as np

from runtime.llm.chat import ClipTokens, Piece
from runtime.llm.sampling import Sampling
from runtime.llm.stops import StopFilter
from runtime.prompt import Prompt, PromptIds
from runtime.prompt.tokenizer import TextStream


@dataclass(frozen=True)
class Request:
    """keys: one a position; embeddings [S, D]; stop: strings that end the answer; deadline: of time.monotonic()."""

    keys: Sequence[Hashable]
    embeddings: np.ndarray
    max_tokens: int = 128
    sampling: Sampling = field(default_factory=Sampling)
    stop: Sequence[str] = ()
    deadline: float = float("inf")


def keys_of(ids: PromptIds, clips: Sequence[ClipTokens]) -> list[Hashable]:
    """What is at each position of a prompt, S of them, see above."""
    keys: list[Hashable] = list(ids.before)
    for clip, text in zip(clips, ids.texts[1:], strict=True):
        keys += [(clip.key, row) for row in range(len(clip.tokens))]
        keys += text
    return keys


class Generation:
    """ids: chosen so far; slot: of the decoder, -1 while it waits; done: prompt positions in its cache, of which `cached` were there
    already; seconds: by stage."""

    def __init__(self, request: Request, prompt: Prompt, emit: Callable[[Piece], None] = lambda piece: None):
        self.request, self.emit = request, emit
        self.ids: list[int] = []
        self.slot, self.done, self.cached = -1, 0, 0
        self.seconds: dict[str, float] = {}
        self.cancelled = False
        self._stream, self._stops = TextStream(prompt.tokenizer), StopFilter(request.stop)
        seen = (key if isinstance(key, int) else prompt.video_token_id for key in request.keys)
        self._choose = request.sampling.chooser(seen, prompt.repetition_penalty)
        self._eos = prompt.eos
        self._since = time.perf_counter()

    @property
    def is_prefilled(self) -> bool:
        return self.done == len(self.request.keys)

    def cancel(self) -> None:
        """Stop before the next token; from any thread."""
        self.cancelled = True

    def lap(self, stage: str) -> None:
        """Count the time since the last lap for `stage`."""
        now = time.perf_counter()
        self.seconds[stage] = self.seconds.get(stage, 0.0) + now - self._since
        self._since = now

    def next_piece(self, logits: np.ndarray, is_full: bool) -> Piece:
        """Choose the next token from logits [V]; is_full: the cache has no row for another."""
        token = self._choose(logits)
        if token in self._eos:
            return self._end("stop")
        self.ids.append(token)
        text = self._stops.push(self._stream.push(token))
        if self._stops.stopped:
            return Piece(text, "stop")
        if len(self.ids) >= self.request.max_tokens or is_full:
            end = self._end("length")
            return Piece(text + end.text, end.finish)
        return Piece(text)

    def _end(self, finish: str) -> Piece:
        text = self._stops.push(self._stream.finish())
        return Piece(text, "stop") if self._stops.stopped else Piece(text + self._stops.finish(), finish)
