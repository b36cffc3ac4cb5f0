"""The C++ runtime as the tests use it: where it is built, its programs run, and what the Python runtime does with the same input."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]
SOURCES = ROOT / "runtime" / "cpp"
BUILD = ROOT / "build" / "cpp"
# Several times less to compile. BUILD does without, so that each file shows that it compiles by itself.
ONE_FILE_A_TARGET = ("-DCMAKE_UNITY_BUILD=ON", "-DCMAKE_UNITY_BUILD_BATCH_SIZE=0")

KINDS = ("BundleError", "VideoError", "EngineError", "PromptError", "OutputError", "UserError")  # that both runtimes have

_MODULES = ("libavformat", "libavcodec", "libavutil", "libswscale", "oniguruma", "libutf8proc")
_HEADERS = "#include <nlohmann/json.hpp>\n#include <CLI/CLI.hpp>\n#include <gtest/gtest.h>\n"


def missing() -> str | None:
    """What this machine lacks to build the C++ runtime; None where it lacks nothing."""
    for tool in ("cmake", "ninja", "c++", "pkg-config"):
        if not shutil.which(tool):
            return f"no {tool}"
    for module in _MODULES:
        if subprocess.run(["pkg-config", "--exists", module]).returncode:
            return f"no {module} for pkg-config"
    checked = subprocess.run(["c++", "-xc++", "-fsyntax-only", "-"], input=_HEADERS, text=True, capture_output=True)
    return "no nlohmann-json3-dev, libcli11-dev or libgtest-dev" if checked.returncode else None


def build(directory: Path, *options: str, targets: Iterable[str] = ()) -> Path:
    """Configure and build into `directory`, one test process at a time; skip where something is missing, fail where it does not compile."""
    lacking = missing()
    if lacking:
        pytest.skip(f"the C++ runtime can't be built here: {lacking}; run runtime/cpp/install-packages.sh")
    configure = ["cmake", "-S", SOURCES, "-B", directory, "-G", "Ninja", *_fetched_headers(), *options]
    wanted = [word for target in targets for word in ("--target", target)]
    compile_it = ["cmake", "--build", directory, "-j", str(os.cpu_count()), *wanted]
    directory.mkdir(parents=True, exist_ok=True)
    with open(directory / ".lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        configured = subprocess.run(configure, capture_output=True, text=True)
        if "could not be fetched" in configured.stderr:
            pytest.skip("ONNX Runtime's headers are not installed and apt could not bring them")
        assert configured.returncode == 0, configured.stderr
        built = subprocess.run(compile_it, capture_output=True, text=True)
        assert built.returncode == 0, built.stdout[-8000:]
    return directory


def _fetched_headers() -> list[str]:
    """Options that name the headers which the build in BUILD fetched, so that no other build fetches them again."""
    folders = {"ONNXRUNTIME": "libonnxruntime-dev", "VALIJSON": "libvalijson-dev"}
    found = {name: BUILD / "headers" / folder / "usr" / "include" for name, folder in folders.items()}
    return [f"-DGRIDPOOL_{name}_INCLUDE={path}" for name, path in found.items() if path.is_dir()]


def onnxruntime_library() -> Path:
    import onnxruntime

    return next((Path(onnxruntime.__file__).parent / "capi").glob("libonnxruntime.so.1*"))


def gridpool(directory: Path, *words: str | Path, library: Path | str | None = "", **options: Any) -> subprocess.CompletedProcess:
    """The program. library: which ONNX Runtime it is told to take, by default that of this Python; None: it looks for one."""
    chosen = [] if library is None else ["--onnxruntime", library or onnxruntime_library()]
    command = [directory / "gridpool", *words, *chosen]
    return subprocess.run(command, capture_output=True, timeout=120, check=False, **{"text": True} | options)


def install(directory: Path, prefix: Path) -> Path:
    """Install a build below `prefix`, as its README does; the directory of the program, which stands without the build."""
    done = subprocess.run(["cmake", "--install", directory, "--prefix", prefix], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return prefix / "bin"


def python(*words: str | Path) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "runtime", *words]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=120, check=False)


def refusal(done: subprocess.CompletedProcess) -> str:
    """The one line on stderr of a command that a user's error ended."""
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1), done.stderr
    assert done.stderr.startswith("error: ")
    return done.stderr


def error_of(work: Callable[[], object]) -> dict[str, str]:
    """A UserError that `work` raises, as `probe` prints one: its message and its public class; {} if it raises none."""
    from runtime.core.errors import UserError

    try:
        work()
    except UserError as error:
        names = [one.__name__ for one in type(error).__mro__]
        return {"error": str(error), "kind": next(name for name in names if name in KINDS)}
    return {}


def assert_same_error(answer: dict[str, Any], expected: dict[str, str], *named: str) -> None:
    """That both runtimes raised the same kind of error, on one line, and that both messages contain what is `named`."""
    assert answer.get("kind") == expected.get("kind"), (answer, expected)
    for error in (answer, expected):
        message = error.get("error", "")
        assert "\n" not in message
        assert all(name in message for name in named) or not message, (message, named)


def probe(directory: Path, part: str, lines: Iterable[Any], *words: str | Path) -> list[Any]:
    """What `probe` answers to each line; a crash or a hang (20 seconds a line) fails with the line that it was at."""
    asked = [json.dumps(line) for line in lines]
    command = [directory / "tests" / "gridpool-probe", part, *words]
    done = subprocess.run(command, input="\n".join(asked), capture_output=True, text=True, timeout=900, check=False)
    answers = done.stdout.splitlines()
    assert done.returncode == 0 and len(answers) == len(asked), (
        f"exit {done.returncode} at {asked[len(answers)][:300] if len(answers) < len(asked) else 'the end'}: {done.stderr[-3000:]}"
    )
    return [json.loads(answer) for answer in answers]
