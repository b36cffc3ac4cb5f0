"""What a user can get wrong when running a bundle: one clear line, exit code 2, and nothing is lost."""

from __future__ import annotations

import json
import os
import random
import resource
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from refusal import error_line, names_under, naming, refused
from trt_bundle import make_bundle, needs_rtx
from video_files import pattern, write_audio, write_video

from runtime.__main__ import main
from runtime.bundle import Bundle
from runtime.engine import cuda
from runtime.engine.open import CUDA_ORDER
from runtime.engine.tensorrt import TensorRTRTXEngine
from runtime.prompt import Prompt

QUESTION = "what color is the cross ?"


@pytest.fixture
def copy(bundle_path: Path, tmp_path: Path) -> Path:
    return shutil.copytree(bundle_path, tmp_path / "bundle")


def change_manifest(bundle: Path, **values: object) -> None:
    file = bundle / "manifest.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


class TestVideo:
    @pytest.fixture(scope="class")
    def videos(self, tmp_path_factory: pytest.TempPathFactory) -> Path:
        folder = tmp_path_factory.mktemp("videos")
        write_audio(folder / "sound.mp4")
        content = bytearray(write_video(folder / "corrupt.mp4", pattern(90)).read_bytes())
        middle, length = len(content) // 2, len(content) // 20
        content[middle : middle + length] = random.Random(0).randbytes(length)
        (folder / "corrupt.mp4").write_bytes(content)
        (folder / "text.mp4").write_text("hello\n" * 100)
        (folder / "empty.mp4").write_bytes(b"")
        return folder

    @pytest.mark.parametrize(
        ("name", "message"),
        [
            ("absent.mp4", "no such file"),
            ("", "is a directory"),
            ("empty.mp4", "is empty (0 bytes)"),
            ("text.mp4", "is not a video, or not all of one"),
            ("sound.mp4", "has no video stream that can be decoded (it has audio)"),
            ("corrupt.mp4", "is damaged after "),
        ],
    )
    @pytest.mark.parametrize("command", ["run", "tokens", "plot", "bench"])
    def test_every_command_refuses_it(
        self,
        bundle_path: Path,
        videos: Path,
        tmp_path: Path,
        capsys: pytest.CaptureFixture,
        command: str,
        name: str,
        message: str,
    ) -> None:
        video, out = videos / name, tmp_path / "out"
        args = {
            "run": [video, QUESTION],
            "tokens": [video, "-o", out],
            "plot": [video, "-o", out],
            "bench": ["--video", video, "--rounds", "1", "--max-new-tokens", "1"],
        }[command]
        line = refused(capsys, main, command, bundle_path, *args)
        assert message in line
        assert str(video) in line
        assert names_under(tmp_path) == []

    @pytest.mark.parametrize("frames", [0, 100_000])
    def test_a_bundle_that_asks_for_no_frames_or_too_many(
        self, copy: Path, capsys: pytest.CaptureFixture, clip: Path, frames: int
    ) -> None:
        change_manifest(copy, frames=frames)
        assert "frames" in refused(capsys, main, "run", copy, clip, QUESTION)


class TestQuestion:
    @pytest.mark.parametrize(
        ("question", "message"),
        [
            ("", "empty"),
            (" \n", "empty"),
            (os.fsdecode(b"caf\xe9 ?"), "not valid Unicode"),
        ],
    )
    def test_it_is_refused(self, bundle_path: Path, clip: Path, capsys: pytest.CaptureFixture, question: str, message: str) -> None:
        assert message in refused(capsys, main, "run", bundle_path, clip, question)

    def test_one_that_the_context_can_t_hold_says_both_numbers_and_decodes_no_video(
        self, bundle_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture
    ) -> None:
        limit = json.loads((bundle_path / "manifest.json").read_text())["limits"]["max_context"]
        line = refused(capsys, main, "run", bundle_path, tmp_path / "absent.mp4", "what color is the cross ? " * limit)
        assert "ask a shorter question" in line
        needed = int(line.split()[3])
        assert needed > 6 * limit
        assert f"the prompt needs {needed} positions, the bundle holds {limit}" in line

    @pytest.mark.parametrize(
        ("option", "value", "named"),
        [
            ("--max-new-tokens", "0", "--max-new-tokens"),
            ("--temperature", "-1", "--temperature"),
            ("--temperature", "nan", "--temperature"),
            ("--top-p", "0", "--top-p"),
            ("--threads", "-1", "--threads"),
            ("--threads", "two", "--threads"),
            ("--backend", "onx", "'onx'"),
            ("--max-new-token", "3", '"--max-new-tokens"'),
        ],
    )
    def test_an_option_out_of_range_is_refused_before_anything_is_loaded(
        self, tmp_path: Path, capsys: pytest.CaptureFixture, option: str, value: str, named: str
    ) -> None:
        assert named in refused(capsys, main, "run", tmp_path / "no bundle", "no video", QUESTION, option, value)

    def test_a_context_too_small_for_the_clip_is_known_before_a_graph_is_loaded(
        self, copy: Path, clip: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def opened(*args: object) -> None:
            raise AssertionError("an engine was opened")

        monkeypatch.setattr("runtime.vision.encoder.open_vision", opened)
        monkeypatch.setattr("runtime.llm.decoder.open_engine", opened)
        tokens = json.loads((copy / "manifest.json").read_text())["tokens_per_clip"]
        change_manifest(copy, limits={"max_context": tokens})
        line = refused(capsys, main, "run", copy, clip, QUESTION)
        needed = tokens + len(Prompt(Bundle.open(copy)).ids(QUESTION))
        assert f"the prompt needs {needed} positions, the bundle holds {tokens}" in line


class TestEngines:
    def test_cuda_without_a_gpu_says_what_each_backend_lacks(
        self, bundle_path: Path, clip: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(cuda, "no_gpu", lambda: "no NVIDIA driver")
        monkeypatch.setattr("onnxruntime.get_available_providers", lambda: ["CPUExecutionProvider"])
        line = refused(capsys, main, "run", bundle_path, clip, QUESTION, "--device", "cuda")
        assert line.startswith("no backend can run vision on cuda: ")
        assert all(f"backend {name} can't run " in line for name in CUDA_ORDER) and "no CUDA provider" in line

    def test_tensorrt_on_a_cpu(self, bundle_path: Path, clip: Path, capsys: pytest.CaptureFixture) -> None:
        line = refused(capsys, main, "run", bundle_path, clip, QUESTION, "--backend", "tensorrt-rtx")
        assert "backend tensorrt-rtx can't run here: " in line

    @needs_rtx
    def test_an_engine_of_another_graph_version_or_gpu_is_named_with_the_command_that_builds_one(
        self, tmp_path: Path, clip: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        bundle = make_bundle(tmp_path / "bundle").path
        monkeypatch.setattr(TensorRTRTXEngine, "unavailable", classmethod(lambda cls, device: None))
        monkeypatch.setattr(cuda, "gpus", lambda: (cuda.Gpu("Test GPU", (7, 5), 2**34),))
        ask = ["tokens", bundle, clip, "-o", tmp_path / "tokens.npz", "--backend", "tensorrt-rtx", "--device", "cuda"]
        command = f"run `python -m runtime build {bundle} --backend tensorrt-rtx`"

        line = refused(capsys, main, *ask)
        assert naming(bundle, "vision", command).match(line)

        assert main(["build", str(bundle)]) == 0
        line = refused(capsys, main, *ask)
        assert "was built for any, here is Test GPU (sm75)" in line and command in line

        record = bundle / "engines" / "tensorrt-rtx-any-fp32" / "build.json"
        built = json.loads(record.read_text())
        record.write_text(json.dumps(built | {"version": "0.1"}))
        line = refused(capsys, main, *ask)
        assert "was built by version 0.1, here is " in line and command in line

        record.write_text(json.dumps(built))
        make_bundle(bundle, seed=1)
        line = refused(capsys, main, *ask)
        assert "was built from another ONNX graph" in line and command in line

    @needs_rtx
    def test_an_unknown_target_lists_the_known_ones(self, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
        bundle = make_bundle(tmp_path / "bundle").path
        assert 'has no target "sm9"; known: any, current, ' in refused(capsys, main, "build", bundle, "--target", "sm9")


class TestOutput:
    @pytest.mark.parametrize("command", ["tokens", "plot"])
    def test_where_nothing_can_be_written(
        self, bundle_path: Path, clip: Path, tmp_path: Path, capsys: pytest.CaptureFixture, command: str
    ) -> None:
        (tmp_path / "file").write_text("mine")
        for output, message in {
            tmp_path: f"{tmp_path} is a directory",
            tmp_path / "file" / "out": f"{tmp_path / 'file'} is not a directory",
            Path("/dev/null"): "/dev/null is not a regular file",
        }.items():
            assert message in refused(capsys, main, command, bundle_path, clip, "-o", output)
        assert names_under(tmp_path) == ["file"]

    @pytest.mark.parametrize("command", ["tokens", "plot"])
    def test_a_full_disk_leaves_the_old_output(
        self, bundle_path: Path, clip: Path, tmp_path: Path, capsys: pytest.CaptureFixture, command: str
    ) -> None:
        out = tmp_path / "out"
        assert main([command, str(bundle_path), str(clip), "-o", str(out)]) == 0
        assert capsys.readouterr().out.startswith(str(out))
        before = out.read_bytes()
        with no_file_beyond(len(before) // 2):
            line = refused(capsys, main, command, bundle_path, clip, "-o", out)
        assert str(out) in line or ".out.tmp-" in line
        assert names_under(tmp_path) == ["out"]
        assert out.read_bytes() == before

    @needs_rtx
    def test_a_full_disk_leaves_the_old_engines(self, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
        bundle = make_bundle(tmp_path / "bundle").path
        assert main(["build", str(bundle)]) == 0
        assert [Path(line.split()[0]).name for line in capsys.readouterr().out.splitlines()] == ["vision.engine", "decoder.engine"]
        before = {path: path.read_bytes() for path in bundle.rglob("*") if path.is_file()}
        with no_file_beyond(1000):
            line = refused(capsys, main, "build", bundle, "--force")
        assert "File too large" in line
        assert {path: path.read_bytes() for path in bundle.rglob("*") if path.is_file()} == before


@contextmanager
def no_file_beyond(size: int) -> Iterator[None]:
    """Every write past `size` bytes of a file fails, as on a disk that is full."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("command", [[], ["rum"], ["run"], ["inspect"], ["doctor", "--bundle"]])
def test_a_command_line_that_is_incomplete_or_wrong(capsys: pytest.CaptureFixture, command: list[str]) -> None:
    assert "--help` shows what there is" in refused(capsys, main, *command)


def test_a_process_of_its_own_says_the_same(
    cli: Callable[..., subprocess.CompletedProcess], bundle_path: Path, tmp_path: Path
) -> None:
    done = cli("runtime", "run", bundle_path, tmp_path / "absent.mp4", QUESTION)
    assert (done.returncode, done.stdout) == (2, "")
    assert error_line(done.stderr) == f"no video at {tmp_path / 'absent.mp4'}: no such file"
    assert done.stderr.count("\n") == 1
