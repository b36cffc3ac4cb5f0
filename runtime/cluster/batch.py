"""`python -m runtime batch`: videos to rows of compressed tokens in Parquet, on Ray or in a thread pool of this process.

Workers encode. Only this process writes, in the order of the input, and writes each part as soon as its rows are complete. Workers
never get far ahead of the writer, so memory does not grow with the job. If a worker or this process is killed at any point, the
same command continues with what is missing.

N visual tokens, D hidden.
"""

from __future__ import annotations

import logging
import os
import time
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from runtime.bundle import VISION, Bundle
from runtime.bundle.graphs import file_of
from runtime.cluster.files import videos_of
from runtime.cluster.parts import Parts
from runtime.core.errors import UserError
from runtime.core.files import sha256_of
from runtime.core.options import check_limits, nested, option
from runtime.core.progress import log
from runtime.engine import EngineOptions, backend_option, placed
from runtime.vision.encoder import VisionEncoder


@dataclass(frozen=True)
class BatchOptions:
    """How the work is divided, what runs it, and on which engine."""

    workers: int = option(2, "clips encoded at a time", at_least=1)
    part_rows: int = option(64, "rows of one part", at_least=1)
    runner: str = option("auto", "default: Ray if it is installed", choices=("auto", "ray", "local"))
    ray_address: str | None = option(None, 'a running cluster, "auto" for this machine\'s; default: start one', metavar="ADDRESS")
    retry_errors: bool = option(False, "try files whose rows have errors again")
    backend: str = backend_option()
    engine: EngineOptions = nested(EngineOptions(threads=1))

    def __post_init__(self) -> None:
        check_limits(self)


@dataclass(frozen=True)
class BatchResult:
    """files: that were named; skipped: done before; errors: rows of this run with an error; parts: written by this run."""

    files: int
    skipped: int
    errors: int
    parts: int
    seconds: float
    runner: str


def run(bundle_path: Path, arguments: Sequence[str], out: Path, options: BatchOptions = BatchOptions()) -> BatchResult:
    """Encode the files that are not done yet. UserError if the job can't run; an error of one file goes into its row."""
    bundle = Bundle.open(bundle_path)
    bundle.file(file_of(VISION))  # an error if it is missing
    parts, videos, start = Parts(out, bundle), videos_of(arguments), time.perf_counter()
    runner = _runner(options)
    if runner == "local":
        placed(bundle, options.backend, options.engine)  # logs where the workers will run
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


class Worker:
    """One loaded vision encoder; `row(path)` may be called from several threads."""

    def __init__(self, bundle: str, backend: str, engine: EngineOptions):
        self.encoder = VisionEncoder.open(Bundle.open(bundle), backend, engine)

    def row(self, path: str) -> dict[str, Any]:
        """{"path", "size", "mtime_ns", "sha256", "tokens": bytes of float16 [N, D] or None, "error": text or None}."""
        row: dict[str, Any] = {"path": path, "size": None, "mtime_ns": None, "sha256": None, "tokens": None, "error": None}
        try:
            stat = os.stat(path)
            row |= {"size": stat.st_size, "mtime_ns": stat.st_mtime_ns}
            if Path(path).is_file():
                row["sha256"] = sha256_of(Path(path))
            with np.errstate(over="ignore"):
                tokens = self.encoder.encode(path).tokens.astype(np.float16)
            if not np.isfinite(tokens).all():
                raise UserError("the tokens are outside float16's range")
            row["tokens"] = tokens.tobytes()
        except (UserError, OSError) as error:  # a bad file does not stop the job
            row["error"] = " ".join(str(error).split())
        return row

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[Any]]:
        """The same for Ray Data: columns in, columns out."""
        rows = [self.row(str(path)) for path in batch["path"]]
        return {name: np.array([row[name] for row in rows], dtype=object) for name in rows[0]}  # type: ignore[misc]


def _runner(options: BatchOptions) -> str:
    if options.runner != "auto":
        return options.runner
    try:
        import ray.data  # noqa: F401
    except ImportError:
        return "local"
    return "ray"


def _local_rows(bundle: str, left: Sequence[str], options: BatchOptions) -> Iterator[dict[str, Any]]:
    """Rows in order; the workers are at most two clips each ahead of the consumer."""
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
    """The same from Ray Data, with an actor for each worker. Ray restarts an actor that dies and limits how far they get ahead."""
    from runtime.cluster.ray_session import session

    with session(options.ray_address, options.workers) as ray:
        import ray.data

        context = ray.data.DataContext.get_current()
        context.execution_options.preserve_order = True
        context.enable_progress_bars = False
        logging.getLogger("ray.data").setLevel(logging.ERROR)
        blocks = max(options.workers, -(-len(left) // 4))  # small, as a block is repeated when its worker dies
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
    """GPUs that Ray reserves for a worker, which sees no others: one if the cluster has enough or if `device` asks for it."""
    if options.engine.device == "auto":
        enough = of_cluster >= options.workers and options.backend != "openvino" and not options.engine.bf16
        log(f"device auto: {options.workers} workers, {of_cluster:g} GPUs in the cluster: {'one each' if enough else 'on the CPU'}")
        return 1 if enough else None
    return 1 if options.engine.device == "cuda" else None
