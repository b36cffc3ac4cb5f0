"""`python -m runtime batch`: videos to rows of compressed tokens in Parquet, on Ray or in a pool of this process.

Workers encode, this process alone writes, in the order of the input, a part as soon as its rows are there. No worker is far
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

from runtime.bundle import VISION, Bundle
from runtime.bundle.graphs import file_of
from runtime.cluster.files import videos_of
from runtime.cluster.parts import Parts
from runtime.cluster.worker import Worker
from runtime.core.options import check_limits, nested, option
from runtime.core.progress import log
from runtime.engine import EngineOptions, backend_option, placed


@dataclass(frozen=True)
class BatchOptions:
    """How the work is divided, who does it, and on which engine."""

    workers: int = option(2, "clips encoded at once", at_least=1)
    part_rows: int = option(64, "rows of one part", at_least=1)
    runner: str = option("auto", "default: Ray where it is installed", choices=("auto", "ray", "local"))
    ray_address: str | None = option(None, 'a running cluster, "auto" for this machine\'s; default: start one', metavar="ADDRESS")
    retry_errors: bool = option(False, "work again on files whose rows have errors")
    backend: str = backend_option()
    engine: EngineOptions = nested(EngineOptions(threads=1))

    def __post_init__(self) -> None:
        check_limits(self)


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
    """Encode the files that are not done yet. UserError if the job can't run; a file's error goes into its row."""
    bundle = Bundle.open(bundle_path)
    bundle.file(file_of(VISION))  # its error says how to get one
    parts, videos, start = Parts(out, bundle), videos_of(arguments), time.perf_counter()
    runner = _runner(options)
    if runner == "local":
        placed(bundle, options.backend, options.engine)  # says where the workers will run
    with parts.locked():
        done = parts.done(options.retry_errors)
        left = [path for path in videos if path not in done]
        if done:
            log(f"{len(videos) - len(left)} of {len(videos)} files are done")
        rows = (_ray_rows if runner == "ray" else _local_rows)(str(bundle_path.resolve()), left, options)
        errors = written = 0
        waiting: list[dict[str, Any]] = []
        for finished, row in enumerate(rows if left else (), start=1):
            waiting.append(row)
            if row["error"]:
                errors += 1
                log(f"{row['path']}: {row['error']}")
            if len(waiting) == options.part_rows or finished == len(left):
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


def _local_rows(bundle: str, left: Sequence[str], options: BatchOptions) -> Iterator[dict[str, Any]]:
    """Rows in order; at most two clips a worker are ahead of the consumer."""
    encode = Worker(bundle, options.backend, options.engine).row
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


def _ray_rows(bundle: str, left: Sequence[str], options: BatchOptions) -> Iterator[dict[str, Any]]:
    """The same from Ray Data: an actor a worker, which Ray starts again when it dies; how far they run ahead is Ray's backpressure."""
    from runtime.cluster.ray_session import session

    with session(options.ray_address, options.workers) as ray:
        import ray.data

        context = ray.data.DataContext.get_current()
        context.execution_options.preserve_order = True
        context.enable_progress_bars = False
        logging.getLogger("ray.data").setLevel(logging.ERROR)
        blocks = max(options.workers, -(-len(left) // 4))  # small: a block is what is done again when a worker dies
        dataset = ray.data.from_items([{"path": path} for path in left], override_num_blocks=blocks)
        rows = dataset.map_batches(
            Worker,
            fn_constructor_args=(bundle, options.backend, options.engine),
            batch_size=1,
            compute=ray.data.ActorPoolStrategy(size=options.workers),
            num_cpus=1,
            num_gpus=_gpus_each(options, ray.cluster_resources().get("GPU", 0)),
        )
        yield from rows.iter_rows()


def _gpus_each(options: BatchOptions, of_cluster: float) -> int | None:
    """GPUs that Ray reserves for a worker, which sees no others: one where the cluster has enough, or `device` asks for it."""
    if options.engine.device == "auto":
        enough = of_cluster >= options.workers and options.backend != "openvino" and not options.engine.bf16
        log(f"device auto: {options.workers} workers, {of_cluster:g} GPUs in the cluster: {'one each' if enough else 'on the CPU'}")
        return 1 if enough else None
    return 1 if options.engine.device == "cuda" else None
