"""How long each stage of an answer takes here: median and 90th percentile over rounds, after a warm-up that does not count.

In: a bundle, and a video or else the bundle's reference input. Out: rows by stage, memory, and the hardware they were
measured on. A round is one complete answer of `new_tokens` tokens: decode and preprocess the video (if there is one), encode
and compress, prefill, then greedy decoding that no end-of-answer token shortens.
"""

from __future__ import annotations

import contextlib
import platform
import resource
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from runtime.bundle import DECODER, VISION, Bundle
from runtime.core.errors import BundleError, EngineError
from runtime.core.machine import total_memory
from runtime.core.options import check_limits, nested, option
from runtime.core.progress import log
from runtime.engine import EngineOptions, backend_option, placed, tuning
from runtime.llm.decoder import LocalDecoder, check_context
from runtime.llm.sampling import Sampling
from runtime.media.clip import sample_frames
from runtime.prompt import Prompt
from runtime.tools import reference
from runtime.tools.table import size, table
from runtime.vision.encoder import VisionEncoder

QUESTION = "What happens in the video?"


@dataclass(frozen=True)
class BenchOptions:
    """What is measured, how often, and on which engine."""

    video: Path | None = option(None, "decode and preprocess this file too (default: the recorded input)")
    rounds: int = option(5, "rounds that count", at_least=1)
    new_tokens: int = option(32, "tokens of each answer", flag="--max-new-tokens", at_least=1)
    backend: str = backend_option()
    engine: EngineOptions = nested(EngineOptions())

    def __post_init__(self) -> None:
        check_limits(self, EngineError)


@dataclass(frozen=True)
class Measured:
    """One row; p90 is the value that nine of ten rounds did not pass on the slow side (for rates: the low side)."""

    stage: str
    unit: str
    median: float
    p90: float


@dataclass(frozen=True)
class BenchReport:
    """rows by stage; load_seconds: both engines, the bundle's files in the page cache or not as they were; peak_rss in bytes,
    from before the engines were loaded to the end."""

    bundle: str
    input: str
    rows: tuple[Measured, ...]
    load_seconds: float
    peak_rss: int
    tokens: dict[str, int]
    rounds: int
    backends: dict[str, str]
    hardware: dict[str, Any]

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def bench(bundle: Bundle, options: BenchOptions = BenchOptions()) -> BenchReport:
    """Measure; UserError for what can't be loaded, decoded or fed here."""
    graphs = bundle.components
    if not graphs:
        raise BundleError(f"{bundle.path} has no graph to measure; export it again")
    pixels = reference.clip(bundle) if VISION in graphs and options.video is None else None
    _reset_peak()
    engine_options = placed(bundle, options.backend, options.engine)
    start = time.perf_counter()
    vision = VisionEncoder.open(bundle, options.backend, engine_options) if VISION in graphs else None
    decoder = LocalDecoder.open(bundle, options.backend, engine_options) if DECODER in graphs else None
    load_seconds = time.perf_counter() - start
    if vision is not None and pixels is not None:
        pixels = pixels.astype(vision.engine.pixel_values.dtype, copy=False)  # as frames are normalised where a clip is read
    run = _Round(bundle, vision, decoder, pixels, options)
    seconds: dict[str, list[float]] = {}
    for number in range(options.rounds + 1):
        start = time.perf_counter()
        stages = run()
        name = f"round {number} of {options.rounds}" if number else "warm-up"
        log(f"{name}: {time.perf_counter() - start:.2f} s")
        for stage, value in stages.items() if number else ():
            seconds.setdefault(stage, []).append(value)
    engines = {name: component.engine for name, component in (("vision", vision), ("llm", decoder)) if component}
    return BenchReport(
        bundle=str(bundle.path),
        input=str(options.video) if options.video else "the bundle's reference input",
        rows=tuple(_summary(name, values) for name, values in seconds.items()),
        load_seconds=load_seconds,
        peak_rss=_peak_rss(),
        tokens=run.tokens,
        rounds=options.rounds,
        backends={name: f"{engine.backend} on {engine.device}" for name, engine in engines.items()},
        hardware=hardware(engine_options.device, options.engine.threads),
    )


def hardware(device: str, threads: int) -> dict[str, Any]:
    """The machine in words: CPU model, cores that this process may use, memory, threads asked for, GPU where one is used."""
    machine = tuning.machine() | {"threads": threads or "backend's choice", "python": platform.python_version()}
    if memory := total_memory():
        machine["memory"] = memory
    if device == "cuda":
        from runtime.engine import cuda

        machine["gpu"] = [gpu.name for gpu in cuda.gpus()]
    return machine


def text(report: BenchReport) -> str:
    """The table for people."""
    machine = report.hardware
    gpu = f", {', '.join(machine['gpu'])}" if machine.get("gpu") else ""
    memory = f", {size(machine['memory'])} memory" if "memory" in machine else ""
    digits = {"s": 4, "tokens/s": 1}
    rows = [[row.stage, *(f"{value:.{digits[row.unit]}f}" for value in (row.median, row.p90)), row.unit] for row in report.rows]
    counted = ", ".join(f"{count:,} {name.replace('_', ' ')}" for name, count in report.tokens.items())
    return "\n".join(
        [
            f"{report.bundle}: {report.input}, {counted}",
            f"{machine['cpu']}, {machine['cores']} cores{memory}{gpu}; threads: {machine['threads']}; "
            + ", ".join(f"{name} {where}" for name, where in report.backends.items()),
            "",
            table([f"median of {report.rounds}", "median", "p90", ""], rows, right=(1, 2)),
            "",
            f"engines loaded in {report.load_seconds:.2f} s, peak memory {size(report.peak_rss)}",
        ]
    )


class _Round:
    """One answer; a call returns {stage: seconds, or tokens a second of the decode rate}."""

    def __init__(
        self, bundle: Bundle, vision: VisionEncoder | None, decoder: LocalDecoder | None, pixels: Any, options: BenchOptions
    ):
        self.bundle, self.vision, self.decoder, self.pixels, self.options = bundle, vision, decoder, pixels, options
        self.tokens: dict[str, int] = {}
        if vision:
            self.tokens = {"patch_tokens": bundle.manifest.patch_tokens, "visual_tokens": bundle.manifest.tokens_per_clip}
        if decoder:
            self.prompt = Prompt(bundle)
            self.ids = self.prompt.ids(QUESTION)
            # without a vision encoder (--only llm) the reference prompt's tokens stand in for a clip's.
            self.visual = None if vision else reference.llm(bundle).visual_tokens
            visual = bundle.manifest.tokens_per_clip if self.visual is None else len(self.visual)
            check_context(len(self.ids) + visual + options.new_tokens, decoder.max_context)
            self.tokens |= {"prompt_tokens": len(self.ids) + visual, "new_tokens": options.new_tokens}

    def __call__(self) -> dict[str, float]:
        stages: dict[str, float] = {}
        visual: Any = self._see(self.vision, stages) if self.vision else self.visual
        if self.decoder:
            self._answer(self.decoder, visual, stages)
        return stages

    def _see(self, vision: VisionEncoder, stages: dict[str, float]) -> np.ndarray:
        pixels = self.pixels
        if self.options.video is not None:
            resizing: list[float] = []

            def resize(frame: np.ndarray) -> np.ndarray:
                start = time.perf_counter()
                resized = vision.preprocessor.resize(frame)
                resizing.append(time.perf_counter() - start)
                return resized

            start = time.perf_counter()
            clip = sample_frames(self.options.video, self.bundle.manifest.frames, resize)  # each frame is resized as it comes
            decoded = time.perf_counter()
            pixels = vision.preprocessor.normalise(clip.frames, vision.engine.pixel_values.dtype)
            stages["decode"] = decoded - start - sum(resizing)
            stages["preprocess"] = time.perf_counter() - decoded + sum(resizing)
        start = time.perf_counter()
        tokens = vision.tokens(pixels)
        stages["encode+compress"] = time.perf_counter() - start
        return tokens

    def _answer(self, decoder: LocalDecoder, visual: np.ndarray, stages: dict[str, float]) -> None:
        start = time.perf_counter()
        conversation = decoder.conversation()
        logits = conversation.extend(self.prompt.embed(self.ids, visual))
        first = time.perf_counter()
        stages["prefill"] = first - start
        if self.vision:
            stages["time to first token"] = sum(stages.values())
        choose, table = Sampling().chooser(), self.prompt.embeddings
        for _ in range(self.options.new_tokens):
            logits = conversation.extend(table[[choose(logits)]][None])
        stages["decode rate"] = self.options.new_tokens / (time.perf_counter() - first)


def _summary(stage: str, values: list[float]) -> Measured:
    unit, slow_side = ("tokens/s", 0.1) if stage == "decode rate" else ("s", 0.9)
    return Measured(stage, unit, float(np.median(values)), float(np.quantile(values, slow_side)))


def _reset_peak() -> None:
    """Forget the peak of what came before (reading the reference input), where the kernel lets a process do that."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def _peak_rss() -> int:
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) << 10
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak << 10
