"""The extras of pyproject.toml: no combination that the docs or a message name brings both wheels of ONNX Runtime, or lacks an engine."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from runtime.engine import trt_api as trt

if sys.version_info >= (3, 11):
    import tomllib
else:
    from pip._vendor import tomli as tomllib

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS: dict[str, list[str]] = PROJECT["optional-dependencies"]
ONNX_RUNTIME = {"runtime", "gpu"}  # one excludes the other
ENGINES = {*ONNX_RUNTIME, "openvino"}

Combination = frozenset[str]


def _typed() -> Iterator[tuple[str, Combination]]:
    """What a reader is told to type in a clone, with where that stands."""
    pages = [page for folder in ("docs", "runtime", "plugins", "benchmarks") for page in (ROOT / folder).rglob("*.md")]
    pages += [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.yaml"), ROOT / "Makefile", ROOT / ".ci" / "run"]
    for page in pages:
        for names in re.findall(r"[\"`' ]\.\[([a-z]+(?:,[a-z]+)*)\]", page.read_text()):
            yield str(page.relative_to(ROOT)), frozenset(names.split(","))


def _said() -> Iterator[tuple[str, Combination]]:
    """What messages and docstrings tell the user to install."""
    for folder in ("runtime", "export", "plugins", "benchmarks"):
        for file in (ROOT / folder).rglob("*.py"):
            text, where = file.read_text(), str(file.relative_to(ROOT))
            for names in re.findall(r"st-gridpool\[([a-z]+(?:,[a-z]+)*)\]", text):
                yield where, frozenset(names.split(","))
            for node in ast.walk(ast.parse(text)):
                if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                    at = {"missing_package": 2, "install_command": 0}.get(node.func.id)
                    if at is not None and isinstance(node.args[at], ast.Constant):
                        yield where, frozenset(str(node.args[at].value).split(","))
    for backend, (_, extra) in trt._PACKAGES.items():
        yield f"backend {backend}", frozenset([extra])


def _requirements(extras: Combination) -> list[Requirement]:
    """The packages of a combination, extras of this project replaced by what is in them."""
    found: dict[str, Requirement] = {}
    waiting, seen = list(extras), set()
    lines = list(PROJECT["dependencies"])
    while waiting:
        extra = waiting.pop()
        if extra not in seen:
            seen.add(extra)
            for line in EXTRAS[extra]:
                requirement = Requirement(line)
                if requirement.name == PROJECT["name"]:
                    waiting += requirement.extras
                else:
                    lines.append(line)
    for line in lines:
        found.setdefault(line, Requirement(line))
    return list(found.values())


def _wheels(names: Iterator[str] | list[str]) -> list[str]:
    """Those of ONNX Runtime, whatever it was built for."""
    return sorted({name for name in map(canonicalize_name, names) if name == "onnxruntime" or name.startswith("onnxruntime-")})


def _brought(extras: Combination) -> list[str]:
    return _wheels([requirement.name for requirement in _requirements(extras)])


def test_there_are_combinations_to_check():
    typed, said = {extras for _, extras in _typed()}, {extras for _, extras in _said()}
    assert {frozenset(["runtime"]), frozenset(["gpu", "serve"])} <= typed
    assert {frozenset(["runtime"]), frozenset(["gpu"]), frozenset(["serve"]), frozenset(["export", "runtime"])} <= said


def test_every_extra_that_is_named_exists():
    for where, extras in [*_typed(), *_said()]:
        assert extras <= EXTRAS.keys(), f"{where}: {extras - EXTRAS.keys()}"


def test_no_combination_that_is_named_brings_two_wheels():
    for where, extras in [*_typed(), *_said()]:
        assert len(extras & ONNX_RUNTIME) <= 1 and len(_brought(extras)) <= 1, f"{where}: {sorted(extras)}"


def test_what_is_typed_runs():
    for where, extras in _typed():
        if extras & {"serve", "batch", "ray"}:
            assert extras & ENGINES, f"{where}: .[{','.join(sorted(extras))}] brings no engine"
        if "export" in extras:
            assert extras & ONNX_RUNTIME, f"{where}: an export is checked in ONNX Runtime"


def test_the_wheel_is_chosen_by_one_extra_and_by_no_other():
    assert [_brought(frozenset([extra])) for extra in ("runtime", "gpu", "openvino")] == [["onnxruntime"], ["onnxruntime-gpu"], []]
    others = frozenset(EXTRAS) - ENGINES
    assert _brought(others) == []
    for engine in ENGINES:
        assert _brought(others | {engine}) == _brought(frozenset([engine]))


@pytest.fixture(scope="module")
def index() -> None:
    """Skip where packages can't be asked for."""
    reason = _resolved([Requirement("iniconfig")], timeout=60)
    if isinstance(reason, str):
        pytest.skip(f"the package index can't be reached: {reason}")


def _largest() -> list[Combination]:
    """Combinations that are part of no other: what resolves with more extras resolves with fewer."""
    named = {extras for _, extras in [*_typed(), *_said()]}
    return sorted((one for one in named if not any(one < other for other in named)), key=sorted)


@pytest.mark.slow
@pytest.mark.parametrize("extras", _largest(), ids=lambda extras: ",".join(sorted(extras)))
def test_the_index_gives_what_is_named(extras: Combination, index: None):
    # The tensorrt of the index is a source package that fetches NVIDIA's libraries while it is asked for its metadata; it needs nothing of ours.
    resolved = _resolved([requirement for requirement in _requirements(extras) if requirement.name != "tensorrt"], timeout=400)
    assert not isinstance(resolved, str), resolved
    assert _wheels(resolved) == _brought(extras)


def _resolved(requirements: list[Requirement], timeout: int) -> list[str] | str:
    """The names of all packages that pip would install for this Python, into an empty environment; pip's last line where it can't."""
    constraints = ["--constraint", str(ROOT / "constraints.txt")]
    options = ["--dry-run", "--ignore-installed", "--quiet", "--disable-pip-version-check", "--report", "-"]
    command = [sys.executable, "-m", "pip", "install", *options, *constraints, *map(str, requirements)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=timeout, check=False)
    except subprocess.TimeoutExpired:
        return f"no answer in {timeout} s"
    if done.returncode:
        return (done.stderr.strip() or "no reason").splitlines()[-1]
    return [entry["metadata"]["name"] for entry in json.loads(done.stdout)["install"]]
