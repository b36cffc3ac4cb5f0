"""Continuous batching: many generations, one decoder, one thread. A generation joins the batch as soon as a slot is free.

Each round prefills one chunk of the oldest prompt that is not complete, then gives every other generation one token, so that a
long prompt delays running answers by a chunk and no more. Order is first come, first served. A slot keeps its cache when its
generation ends: a prompt with an equal beginning (the same clip, the same conversation so far) starts behind it.

An error inside one generation (sampling, stop strings, the tokenizer, logits that are not finite) ends that generation alone.
Where a step of the batch fails, each generation is tried by itself, and only those that fail again end.

D hidden, V vocabulary.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np

from runtime.core.errors import EngineError
from runtime.llm.chat import Cancelled, DeadlineError, Piece
from runtime.llm.decoder import check_context, finite
from runtime.llm.generation import Generation, Request
from runtime.llm.slots import PrefixCache, SlotDecoder
from runtime.prompt import Prompt

log = logging.getLogger("runtime.llm.scheduler")
SHARED_CHUNK = 128  # positions of a prompt per round while other answers are being decoded


class Scheduler:
    """Runs generations until `close`; `submit` is safe from any thread, `emit` is called in the scheduler's."""

    def __init__(self, decoder: SlotDecoder, prompt: Prompt):
        self.decoder, self.prompt, self.caches = decoder, prompt, PrefixCache(decoder)
        self._waiting: deque[Generation] = deque()
        self._running: list[Generation] = []
        self._closing = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._run, name="scheduler", daemon=True)
        self._thread.start()

    def submit(self, request: Request, emit: Callable[[Piece], None]) -> Generation:
        """Queue a request. ContextError where it can't fit the cache."""
        check_context(len(request.keys), self.decoder.max_context)
        generation = Generation(request, self.prompt, emit)
        with self._changed:
            if self._closing:
                raise EngineError("the scheduler is closed")
            self._waiting.append(generation)
            self._changed.notify()
        return generation

    @property
    def alive(self) -> bool:
        return self._thread.is_alive()

    def busy(self) -> dict[str, float]:
        """Generations that run and wait, and the KV positions of those that run."""
        running = list(self._running)
        positions = sum(self.decoder.lengths[generation.slot] for generation in running)
        return {"running": len(running), "waiting": len(self._waiting), "kv_positions": positions}

    def close(self) -> None:
        """Stop after the current round; unfinished generations end with an error."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join()
        self.decoder.close()

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._closing or self._waiting or self._running)
                if self._closing:
                    unfinished = [*self._running, *self._waiting]
                    self._running, self._waiting = [], deque()
                    break
            try:
                self._round()
            except Exception as error:  # not inside one generation: all that run end, and the next ones are served
                for generation in list(self._running):
                    self._fail(generation, error)
        for generation in unfinished:
            _emit(generation, Piece(error=EngineError("the server is shutting down")))

    def _round(self) -> None:
        self._drop()
        self._admit()
        prefilling = [generation for generation in self._running if not generation.is_prefilled]
        decoding = [generation for generation in self._running if generation.is_prefilled]
        if prefilling:
            self._prefill(prefilling[0], SHARED_CHUNK if decoding else self.decoder.chunk)
        if decoding:
            self._decode(decoding)

    def _drop(self) -> None:
        """End what nobody waits for any more."""
        now = time.monotonic()
        for generation in [*self._running, *self._waiting]:
            if generation.cancelled:
                self._finish(generation, Piece(error=Cancelled("the request was cancelled")))
            elif now > generation.request.deadline:
                self._finish(generation, Piece(error=DeadlineError("the request's deadline has passed")))

    def _admit(self) -> None:
        free = set(range(self.decoder.slots)) - {generation.slot for generation in self._running}
        while self._waiting and free:
            with self._changed:
                generation = self._waiting.popleft()
            generation.slot, generation.cached = self.caches.take(generation.request.keys, sorted(free))
            generation.done = generation.cached
            generation.lap("queue")
            self._running.append(generation)
            free.remove(generation.slot)

    def _prefill(self, generation: Generation, chunk: int) -> None:
        begin, end = generation.done, generation.done + chunk
        with self._ends_alone(generation):
            logits = self.decoder.extend(generation.slot, generation.request.embeddings[begin:end])
            keys = generation.request.keys[begin:end]
            generation.done += len(keys)
            self.caches.filled[generation.slot] += keys
            if generation.is_prefilled:
                generation.lap("prefill")
                self._choose(generation, logits)

    def _decode(self, generations: list[Generation]) -> None:
        rows: dict[Generation, np.ndarray] = {}  # embeddings [1, D] of the latest ids
        for generation in generations:
            with self._ends_alone(generation):
                rows[generation] = self.prompt.embeddings[generation.ids[-1:]]
        if not rows:
            return
        try:
            logits = self.decoder.step([generation.slot for generation in rows], np.concatenate(list(rows.values())))
        except Exception as error:
            log.warning("a step of %d answers failed (%s: %s); trying each by itself", len(rows), type(error).__name__, error)
            for generation, row in rows.items():
                with self._ends_alone(generation):
                    # the step may have got to this slot before it failed
                    self.decoder.lengths[generation.slot] = len(self.caches.filled[generation.slot])
                    self._decoded(generation, self.decoder.extend(generation.slot, row))
            return
        for generation, row in zip(rows, logits, strict=True):
            with self._ends_alone(generation):
                self._decoded(generation, row)

    def _decoded(self, generation: Generation, logits: np.ndarray) -> None:
        self.caches.filled[generation.slot].append(generation.ids[-1])
        self._choose(generation, logits)

    def _choose(self, generation: Generation, logits: np.ndarray) -> None:
        """The next token of one generation from its logits [V]."""
        piece = generation.next_piece(finite(logits), self.decoder.lengths[generation.slot] == self.decoder.max_context)
        if piece.last:
            self._finish(generation, piece)
        elif piece.text:
            _emit(generation, piece)

    @contextmanager
    def _ends_alone(self, generation: Generation) -> Iterator[None]:
        """An error inside ends this generation and no other."""
        try:
            yield
        except Exception as error:
            self._fail(generation, error)

    def _fail(self, generation: Generation, error: Exception) -> None:
        self.caches.filled[generation.slot] = []  # what its cache holds now is unknown
        self._finish(generation, Piece(error=error))

    def _finish(self, generation: Generation, piece: Piece) -> None:
        with self._changed:
            if generation in self._running:
                self._running.remove(generation)
            elif generation in self._waiting:
                self._waiting.remove(generation)
        if generation.ids:
            generation.lap("decode")
        _emit(generation, piece)


def _emit(generation: Generation, piece: Piece) -> None:
    """Hand a piece to its client, whose errors must not reach the other generations."""
    try:
        generation.emit(piece)
    except Exception:
        log.exception("an answer could not be delivered to its client")
        generation.cancel()
