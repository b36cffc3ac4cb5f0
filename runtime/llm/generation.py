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


class StopFilter:
    """Text in pieces -> the same text up to the first stop string, which is left out; `stopped` once one was met.

    What may be the beginning of a stop string is held back until the next piece decides.
    """

    def __init__(self, stops: Sequence[str] = ()):
        self.stops = [stop for stop in stops if stop]
        self.stopped = False
        self._held = ""

    def push(self, piece: str) -> str:
        """The text that is certain now."""
        if self.stopped:
            return ""
        text = self._held + piece
        found = [at for stop in self.stops if (at := text.find(stop)) >= 0]
        if found:
            self.stopped, self._held = True, ""
            return text[: min(found)]
        keep = max((_overlap(text, stop) for stop in self.stops), default=0)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]

    def finish(self) -> str:
        """What was held back when the text ended without a stop string."""
        held, self._held = self._held, ""
        return held


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that begins `stop`."""
    return next((size for size in range(min(len(stop) - 1, len(text)), 0, -1) if stop.startswith(text[-size:])), 0)
