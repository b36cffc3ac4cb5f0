"""What a batch job does with rows as they come, and what Ray Data is asked for, on stand-ins for both."""

from __future__ import annotations

import logging
import sys
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest

from runtime.cluster import batch
from runtime.cluster.batch import BatchOptions, BatchResult, Worker
from runtime.engine import EngineOptions

ENGINE = EngineOptions("cpu", 4, True)


class Parts:
    """done: paths of rows that stand; written: the paths of each part."""

    done_before: set[str]
    written: list[list[str]]

    def __init__(self, out, bundle):
        assert (out, bundle.path) == (Path("out"), Path("b"))
        self.is_locked = False

    @contextmanager
    def locked(self):
        self.is_locked = True
        yield
        self.is_locked = False

    def done(self, retry_errors):
        assert self.is_locked and retry_errors
        return self.done_before

    def write(self, rows):
        assert self.is_locked
        self.written.append([row["path"] for row in rows])


@pytest.fixture
def job(monkeypatch):
    """job(done, runner, times): its result, parts, and what workers and devices were asked for; five files, of which c.mp4 is torn."""

    def job(done: set[str], runner: str, times: list[float]) -> tuple[BatchResult, list[list[str]], list]:
        asked = []

        def rows(bundle, left, options):
            asked.append((bundle, left))
            return iter([{"path": path, "error": "torn" if path == "c.mp4" else None} for path in left])

        def place(bundle, backend, options):
            asked.append((backend, options))
            return SimpleNamespace(options=options, note="device cpu: no GPU")

        names = [f"{letter}.mp4" for letter in "abcde"]
        bundle = SimpleNamespace(path=Path("b"), file=lambda name: asked.append(name))
        monkeypatch.setattr(batch.Bundle, "open", lambda path: bundle)
        monkeypatch.setattr(batch, "Parts", Parts)
        monkeypatch.setattr(Parts, "done_before", done, raising=False)
        monkeypatch.setattr(Parts, "written", [], raising=False)
        monkeypatch.setattr(batch, "videos_of", lambda arguments: names if arguments == ["videos"] else [])
        monkeypatch.setattr("runtime.engine.open.place", place)
        monkeypatch.setattr(batch, "time", SimpleNamespace(perf_counter=iter(times).__next__))
        for name in ("ray", "local"):
            monkeypatch.setattr(batch, f"_{name}_rows", rows if name == runner else None)
        options = BatchOptions(3, 2, runner, None, True, "onnx", ENGINE)
        return batch.run(Path("b"), ["videos"], Path("out"), options), Parts.written, asked

    return job


def test_what_is_left_is_written_in_parts_and_said(job, capsys):
    left = ["a.mp4", "c.mp4", "e.mp4"]
    result, written, asked = job({"b.mp4", "d.mp4", "of another job.mp4"}, "local", [10, 12, 16, 20])
    assert result == BatchResult(files=5, skipped=2, errors=1, parts=2, seconds=10, runner="local")
    assert written == [left[:2], left[2:]]
    assert asked == ["vision.onnx", ("onnx", ENGINE), (str(Path("b").resolve()), left)]
    assert capsys.readouterr().err.splitlines() == [
        "device cpu: no GPU",
        "2 of 5 files are done",
        "c.mp4: torn",
        "2 of 3 files, 1.00 a second, 1 with errors",
        "3 of 3 files, 0.50 a second, 1 with errors",
    ]


def test_a_first_run_on_ray_says_nothing_of_files_that_are_done_or_of_this_machine(job, capsys):
    result, written, asked = job(set(), "ray", [0, 1, 2, 5, 5])
    assert result == BatchResult(files=5, skipped=0, errors=1, parts=3, seconds=5, runner="ray")
    assert [len(part) for part in written] == [2, 2, 1] and len(asked) == 2
    assert capsys.readouterr().err.splitlines() == [
        "2 of 5 files, 2.00 a second, 0 with errors",
        "c.mp4: torn",
        "4 of 5 files, 2.00 a second, 1 with errors",
        "5 of 5 files, 1.00 a second, 1 with errors",
    ]


def test_where_nothing_is_left_no_row_is_asked_for(job, capsys):
    result, written, _ = job({f"{letter}.mp4" for letter in "abcde"}, "local", [0, 1])
    assert result == BatchResult(files=5, skipped=5, errors=0, parts=0, seconds=1, runner="local") and not written
    assert capsys.readouterr().err.splitlines() == ["device cpu: no GPU", "5 of 5 files are done"]


@pytest.fixture
def ray(monkeypatch):
    """Ray Data with two GPUs: `asked` lists what it was told, rows come as they were given."""
    asked: list = []
    context = SimpleNamespace(execution_options=SimpleNamespace(preserve_order=False), enable_progress_bars=True)

    class Dataset:
        def __init__(self, rows, blocks):
            asked.append(blocks)
            self.rows = rows

        def map_batches(self, *work, **options):
            asked.extend([work, options])
            return self

        def iter_rows(self):
            return iter(self.rows)

    @contextmanager
    def session(address, workers):
        asked.append((address, workers))
        yield module
        asked.append("ended")

    module, data = ModuleType("ray"), ModuleType("ray.data")
    vars(module).update(data=data, cluster_resources=lambda: {"GPU": 2.0}, asked=asked, context=context)
    vars(data).update(
        DataContext=SimpleNamespace(get_current=lambda: context),
        ActorPoolStrategy=lambda size: ("actors", size),
        from_items=lambda rows, override_num_blocks: Dataset(rows, override_num_blocks),
    )
    for name, one in (("ray", module), ("ray.data", data)):
        monkeypatch.setitem(sys.modules, name, one)
    monkeypatch.setattr("runtime.cluster.ray_session.session", session)
    log = logging.getLogger("ray.data")
    monkeypatch.setattr(log, "level", logging.INFO)
    return module


@pytest.mark.parametrize(
    ("files", "workers", "blocks", "bf16", "gpus"),
    [
        (3, 2, 2, False, 1),
        (8, 2, 2, False, 1),
        (9, 2, 3, False, 1),
        (9, 3, 3, False, None),
        (1, 1, 1, False, 1),
        (1, 1, 1, True, None),
    ],
)
def test_ray_data_has_an_actor_a_worker_small_blocks_and_the_order_and_draws_no_bars(ray, files, workers, blocks, bf16, gpus):
    left = [f"{number}.mp4" for number in range(files)]
    engine = EngineOptions(threads=2, bf16=bf16)
    rows = batch._ray_rows("b", left, BatchOptions(workers, ray_address="host:6379", engine=engine))
    assert [row["path"] for row in rows] == left
    assert ray.context.execution_options.preserve_order and not ray.context.enable_progress_bars
    assert logging.getLogger("ray.data").level == logging.ERROR
    pool = {"compute": ("actors", workers), "num_cpus": 1, "num_gpus": gpus}
    options = {"fn_constructor_args": ("b", "auto", engine), "batch_size": 1} | pool
    assert ray.asked == [("host:6379", workers), blocks, (Worker,), options, "ended"]


def test_a_worker_gives_ray_a_column_a_field_with_a_row_a_file(monkeypatch):
    """Tokens may end in zeros, which NumPy takes off bytes of its own."""
    found = {"a": {"path": "a", "tokens": b"\1\0\0", "error": None}, "bc": {"path": "bc", "tokens": None, "error": "torn"}}
    one = Worker.__new__(Worker)
    monkeypatch.setattr(one, "row", found.__getitem__, raising=False)
    columns = one({"path": np.array(["a", "bc"])})
    assert {name: list(column) for name, column in columns.items()} == {
        "path": ["a", "bc"],
        "tokens": [b"\1\0\0", None],
        "error": [None, "torn"],
    }
    assert all(column.dtype == object for column in one({"path": np.array(["a"])}).values())


class Pool:
    """An executor that works at once and notes what it was given; `cancelled` lists what nobody took."""

    def __init__(self, workers, thread_name_prefix=""):
        self.workers, self.given, self.cancelled = workers, [], []

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def submit(self, work, path):
        self.given.append(path)
        return SimpleNamespace(result=lambda: work(path), cancel=lambda: self.cancelled.append(path))


@pytest.mark.parametrize(("workers", "ahead"), [(1, 3), (2, 5), (4, 6)])
def test_a_local_pool_is_at_most_two_clips_a_worker_ahead_of_whoever_takes_them(monkeypatch, workers, ahead):
    made = []
    monkeypatch.setattr(batch, "ThreadPoolExecutor", lambda *words, **more: made.append(Pool(*words, **more)) or made[-1])
    monkeypatch.setattr(batch, "Worker", lambda *options: SimpleNamespace(row=lambda path: (options, path)))
    options = BatchOptions(workers, backend="onnx", engine=EngineOptions("cpu", 2, bf16=True))
    rows = batch._local_rows("b", list("abcdef"), options)
    assert next(rows) == (("b", "onnx", EngineOptions("cpu", 2, bf16=True)), "a")
    assert made[0].workers == workers and len(made[0].given) == ahead
    rows.close()
    assert made[0].cancelled == list("bcdef")[: ahead - 1]
    assert [path for _, path in batch._local_rows("b", list("abcdef"), options)] == list("abcdef")
    assert not made[1].cancelled
