"""Continuous batching: many generations, one decoder, one thread. A generation joins the batch as soon as a slot is free.

Each round prefills one chunk of the oldest prompt that is not in its cache yet, then gives every other generation one token,
so that a long prompt delays running answers by a chunk and no more. Order is first come, first served. A slot keeps its cache
when its generation ends: a prompt that begins as that one did (the same clip, the same conversation so far) starts behind
what they share.

An error inside one generation (sampling, stop strings, the tokenizer, logits that are not finite) ends that generation alone.
Where a step of the whole batch fails, each generation is tried by itself, and only those that fail again end.

`keys` name what stands at each prompt position: a token id, or (clip, row) for a visual token. S prompt positions, D hidden,
V vocabulary.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field

import numpy as np

from runtime.core.errors import EngineError, UserError
from runtime.llm.sampling import Sampling
from runtime.llm.slots import SlotDecoder
from runtime.llm.step import check_context, finite
from runtime.llm.stops import StopFilter
from runtime.prompt.template import Prompt, TextStream

log = logging.getLogger("runtime.llm.scheduler")
SHARED_CHUNK = 128  # positions of a prompt per round while other answers are being decoded


class DeadlineError(UserError):
    """A request that was not answered in the time that it had."""


class Cancelled(UserError):
    """A request whose asker went away."""


@dataclass(frozen=True)
class Request:
    """keys: one a position; embeddings [S, D]; stop: strings that end the answer; deadline: time.monotonic() of its end."""

    keys: Sequence[Hashable]
    embeddings: np.ndarray
    max_tokens: int = 128
    sampling: Sampling = field(default_factory=Sampling)
    stop: Sequence[str] = ()
    deadline: float = float("inf")


@dataclass(frozen=True)
class Piece:
    """text: what is new of the answer; finish: "stop" or "length" in the last piece; error: why there is no more."""

    text: str = ""
    finish: str | None = None
    error: Exception | None = None

    @property
    def last(self) -> bool:
        return self.finish is not None or self.error is not None


class Generation:
    """One request on its way. ids: chosen so far; cached: prompt positions that a slot had already; seconds: by stage."""

    def __init__(self, request: Request, emit: Callable[[Piece], None], prompt: Prompt):
        self.request, self.emit = request, emit
        self.ids: list[int] = []
        self.cached = 0
        self.seconds: dict[str, float] = {}
        self.cancelled = False
        self._stream, self._stops = TextStream(prompt), StopFilter(request.stop)
        video = prompt.facts["video_token_id"]
        seen = (key if isinstance(key, int) else video for key in request.keys)
        self._choose = request.sampling.chooser(seen, prompt.repetition_penalty)
        self._eos = prompt.eos
        self._since = time.perf_counter()
        self._slot = -1
        self._done = 0  # prompt positions in the cache

    def cancel(self) -> None:
        """Stop before the next token; from any thread."""
        self.cancelled = True

    def _lap(self, stage: str) -> None:
        now = time.perf_counter()
        self.seconds[stage] = self.seconds.get(stage, 0.0) + now - self._since
        self._since = now

    def _take(self, logits: np.ndarray, full: bool) -> Piece:
        """Choose the next token from logits [V]; full: the cache has no row for another."""
        token = self._choose(logits)
        if token in self._eos:
            return self._end("stop")
        self.ids.append(token)
        text = self._stops.push(self._stream.push(token))
        if self._stops.stopped:
            return Piece(text, "stop")
        if len(self.ids) >= self.request.max_tokens or full:
            end = self._end("length")
            return Piece(text + end.text, end.finish)
        return Piece(text)

    def _end(self, finish: str) -> Piece:
        text = self._stops.push(self._stream.finish())
        return Piece(text, "stop") if self._stops.stopped else Piece(text + self._stops.finish(), finish)


class Scheduler:
    """Runs generations until `close`; `submit` is safe from any thread, `emit` is called in the scheduler's."""

    def __init__(self, decoder: SlotDecoder, prompt: Prompt):
        self.decoder, self.prompt = decoder, prompt
        self._filled: list[list[Hashable]] = [[] for _ in range(decoder.slots)]  # what each slot's cache holds
        self._used = [0] * decoder.slots  # when each slot was last taken
        self._clock = 0
        self._waiting: deque[Generation] = deque()
        self._active: list[Generation] = []
        self._closing = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._run, name="scheduler", daemon=True)
        self._thread.start()

    def submit(self, request: Request, emit: Callable[[Piece], None]) -> Generation:
        """Queue a request. PromptError where it can't fit the cache."""
        check_context(len(request.keys), self.decoder.max_context)
        generation = Generation(request, emit, self.prompt)
        with self._changed:
            if self._closing:
                raise EngineError("the scheduler is closed")
            self._waiting.append(generation)
            self._changed.notify()
        return generation

    @property
    def alive(self) -> bool:
        return self._thread.is_alive()

    @property
    def running(self) -> int:
        return len(self._active)

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    @property
    def positions(self) -> int:
        """KV positions of the generations that run."""
        return sum(self.decoder.lengths[generation._slot] for generation in list(self._active))

    def close(self) -> None:
        """Stop after the current round; what is not finished ends with an error."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join()
        self.decoder.close()

    def _run(self) -> None:
        while True:
            with self._changed:
                while not (self._closing or self._waiting or self._active):
                    self._changed.wait()
                if self._closing:
                    left = [*self._active, *self._waiting]
                    self._active, self._waiting = [], deque()
                    break
            try:
                self._round()
            except Exception as error:  # not in one generation: all that run are told, and the next ones are served
                for generation in list(self._active):
                    self._fail(generation, error)
        for generation in left:
            _tell(generation, Piece(error=EngineError("the server is shutting down")))

    def _round(self) -> None:
        self._drop()
        self._admit()
        prefilling = [g for g in self._active if g._done < len(g.request.keys)]
        decoding = [g for g in self._active if g._done == len(g.request.keys)]
        if prefilling:
            self._prefill(prefilling[0], SHARED_CHUNK if decoding else self.decoder.chunk)
        if decoding:
            self._decode(decoding)

    def _drop(self) -> None:
        """End what nobody waits for any more."""
        now = time.monotonic()
        for generation in [*self._active, *self._waiting]:
            if generation.cancelled:
                self._finish(generation, Piece(error=Cancelled("the request was cancelled")))
            elif now > generation.request.deadline:
                self._finish(generation, Piece(error=DeadlineError("the request's deadline has passed")))

    def _admit(self) -> None:
        taken = {generation._slot for generation in self._active}
        while self._waiting and len(taken) < self.decoder.slots:
            with self._changed:
                generation = self._waiting.popleft()
            keys = generation.request.keys
            free = [slot for slot in range(self.decoder.slots) if slot not in taken]
            shared = {slot: min(_common(self._filled[slot], keys), self.decoder.lengths[slot], len(keys) - 1) for slot in free}
            # A slot is taken over for its beginning only where that is most of what it holds: every prompt begins with the
            # chat template's first tokens, and for those nobody's clip must go. Else the slot that was idle for longest goes.
            worth = [slot for slot in free if 2 * shared[slot] > len(self._filled[slot])]
            slot = max(worth, key=shared.__getitem__) if worth else min(free, key=self._used.__getitem__)
            self._clock += 1
            self._used[slot], generation._slot = self._clock, slot
            generation.cached = generation._done = self.decoder.lengths[slot] = shared[slot]
            self._filled[slot] = list(keys[: shared[slot]])
            generation._lap("queue")
            self._active.append(generation)
            taken.add(slot)

    def _prefill(self, generation: Generation, chunk: int) -> None:
        request, slot, begin = generation.request, generation._slot, generation._done
        try:
            logits = self.decoder.extend(slot, request.embeddings[begin : begin + chunk])
        except Exception as error:
            self._fail(generation, error)
            return
        generation._done = min(begin + chunk, len(request.keys))
        self._filled[slot] += request.keys[begin : generation._done]
        if generation._done == len(request.keys):
            generation._lap("prefill")
            self._choose(generation, logits)

    def _decode(self, generations: list[Generation]) -> None:
        rows: dict[Generation, np.ndarray] = {}  # embeddings [1, D] of the latest ids
        for generation in generations:
            try:
                rows[generation] = self.prompt.embeddings[generation.ids[-1:]]
            except Exception as error:
                self._fail(generation, error)
        if not rows:
            return
        try:
            logits = self.decoder.step([generation._slot for generation in rows], np.concatenate(list(rows.values())))
        except Exception as error:
            log.warning("a step of %d answers failed (%s: %s); trying each by itself", len(rows), type(error).__name__, error)
            self._decode_apart(rows)
            return
        for generation, row in zip(rows, logits, strict=True):
            self._decoded(generation, row)

    def _decode_apart(self, rows: dict[Generation, np.ndarray]) -> None:
        """What a failed step of the batch should have done, one generation at a time."""
        for generation, row in rows.items():
            slot = generation._slot
            self.decoder.lengths[slot] = len(self._filled[slot])  # the step may have got to this slot before it failed
            try:
                logits = self.decoder.extend(slot, row)
            except Exception as error:
                self._fail(generation, error)
            else:
                self._decoded(generation, logits)

    def _decoded(self, generation: Generation, logits: np.ndarray) -> None:
        self._filled[generation._slot].append(generation.ids[-1])
        self._choose(generation, logits)

    def _choose(self, generation: Generation, logits: np.ndarray) -> None:
        """The next token of one generation from its logits [V]."""
        try:
            full = self.decoder.lengths[generation._slot] == self.decoder.max_context
            piece = generation._take(finite(logits), full)
        except Exception as error:
            self._fail(generation, error)
            return
        if piece.last:
            self._finish(generation, piece)
        elif piece.text:
            _tell(generation, piece)

    def _finish(self, generation: Generation, piece: Piece) -> None:
        with self._changed:
            if generation in self._active:
                self._active.remove(generation)
            elif generation in self._waiting:
                self._waiting.remove(generation)
        if generation.ids:
            generation._lap("decode")
        _tell(generation, piece)

    def _fail(self, generation: Generation, error: Exception) -> None:
        self._filled[generation._slot] = []  # what its cache holds is not known
        self._finish(generation, Piece(error=error))


def _tell(generation: Generation, piece: Piece) -> None:
    """Hand a piece to its asker, whose own errors must not reach the other generations."""
    try:
        generation.emit(piece)
    except Exception:
        log.exception("an answer could not be handed to its asker")
        generation.cancel()


def _common(held: Sequence[Hashable], wanted: Sequence[Hashable]) -> int:
    """How many keys both begin with."""
    for index, (one, other) in enumerate(zip(held, wanted, strict=False)):
        if one != other:
            return index
    return min(len(held), len(wanted))
