"""Ctrl-C, kill -9 and a full disk in the middle of an export or build: the old bundle stays as it was, nothing is left over.

A process of its own is hit as soon as a line of its progress appears, so each case is in another stretch of the work.
"""

from __future__ import annotations

import hashlib
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from refusal import error_line, naming
from trt_bundle import make_bundle, needs_rtx

from runtime.bundle import Bundle

ROOT = Path(__file__).parents[1]

# Each is the end of a step: the next one is at work when the signal comes. The two signals take turns; the campaign sends both at any time.
EXPORT_STEPS = [
    "reading the vision encoder",
    "tracing the vision encoder",
    "surgeon passes on the vision encoder",
    "comparing the vision encoder in fp32 with torch",
    "reading the LLM",
    "tracing the LLM",
    "comparing the LLM in fp32 with torch",
]


@pytest.fixture
def copy(bundle_path: Path, tmp_path: Path) -> Path:
    return shutil.copytree(bundle_path, tmp_path / "bundle")


def hit(number: signal.Signals, at: str, module: str, *args: str | Path) -> tuple[int, str]:
    """Run a CLI, send a signal when a line that begins with `at` appears on stderr; the exit code and the lines after it."""
    code = (
        f"import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler); "  # a shell may have it ignored
        f"from {module}.__main__ import main; sys.exit(main(sys.argv[1:]))"
    )
    command = [sys.executable, "-c", code, *map(str, args)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, cwd=ROOT)
    assert process.stderr is not None
    with process, process.stderr as lines:
        before = []
        for line in lines:
            before.append(line)
            if line.startswith(at):
                process.send_signal(number)
                break
        else:
            raise AssertionError(f"no line {at!r} in {before}")
        after = lines.read()
    return process.returncode, after


def digests(directory: Path) -> dict[str, str]:
    files = sorted(path for path in directory.rglob("*") if path.is_file())
    return {path.relative_to(directory).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def leftovers(directory: Path) -> list[str]:
    return [path.name for path in directory.iterdir() if path.name.startswith(".")]


def test_kill_9_in_the_middle_of_an_export_and_the_next_export_sweeps(
    copy: Path, cli: Callable[..., subprocess.CompletedProcess]
) -> None:
    before = digests(copy)
    code, _ = hit(signal.SIGKILL, "tracing the vision encoder", "export", "--out", copy, "--force", "--only", "vision")
    assert code == -signal.SIGKILL
    assert digests(copy) == before
    assert len(leftovers(copy.parent)) == 1
    Bundle.open(copy, verify=True)

    done = cli("export", "--out", copy, "--force", "--only", "vision")
    assert done.returncode == 0, done.stderr
    assert leftovers(copy.parent) == []
    assert not Bundle.open(copy, verify=True).has_llm


@pytest.mark.slow
def test_kill_9_at_every_other_step_of_an_export(copy: Path, cli: Callable[..., subprocess.CompletedProcess]) -> None:
    before = digests(copy)
    for step in EXPORT_STEPS[::2]:
        code, _ = hit(signal.SIGKILL, step, "export", "--out", copy, "--force")
        assert code == -signal.SIGKILL, step
        assert digests(copy) == before, step
        assert len(leftovers(copy.parent)) <= 1, step  # each sweeps what the one before left
        Bundle.open(copy, verify=True)
    assert cli("export", "--out", copy, "--force").returncode == 0
    assert leftovers(copy.parent) == []
    Bundle.open(copy, verify=True)


def test_ctrl_c_in_the_middle_of_an_export(copy: Path) -> None:
    _ctrl_c(copy, "tracing the vision encoder")


@pytest.mark.slow
def test_ctrl_c_at_the_steps_between_those(copy: Path) -> None:
    for step in EXPORT_STEPS[1::2]:
        _ctrl_c(copy, step)


def test_ctrl_c_in_a_first_export_leaves_nothing(tmp_path: Path) -> None:
    code, _ = hit(signal.SIGINT, "tracing the vision encoder", "export", "--out", tmp_path / "new" / "bundle")
    assert code == 130
    assert list((tmp_path / "new").iterdir()) == []


@pytest.mark.parametrize("size", [pytest.param(1_000_000, marks=pytest.mark.slow), 3_400_000])
def test_a_full_disk_in_the_middle_of_an_export(copy: Path, size: int) -> None:
    """Every write past `size` bytes of a file fails: in the vision encoder, or only when the decoder is written."""
    before = digests(copy)

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))

    command = [sys.executable, "-m", "export", "--out", str(copy), "--force"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, preexec_fn=limit, check=False)
    assert (done.returncode, done.stdout) == (2, ""), done.stderr
    assert "File too large" in error_line(done.stderr)
    assert str(copy.parent) in error_line(done.stderr)
    assert digests(copy) == before
    assert leftovers(copy.parent) == []


@needs_rtx
@pytest.mark.parametrize("at", ["building vision", "building llm/decoder"])
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_a_build_that_is_cut_off(
    tmp_path: Path, cli: Callable[..., subprocess.CompletedProcess], number: signal.Signals, at: str
) -> None:
    bundle = make_bundle(tmp_path / "bundle").path
    assert cli("runtime", "build", bundle).returncode == 0
    before = digests(bundle)
    code, err = hit(number, at, "runtime", "build", bundle, "--force")
    if number == signal.SIGKILL:
        assert code == -signal.SIGKILL
    else:
        assert code == 130
        assert naming("interrupted").match(error_line(err))
        assert leftovers(bundle / "engines") == []
    now = digests(bundle)
    assert {name: now[name] for name in before} == before
    assert all("/.tensorrt-rtx-any-fp32.tmp-" in name for name in now.keys() - before.keys())
    Bundle.open(bundle, verify=True)

    assert cli("runtime", "build", bundle, "--force").returncode == 0
    assert leftovers(bundle / "engines") == []


def _ctrl_c(bundle: Path, step: str) -> None:
    before = digests(bundle)
    code, err = hit(signal.SIGINT, step, "export", "--out", bundle, "--force")
    assert code == 130, step
    assert naming("interrupted").match(error_line(err))
    assert digests(bundle) == before, step
    assert leftovers(bundle.parent) == [], step
