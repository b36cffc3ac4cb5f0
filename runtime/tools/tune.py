"""Which CPU backend, with how many threads, runs the vision encoder and the LLM fastest here: measured, and recorded for `--backend auto`.

A candidate is loaded, run once to warm up, then timed `rounds` times: the vision encoder on the reference clip (of a split
bundle, one frame and the compressor), the LLM on an answer about a clip: the prefill of its tokens, of which the chunk in the middle is
run and counted for all (attention grows evenly with the depth), and 32 decode steps after it. ONNX Runtime with its default number of
threads stays unless another's median is below its fastest round: a difference that noise can explain changes nothing.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from runtime.bundle import DECODER, Bundle
from runtime.core.errors import EngineError, UserError
from runtime.core.progress import log
from runtime.engine import BACKENDS, EngineOptions, backend_class, open_engine, tuning
from runtime.engine.tuning import Choice
from runtime.llm.decoder import LocalDecoder
from runtime.tools import reference
from runtime.tools.table import table
from runtime.vision.engine import open_vision

DEFAULT = Choice("onnx", 0)  # what `auto` runs where nothing was measured
_TEXT, _DECODE = 32, 32  # positions of a chat template and a question; of an answer


@dataclass(frozen=True)
class Measured:
    """One candidate for "vision" or "llm": seconds of a round; note: why it could not run."""

    half: str  # its name in the report and the record: "vision" or "llm"
    backend: str
    threads: int
    median: float | None
    fastest: float | None
    note: str = ""


@dataclass(frozen=True)
class TuneReport:
    """choices for "vision" and "llm", all that was measured, and the file that `auto` will read."""

    choices: dict[str, Choice]
    measured: tuple[Measured, ...]
    file: Path
    machine: dict[str, Any]

    def as_dict(self) -> dict[str, Any]:
        return asdict(self) | {"file": str(self.file)}


def tune(bundle: Bundle, rounds: int = 3) -> TuneReport:
    """Measure every CPU backend that is installed and write the record; UserError where none runs."""
    if rounds < 1:
        raise EngineError(f"rounds is {rounds}, expected at least 1")
    components = [tuning.component_name(graph) for graph in bundle.components]
    measured = [_measure(bundle, component, candidate, rounds) for component in components for candidate in candidates()]
    choices = {component: choose([row for row in measured if row.half == component]) for component in components}
    file = tuning.write(bundle, choices, [asdict(row) for row in measured])
    return TuneReport(choices, tuple(measured), file, tuning.machine())


def candidates() -> list[Choice]:
    """The default first, then every CPU backend that can run here with its default threads, 1, 2, 4, … below the number of cores."""
    backends = [name for name in BACKENDS if backend_class(name).unavailable("cpu") is None]
    cores = tuning.machine()["cores"]
    counts = [0, *(1 << power for power in range(12) if 1 << power < cores)]
    return [Choice(name, threads) for name in backends for threads in counts]


def choose(rows: list[Measured]) -> Choice:
    """The fastest, unless the default's spread explains the difference; EngineError where nothing ran."""
    ran = [row for row in rows if row.median is not None]
    if not ran:
        raise EngineError("no backend could run: " + "; ".join(dict.fromkeys(f"{row.backend}: {row.note}" for row in rows)))
    best = min(ran, key=lambda row: row.median or 0.0)
    usual = next((row for row in ran if (row.backend, row.threads) == (DEFAULT.backend, DEFAULT.threads)), None)
    if usual is not None and (best.median or 0.0) >= (usual.fastest or 0.0):
        best = usual
    return Choice(best.backend, best.threads)


def text(report: TuneReport) -> str:
    """The table for people."""
    rows = []
    for row in report.measured:
        is_chosen = report.choices[row.half] == Choice(row.backend, row.threads)
        times = ["", ""] if row.median is None else [f"{row.median:.4f}", f"{row.fastest:.4f}"]
        rows.append([row.half, row.backend, str(row.threads or "default"), *times, "chosen" if is_chosen else row.note])
    header = ["component", "backend", "threads", "median s", "fastest s", ""]
    machine = report.machine
    return "\n".join(
        [f"{machine['cpu']}, {machine['cores']} cores", table(header, rows, right=(3, 4)), f"--backend auto reads {report.file}"]
    )


def _measure(bundle: Bundle, component: str, candidate: Choice, rounds: int) -> Measured:
    options = EngineOptions("cpu", candidate.threads)
    log(f"{component} on {candidate.backend}, {candidate.threads or 'the default number of'} threads")
    try:
        with (_vision if component == "vision" else _llm)(bundle, candidate.backend, options) as run:
            run()
            seconds = [run() for _ in range(rounds)]
    except UserError as error:
        return Measured(component, candidate.backend, candidate.threads, None, None, str(error))
    return Measured(component, candidate.backend, candidate.threads, median(seconds), min(seconds))


@contextmanager
def _vision(bundle: Bundle, backend: str, options: EngineOptions) -> Iterator[Callable[[], float]]:
    """A round, which returns its seconds."""
    engine = open_vision(bundle, backend, options)
    clip = reference.clip(bundle).astype(engine.pixel_values.dtype, copy=False)
    try:
        features = np.repeat(engine.encode(clip[:1])[None], len(clip), axis=0)
        yield lambda: _timed(lambda: (engine.encode(clip[:1]), engine.compress(features)))
    finally:
        engine.close()


@contextmanager
def _llm(bundle: Bundle, backend: str, options: EngineOptions) -> Iterator[Callable[[], float]]:
    """A round, which returns its seconds."""
    decoder = LocalDecoder(bundle, open_engine(bundle, DECODER, backend, options))
    decode = min(_DECODE, max(1, decoder.max_context // 2))
    positions = min(bundle.manifest.tokens_per_clip + _TEXT, decoder.max_context - decode)
    chunk = min(decoder.chunk, positions)
    rows = np.random.default_rng(0).normal(0, 0.02, (1, chunk, bundle.manifest.hidden_size)).astype(np.float32)
    conversation = decoder.conversation()

    def run() -> float:
        conversation.length = (positions - chunk) // 2
        prefill = _timed(lambda: conversation.extend(rows)) * positions / chunk
        conversation.length = positions
        return prefill + _timed(lambda: [conversation.extend(rows[:, :1]) for _ in range(decode)])

    try:
        yield run
    finally:
        decoder.engine.close()


def _timed(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start
