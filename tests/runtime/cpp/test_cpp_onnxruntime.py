"""Where the C++ runtime finds ONNX Runtime's library, and the one line that it prints if none can be used."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from cpp_build import ROOT, gridpool, install, onnxruntime_library, refusal
from cpp_libraries import list_file

QUESTION = "which shape appears last ?"


@pytest.fixture(scope="module")
def clip() -> Path:
    """The clip of the README's command; its answer is "cross"."""
    return ROOT / "export" / "demo" / "clips" / "shapes.mp4"


def _commands(bundle: Path, clip: Path, folder: Path) -> list[list[str | Path]]:
    return [
        ["run", bundle, clip, QUESTION],
        ["tokens", bundle, clip, "-o", folder / "tokens.npz"],
        ["bench", bundle, "--rounds", "1"],
        ["watch", bundle, clip, QUESTION],
    ]


def _clean(tmp_path: Path, **more: str | Path) -> dict[str, str]:
    """An environment with no Python in it."""
    (tmp_path / "home").mkdir(exist_ok=True)
    (tmp_path / "bin").mkdir(exist_ok=True)
    kept = {name: os.environ[name] for name in ("XDG_CACHE_HOME", "ASAN_OPTIONS", "TSAN_OPTIONS") if name in os.environ}
    return kept | {"PATH": str(tmp_path / "bin"), "HOME": str(tmp_path / "home")} | {k: str(v) for k, v in more.items()}


def _environment(folder: Path, library: Path) -> Path:
    """A Python environment as far as the wheel of ONNX Runtime goes."""
    capi = folder / "lib" / "python3.12" / "site-packages" / "onnxruntime" / "capi"
    capi.mkdir(parents=True)
    os.link(library, capi / "libonnxruntime.so.1.99.0")
    return folder


@pytest.fixture(scope="module")
def alone(cpp: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The program where no .venv stands above it."""
    return install(cpp, tmp_path_factory.mktemp("program"))


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the library that is this user's, for environments to link to."""
    return Path(shutil.copy(onnxruntime_library(), tmp_path_factory.mktemp("wheel") / "libonnxruntime.so"))


@pytest.mark.parametrize("command", range(4))
def test_a_library_that_cannot_be_used_is_one_line_in_every_command(
    command: int, cpp: Path, bundle_path: Path, clip: Path, tmp_path: Path, unusable: dict[str, tuple[Path, str]]
):
    words = _commands(bundle_path, clip, tmp_path)[command]
    for file, fault in unusable.values() if command == 0 else [unusable["truncated"], unusable["another library"]]:
        line = refusal(gridpool(cpp, *words, library=file))
        assert f"{file} {fault}" in line and "--onnxruntime FILE" in line


@pytest.mark.parametrize("command", range(4))
def test_no_library_is_one_line_in_every_command(command: int, alone: Path, bundle_path: Path, clip: Path, tmp_path: Path):
    done = gridpool(alone, *_commands(bundle_path, clip, tmp_path)[command], library=None, env=_clean(tmp_path), cwd=tmp_path)
    if done.returncode == 0:
        pytest.skip("the system has an ONNX Runtime")
    assert "ONNX Runtime was not found (libonnxruntime.so.1: " in refusal(done) and "pip install onnxruntime" in done.stderr


def test_a_library_on_the_loaders_path_that_cannot_be_used_is_one_line(
    alone: Path, bundle_path: Path, clip: Path, tmp_path: Path, unusable: dict[str, tuple[Path, str]]
):
    for what in ("truncated", "for another machine", "too old"):
        folder = tmp_path / what.replace(" ", "-")
        folder.mkdir()
        (folder / "libonnxruntime.so.1").symlink_to(unusable[what][0])
        environment = _clean(tmp_path, LD_LIBRARY_PATH=folder)
        done = gridpool(alone, "run", bundle_path, clip, QUESTION, library=None, env=environment, cwd=tmp_path)
        assert unusable[what][1] in refusal(done), what


def test_one_of_two_graphs_that_does_not_load_ends_in_one_line(cpp: Path, large_bundle: Path, clip: Path, tmp_path: Path):
    """Both are loaded at the same time, in two threads."""
    for name in ("vision.loop.onnx", "llm/decoder.onnx"):
        folder = tmp_path / name.replace("/", "-")
        shutil.copytree(large_bundle, folder, copy_function=os.link)
        (folder / name).unlink()
        (folder / name).write_bytes(b"not a graph")
        (folder / "manifest.json").unlink()
        shutil.copy(large_bundle / "manifest.json", folder)
        list_file(folder, name)
        assert f"can't load {folder / name}" in refusal(gridpool(cpp, "run", folder, clip, QUESTION))


def test_graphs_loaded_at_the_same_time_without_a_library_end_in_one_line(
    alone: Path, large_bundle: Path, clip: Path, tmp_path: Path, unusable: dict[str, tuple[Path, str]]
):
    for file, fault in (unusable["truncated"], unusable["another library"]):
        assert fault in refusal(gridpool(alone, "run", large_bundle, clip, QUESTION, library=file))


def test_the_library_is_found_in_the_places_that_are_documented(
    cpp: Path, alone: Path, bundle_path: Path, clip: Path, tmp_path: Path, wheel: Path
):
    """Nothing is activated: the first steps of the README."""
    project = tmp_path / "project"
    shutil.copytree(bundle_path, project / "bundles" / "demo")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()

    def answers(bundle: Path, cwd: Path, binary: Path = alone, **more: str | Path) -> bool:
        environment = _clean(tmp_path, **more)
        done = gridpool(binary, "run", bundle, clip, QUESTION, library=None, env=environment, cwd=cwd)
        assert done.returncode in (0, 2), done.stderr
        return done.stdout == "cross\n"

    if answers(bundle_path, elsewhere):
        pytest.skip("the system has an ONNX Runtime")
    assert answers(bundle_path, elsewhere, VIRTUAL_ENV=_environment(tmp_path / "activated", wheel))
    python = _environment(tmp_path / "python", wheel)
    (python / "bin").mkdir()
    (python / "bin" / "python3").touch()
    assert answers(bundle_path, elsewhere, PATH=python / "bin")
    _environment(project / ".venv", wheel)
    assert answers(bundle_path, project)  # in the current directory
    assert answers(project / "bundles" / "demo", elsewhere)  # above the bundle
    assert answers(bundle_path, elsewhere, install(cpp, project / "build"))  # above the program
    linked = tmp_path / "linked"
    linked.mkdir()
    (linked / ".venv").symlink_to(project / ".venv")
    assert answers(bundle_path, linked)


def test_an_environment_that_others_can_write_to_is_not_taken_silently(
    alone: Path, bundle_path: Path, clip: Path, tmp_path: Path, wheel: Path
):
    environment = _environment(tmp_path / ".venv", wheel)
    packages = environment / "lib" / "python3.12" / "site-packages"

    def run(**more: str | Path) -> subprocess.CompletedProcess:
        return gridpool(alone, "run", bundle_path, clip, QUESTION, library=None, env=_clean(tmp_path, **more), cwd=tmp_path)

    assert run().stdout == "cross\n"
    for place in (environment, packages, packages / "onnxruntime" / "capi"):
        mode = place.stat().st_mode
        place.chmod(0o777)
        line = refusal(run())
        assert f"{packages}/onnxruntime/capi/libonnxruntime.so.1.99.0 can be changed by other users" in line
        assert run(VIRTUAL_ENV=environment).stdout == "cross\n"  # who activates it, trusts it
        place.chmod(mode)
    if os.geteuid() == 0:
        os.chown(environment, 12345, 12345)
        assert "can be changed by other users" in refusal(run())


def test_the_c_interface_reports_a_library_that_cannot_be_used(
    cpp: Path, bundle_path: Path, large_bundle: Path, unusable: dict[str, tuple[Path, str]]
):
    """In a process of its own, which must also end well."""
    script = """
import ctypes, sys
library = ctypes.CDLL(sys.argv[1])
class Options(ctypes.Structure):
    _fields_ = [("backend", ctypes.c_char_p), ("device", ctypes.c_char_p), ("threads", ctypes.c_int), ("onnxruntime", ctypes.c_char_p)]
library.gridpool_open.restype = ctypes.c_void_p
library.gridpool_last_error.restype = ctypes.c_char_p
options = Options(None, None, 0, sys.argv[3].encode())
assert not library.gridpool_open(sys.argv[2].encode(), ctypes.byref(options))
print(library.gridpool_last_error().decode())
"""
    for bundle in (bundle_path, large_bundle):
        for file, fault in (unusable["missing"], unusable["truncated"], unusable["too old"]):
            command = [sys.executable, "-c", script, cpp / "libgridpool.so", bundle, file]
            done = subprocess.run(command, capture_output=True, text=True, timeout=60)
            assert done.returncode == 0 and f"{file} {fault}" in done.stdout, done.stderr


def test_what_needs_no_engine_works_without_a_library(alone: Path, bundle_path: Path, clip: Path, tmp_path: Path):
    for words in (["--help"], ["run", "--help"]):
        done = gridpool(alone, *words, library=None, env=_clean(tmp_path), cwd=tmp_path)
        assert (done.returncode, done.stderr) == (0, "") and "Usage: gridpool" in done.stdout
    done = gridpool(alone, "run", bundle_path, tmp_path / "none.mp4", QUESTION, library=None, env=_clean(tmp_path), cwd=tmp_path)
    assert "none.mp4" in refusal(done)
