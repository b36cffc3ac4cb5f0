"""`python -m runtime batch`: videos to rows of compressed tokens in Parquet, on Ray or in a pool of this process.

Workers encode, this process alone writes, in the order of the input, a part as soon as its rows are there. Nobody works far
ahead of the writer, so memory does not grow with the job. Killed at any point, workers or this process, the same command goes
on with what is missing.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from runtime.bundle import Bundle
from runtime.cluster.files import videos_of
from runtime.cluster.parts import Parts
from runtime.cluster.worker import Worker, WorkerOptions
from runtime.core.errors import UsageError
from runtime.core.progress import log
from runtime.engine import EngineOptions
from runtime.engine.place import place


@dataclass(frozen=True)
class BatchOptions:
    """workers: clips encoded at once; part: rows of one Parquet file; runner: "auto" takes Ray where it is installed.

    address: of a running Ray cluster ("auto" for the one of this machine), None to start one here.
    """

    workers: int = 2
    part: int = 64
    runner: str = "auto"
    address: str | None = None
    retry_errors: bool = False
    backend: str = "auto"
    device: str = "auto"
    threads: int = 1

    def __post_init__(self) -> None:
        if self.workers < 1 or self.part < 1:
            raise UsageError(f"{self.workers} workers and parts of {self.part} rows, expected at least 1 of each")
        if self.runner not in ("auto", "ray", "local"):
            raise UsageError(f'runner "{self.runner}", expected auto, ray or local')


@dataclass(frozen=True)
class BatchResult:
    """files: asked for; skipped: done before; errors: rows of this run with an error; parts: written by this run."""

    files: int
    skipped: int
    errors: int
    parts: int
    seconds: float
    runner: str


def run(bundle_path: Path, arguments: Sequence[str], out: Path, options: BatchOptions = BatchOptions()) -> BatchResult:
    """Work on what is not done yet. UserError where the job can't be; a file's own error is its row's."""
    bundle = Bundle.open(bundle_path)
    bundle.file("vision.onnx")  # says how to get one where the bundle has none
    parts, videos, start = Parts(out, bundle), videos_of(arguments), time.perf_counter()
    runner = _runner(options)
    note = place(bundle, options.backend, EngineOptions(options.device)).note if runner == "local" else ""
    if note:
        log(note)
    with parts.locked():
        done = parts.done(options.retry_errors)
        left = [path for path in videos if path not in done]
        if done:
            log(f"{len(videos) - len(left)} of {len(videos)} files are done")
        worker = WorkerOptions(str(bundle_path.resolve()), options.backend, options.device, options.threads)
        rows = _ray_rows(worker, left, options) if runner == "ray" else _local_rows(worker, left, options)
        errors = written = 0
        waiting: list[dict[str, Any]] = []
        for finished, row in enumerate(rows if left else (), start=1):
            waiting.append(row)
            if row["error"]:
                errors += 1
                log(f"{row['path']}: {row['error']}")
            if len(waiting) == options.part or finished == len(left):
                parts.write(waiting)
                written, waiting = written + 1, []
                rate = finished / (time.perf_counter() - start)
                log(f"{finished} of {len(left)} files, {rate:.2f} a second, {errors} with errors")
    return BatchResult(len(videos), len(videos) - len(left), errors, written, time.perf_counter() - start, runner)


def _runner(options: BatchOptions) -> str:
    if options.runner != "auto":
        return options.runner
    try:
        import ray.data  # noqa: F401
    except ImportError:
        return "local"
    return "ray"


def _local_rows(worker: WorkerOptions, left: Sequence[str], options: BatchOptions) -> Iterator[dict[str, Any]]:
    """Rows in order; at most two clips a worker are ahead of whoever takes them."""
    encode = Worker(worker).row
    with ThreadPoolExecutor(options.workers, thread_name_prefix="batch") as pool:
        ahead: deque[Future[dict[str, Any]]] = deque()
        try:
            for path in left:
                ahead.append(pool.submit(encode, path))
                if len(ahead) > 2 * options.workers:
                    yield ahead.popleft().result()
            while ahead:
                yield ahead.popleft().result()
        finally:
            for future in ahead:
                future.cancel()


def _ray_rows(worker: WorkerOptions, left: Sequence[str], options: BatchOptions) -> Iterator[dict[str, Any]]:
    """The same from Ray Data: an actor a worker, which Ray starts again when it dies; how far they run ahead is Ray's backpressure."""
    from runtime.cluster.ray_session import session

    with session(options.address, options.workers) as ray:
        import ray.data

        context = ray.data.DataContext.get_current()
        context.execution_options.preserve_order = True
        context.enable_progress_bars = False
        logging.getLogger("ray.data").setLevel(logging.ERROR)
        blocks = max(options.workers, -(-len(left) // 4))  # small: a block is what is done again when a worker dies
        dataset = ray.data.from_items([{"path": path} for path in left], override_num_blocks=blocks)
        rows = dataset.map_batches(
            Worker,
            fn_constructor_args=(worker,),
            batch_size=1,
            compute=ray.data.ActorPoolStrategy(size=options.workers),
            num_cpus=1,
            num_gpus=_gpus_each(options, ray.cluster_resources().get("GPU", 0)),
        )
        yield from rows.iter_rows()


def _gpus_each(options: BatchOptions, of_cluster: float) -> int | None:
    """GPUs that Ray reserves for a worker, which sees no others: one where the cluster has enough, or `device` asks for it."""
    if options.device == "auto":
        enough = of_cluster >= options.workers and not options.backend.startswith("openvino")
        log(f"device auto: {options.workers} workers, {of_cluster:g} GPUs in the cluster: {'one each' if enough else 'on the CPU'}")
        return 1 if enough else None
    return 1 if options.device == "cuda" else None
