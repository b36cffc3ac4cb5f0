"""Many videos to Parquet: the rows are the encoder's own; broken files, kills and changes cost no row and double none."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path
from types import ModuleType

import numpy as np
import psutil
import pyarrow.parquet as parquet
import pytest
from http_server import until

from export.demo import CLIPS
from runtime.__main__ import main
from runtime.bundle import VISION
from runtime.cluster.batch import BatchOptions, BatchResult, _gpus_each, _runner, run
from runtime.core.errors import OutputError, UsageError
from runtime.core.files import sha256_of
from runtime.engine import EngineOptions
from runtime.vision.encoder import VisionEncoder

ROOT = Path(__file__).resolve().parents[3]
LOCAL = BatchOptions(runner="local", part_rows=3)


@pytest.fixture
def videos(tmp_path: Path) -> Path:
    """Five clips and two files that are none."""
    folder = tmp_path / "videos"
    folder.mkdir()
    for number in range(5):
        shutil.copy(CLIPS / ("shapes.mp4", "flash.mp4")[number % 2], folder / f"v{number}.mp4")
    (folder / "broken.mp4").write_text("no video")
    (folder / "empty.mp4").touch()
    return folder


def _rows(out: Path) -> list[dict]:
    return [row for part in sorted(out.glob("part-*.parquet")) for row in _part_rows(part)]


def _part_rows(part: Path) -> list[dict]:
    table = parquet.read_table(part)
    rows = table.drop_columns(["tokens"]).to_pylist()
    column = table["tokens"].combine_chunks()
    shape, values = column.type.shape, np.asarray(column.storage.values)
    for index, row in enumerate(rows):
        size = int(np.prod(shape))
        row["tokens"] = values[index * size : (index + 1) * size].reshape(shape) if column[index].is_valid else None
    return rows


def test_rows_hold_the_encoders_tokens(bundle_path, bundle, videos, tmp_path):
    result = run(bundle_path, [str(videos)], tmp_path / "out", LOCAL)
    assert (result.files, result.errors, result.skipped, result.parts) == (7, 2, 0, 3)
    rows = {Path(row["path"]).name: row for row in _rows(tmp_path / "out")}
    encoder = VisionEncoder.open(bundle, "onnx")
    for number in range(5):
        row = rows[f"v{number}.mp4"]
        expected = encoder.encode(videos / f"v{number}.mp4").tokens
        assert row["tokens"].dtype == np.float16 and row["tokens"].shape == (257, 128) and row["error"] is None
        np.testing.assert_allclose(row["tokens"], expected, rtol=2e-3, atol=2e-3)
        assert row["sha256"] == sha256_of(videos / f"v{number}.mp4")
        assert (row["bundle"], row["spec"]) == (bundle.sha256(VISION), bundle.manifest.compression.spec)
    assert "is not a video" in rows["broken.mp4"]["error"] and rows["broken.mp4"]["tokens"] is None
    assert "is empty" in rows["empty.mp4"]["error"]


def test_the_same_command_again_does_nothing_and_another_bundle_everything(bundle_path, videos, tmp_path):
    run(bundle_path, [str(videos)], tmp_path / "out", LOCAL)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("*.parquet")}
    again = run(bundle_path, [str(videos)], tmp_path / "out", LOCAL)
    assert (again.skipped, again.parts) == (7, 0)
    assert before == {path: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("*.parquet")}


def test_new_and_changed_files_and_errors_to_retry_are_worked_on(bundle_path, videos, tmp_path):
    out = tmp_path / "out"
    run(bundle_path, [str(videos)], out, LOCAL)
    shutil.copy(CLIPS / "shapes.mp4", videos / "v9.mp4")
    shutil.copy(CLIPS / "flash.mp4", videos / "v0.mp4")  # it was the other clip
    assert run(bundle_path, [str(videos)], out, LOCAL).skipped == 6
    shutil.copy(CLIPS / "shapes.mp4", videos / "empty.mp4")
    result = run(bundle_path, [str(videos)], out, BatchOptions(runner="local", retry_errors=True))
    assert (result.errors, result.skipped) == (1, 6)  # broken.mp4 is what it was and is tried again; what was done is not
    rows = _rows(out)
    assert Counter(Counter(row["path"] for row in rows).values()) == {1: 8}
    assert next(row for row in rows if row["path"].endswith("v0.mp4"))["sha256"] == sha256_of(CLIPS / "flash.mp4")
    assert [row["path"].rpartition("/")[2] for row in rows if row["error"]] == ["broken.mp4"]


def _many(folder: Path, count: int) -> Path:
    folder.mkdir()
    for number in range(count):
        shutil.copy(CLIPS / ("shapes.mp4", "flash.mp4")[number % 2], folder / f"v{number:03}.mp4")
    return folder


def _start(bundle: Path, videos: Path, out: Path, runner: str, workers: int = 1) -> subprocess.Popen:
    command = ["batch", str(bundle), str(videos), "--out", str(out), "--runner", runner, "--part-rows", "4"]
    command += ["--workers", str(workers), "--backend", "onnx"]
    return subprocess.Popen([sys.executable, "-m", "runtime", *command], cwd=ROOT, stderr=subprocess.PIPE, text=True)


def _complete(out: Path, videos: Path) -> None:
    rows = _rows(out)
    assert sorted(row["path"] for row in rows) == sorted(map(str, videos.iterdir()))
    assert all(row["error"] is None and np.isfinite(row["tokens"]).all() for row in rows)


def test_killed_in_the_middle_it_goes_on_where_it_was(bundle_path, tmp_path):
    videos, out = _many(tmp_path / "videos", 60), tmp_path / "out"
    for parts in (2, 6):
        process = _start(bundle_path, videos, out, "local")
        until(lambda parts=parts: len(list(out.glob("part-*.parquet"))) >= parts, 300)
        process.kill()
        process.wait()
        assert len(_rows(out)) < 60
    assert run(bundle_path, [str(videos)], out, LOCAL).skipped >= 24
    _complete(out, videos)
    assert not list(out.glob(".part*"))


@pytest.mark.slow
def test_ray_gives_the_rows_of_the_local_pool(bundle_path, videos, tmp_path):
    outs = {}
    for runner in ("local", "ray"):
        done = _start(bundle_path, videos, tmp_path / runner, runner, workers=2)
        error = done.communicate(timeout=300)[1]
        assert done.returncode == 1, error  # two files are none
        outs[runner] = sorted(_rows(tmp_path / runner), key=lambda row: row["path"])
    assert len(outs["ray"]) == 7
    for one, other in zip(outs["local"], outs["ray"], strict=True):
        assert {k: v for k, v in one.items() if k != "tokens"} == {k: v for k, v in other.items() if k != "tokens"}
        np.testing.assert_array_equal(one["tokens"], other["tokens"])


@pytest.mark.slow
def test_ray_survives_the_kill_of_a_worker_and_of_the_driver(bundle_path, tmp_path):
    videos, out = _many(tmp_path / "videos", 300), tmp_path / "out"
    process = _start(bundle_path, videos, out, "ray", workers=2)
    children: list[psutil.Process] = []
    try:
        until(lambda: list(out.glob("part-*.parquet")), 300)
        children = psutil.Process(process.pid).children(recursive=True)
        workers = [child for child in children if "MapWorker" in " ".join(child.cmdline())]
        assert len(workers) == 2
        os.kill(workers[0].pid, signal.SIGKILL)
        before = len(list(out.glob("part-*.parquet")))
        until(lambda: len(list(out.glob("part-*.parquet"))) >= before + 3, 300)
        children = psutil.Process(process.pid).children(recursive=True)
        process.kill()
        process.wait()
    finally:
        for child in children:  # what Ray's own reaper has not ended yet
            if child.is_running():
                child.kill()
    done = len(_rows(out))
    assert 0 < done < 300
    again = _start(bundle_path, videos, out, "ray", workers=2)
    error = again.communicate(timeout=300)[1]
    assert again.returncode == 0 and f"{done} of 300 files are done" in error
    _complete(out, videos)


@pytest.mark.parametrize(
    ("options", "of_cluster", "each", "said"),
    [
        ({"engine": EngineOptions("cuda")}, 0, 1, ""),
        ({"engine": EngineOptions("cpu")}, 9, None, ""),
        ({}, 2, 1, "device auto: 2 workers, 2 GPUs in the cluster: one each\n"),
        ({}, 1.5, None, "device auto: 2 workers, 1.5 GPUs in the cluster: on the CPU\n"),
        ({"backend": "openvino"}, 2, None, "device auto: 2 workers, 2 GPUs in the cluster: on the CPU\n"),
    ],
)
def test_which_workers_have_a_gpu_of_their_own(capsys, options, of_cluster, each, said):
    assert _gpus_each(BatchOptions(**options), of_cluster) == each
    assert capsys.readouterr().err.endswith(said)


def test_the_runner_is_ray_where_it_is_installed(monkeypatch):
    assert [_runner(BatchOptions(runner=name)) for name in ("ray", "local")] == ["ray", "local"]
    for name in ("ray", "ray.data"):
        monkeypatch.setitem(sys.modules, name, None)
    assert _runner(BatchOptions()) == "local"
    for name in ("ray", "ray.data"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    assert _runner(BatchOptions()) == "ray"


@pytest.mark.parametrize(
    ("name", "value"),
    [("workers", 0), ("part_rows", 0), ("runner", "slurm")],
)
def test_jobs_that_make_no_sense_are_refused(name, value):
    assert BatchOptions(workers=1, part_rows=1)
    with pytest.raises(UsageError, match=name):
        BatchOptions(**{name: value})


def test_two_jobs_do_not_write_to_one_place(bundle_path, bundle, videos, tmp_path):
    from runtime.cluster.parts import Parts

    with Parts(tmp_path / "out", bundle).locked(), pytest.raises(OutputError, match="another job writes"):
        run(bundle_path, [str(videos)], tmp_path / "out", LOCAL)


@pytest.mark.parametrize("errors", [0, 1])
def test_the_command_says_what_was_done_and_its_exit_code_whether_a_file_failed(monkeypatch, capsys, errors):
    asked = []

    def done(*arguments):
        asked.append(arguments)
        return BatchResult(files=7, skipped=4, errors=errors, parts=1, seconds=2.04, runner="local")

    monkeypatch.setattr("runtime.cluster.batch.run", done)
    command = ["batch", "bundle", "a.mp4", "b.mp4", "--out", "out", "--runner", "local", "--part-rows", "3", "--retry-errors"]
    assert main(command) == errors
    assert capsys.readouterr().out == f"out: 3 rows, {errors} with errors, 4 done before, 2.0 s (local)\n"
    assert main([*command, "--json"]) == errors
    facts = {"files": 7, "skipped": 4, "errors": errors, "parts": 1, "seconds": 2.04, "runner": "local"}
    assert json.loads(capsys.readouterr().out) == facts
    options = BatchOptions(part_rows=3, runner="local", retry_errors=True)
    assert asked == [(Path("bundle"), ["a.mp4", "b.mp4"], Path("out"), options)] * 2


def test_faults_are_one_line(bundle_path, tmp_path, capsys):
    (tmp_path / "file").touch()
    for arguments in (["x*.mp4"], [str(CLIPS), "--workers", "0"], [str(CLIPS), "--out", str(tmp_path / "file")]):
        more = [] if "--out" in arguments else ["--out", str(tmp_path / "o")]
        assert main(["batch", str(bundle_path), *arguments, *more, "--runner", "local"]) == 2
        error = capsys.readouterr().err
        assert error.startswith("error: ") and error.count("\n") == 1
