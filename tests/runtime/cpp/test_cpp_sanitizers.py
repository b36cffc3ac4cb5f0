"""The C++ runtime under sanitizers, and fuzzed. Each set of sanitizers is a build of its own, so all of it is slow.

Fuzzers find memory errors through AddressSanitizer, so they share its build. A sanitizer multiplies what a compiler has to do: each target is
compiled as one file, at -O1.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from cpp_build import BUILD, ONE_FILE_A_TARGET, build, gridpool, probe
from cpp_libraries import list_file
from cpp_videos import check_mutated, write_files

pytestmark = pytest.mark.slow

MEMORY = "address,undefined"
QUESTION = "which shape appears last ?"
_QUIET = {"LSAN_OPTIONS": "", "ASAN_OPTIONS": "detect_leaks=1:allocator_may_return_null=1", "TSAN_OPTIONS": "halt_on_error=1"}


def _sanitized(sanitizers: str) -> Path:
    """A build under sanitizers; a finding ends the process with another exit code. clang also builds the fuzzers, under AddressSanitizer."""
    options = [
        f"-DGRIDPOOL_SANITIZE={sanitizers}",
        "-DCMAKE_BUILD_TYPE=RelWithDebInfo",
        "-DCMAKE_CXX_FLAGS_RELWITHDEBINFO=-O1 -DNDEBUG",
    ]
    if sanitizers == MEMORY and shutil.which("clang++"):
        options += ["-DCMAKE_C_COMPILER=clang", "-DCMAKE_CXX_COMPILER=clang++", "-DGRIDPOOL_FUZZ=ON"]
    return build(BUILD.with_name(f"cpp-{sanitizers.replace(',', '-')}"), *options, *ONE_FILE_A_TARGET)


@pytest.fixture(scope="module", params=[MEMORY, "thread"])
def sanitized(request: pytest.FixtureRequest) -> Path:
    return _sanitized(request.param)


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    # ONNX Runtime's own thread pool is not built for ThreadSanitizer, which then sees races in it that are none.
    quiet = tmp_path / "suppressions"
    quiet.write_text(
        "race:libonnxruntime\nmutex:libonnxruntime\ncalled_from_lib:libonnxruntime\nrace:libav\ncalled_from_lib:libavcodec\n"
    )
    threads = _QUIET["TSAN_OPTIONS"] + f":suppressions={quiet}:ignore_noninstrumented_modules=1"
    return {**os.environ, **_QUIET, "TSAN_OPTIONS": threads}


def test_the_commands_are_clean(sanitized: Path, bundle_path: Path, clip: Path, environment: dict[str, str], tmp_path: Path):
    for words in (
        ("run", bundle_path, clip, QUESTION),
        ("run", bundle_path, clip, QUESTION, "--temperature", "2", "--seed", "1"),
        ("tokens", bundle_path, clip, "-o", tmp_path / "t.npz"),
        ("bench", bundle_path, "--rounds", "1", "--max-new-tokens", "2"),
        ("watch", bundle_path, clip, QUESTION, "--realtime", "--every", "500ms"),
        ("watch", bundle_path, clip, QUESTION, "--realtime", "--every", "100ms", "--count", "1"),
    ):
        done = gridpool(sanitized, *words, env=environment)
        assert done.returncode == 0, (words[0], done.stderr[-4000:])


def test_what_does_not_load_is_one_line_without_a_finding(
    sanitized: Path,
    large_bundle: Path,
    clip: Path,
    environment: dict[str, str],
    unusable: dict[str, tuple[Path, str]],
    tmp_path: Path,
):
    """Both graphs are loaded at the same time, and one or both fail."""
    broken = tmp_path / "broken"
    shutil.copytree(large_bundle, broken)
    (broken / "vision.loop.onnx").write_bytes(b"not a graph")
    list_file(broken, "vision.loop.onnx")
    commands = [(large_bundle, library, fault) for library, fault in unusable.values()] + [(broken, "", "can't load")]
    for bundle, library, fault in commands:
        done = gridpool(sanitized, "run", bundle, clip, QUESTION, library=library, env=environment)
        assert (done.returncode, done.stderr.count("\n")) == (2, 1) and fault in done.stderr, done.stderr[-4000:]


def test_the_units_are_clean(sanitized: Path, environment: dict[str, str]):
    done = subprocess.run([sanitized / "tests" / "gridpool-units"], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]


def test_mutated_files_are_met_without_a_finding(sanitized: Path, tmp_path: Path, monkeypatch, environment: dict[str, str]):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    names = ("constant.mp4", "keyframes.mp4", "variable.mp4", "edited.mp4", "hevc.mp4", "turned90.mp4")
    videos = write_files(tmp_path, names)
    folder = tmp_path / "mutated"
    folder.mkdir()
    check_mutated(sanitized, folder, videos, 500)


def test_resizing_odd_shapes_reads_nothing_outside(sanitized: Path, monkeypatch, environment: dict[str, str]):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    rng = np.random.default_rng(0)
    lines = []
    for height, width, rows, columns in rng.integers(1, 40, (60, 4)).tolist():
        pixels = rng.integers(0, 256, (height, width, 3), np.uint8).tobytes().hex()
        lines += [[height, width, rows, columns, how, pixels] for how in range(6)]
    assert len(probe(sanitized, "resize", lines)) == len(lines)


@pytest.mark.parametrize("target", ["fuzz-manifest", "fuzz-media", "fuzz-npy", "fuzz-question", "fuzz-tokenizer"])
def test_fuzzing_finds_nothing(target: str, bundle_path: Path, tmp_path: Path):
    if not shutil.which("clang++"):
        pytest.skip("no clang++ for libFuzzer; run runtime/cpp/install-packages.sh")
    directory = _sanitized(MEMORY)
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    if target == "fuzz-manifest":
        shutil.copyfile(bundle_path / "manifest.json", corpus / "good")
    elif target == "fuzz-media":
        write_files(corpus, ("constant.mp4", "variable.mkv", "transport.ts", "mpeg4.avi"))
    elif target == "fuzz-npy":
        np.save(corpus / "good.npy", np.zeros((3, 4), np.float32))
    elif target == "fuzz-tokenizer":
        shutil.copyfile(bundle_path / "llm" / "tokenizer.json", corpus / "words")
        (corpus / "bytes").write_text(_byte_level())
    (tmp_path / "tokenizer.json").write_text(_byte_level())  # what fuzz-question reads
    command = [directory / "fuzz" / target, "-max_total_time=10", "-timeout=10", "-rss_limit_mb=2048", "-max_len=20000", corpus]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=300)
    assert done.returncode == 0, done.stderr[-4000:]


def _byte_level() -> str:
    import json

    from benchmarks.random_tokenizer import tokenizer_json

    return json.dumps(tokenizer_json(300))
