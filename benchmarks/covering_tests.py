"""Which test files could notice a change of a source file, nearest first.

In: the root of a checkout. Out: `CoveringTests.of(source)`, test files in the order in which to run them: the one that mirrors the source,
those that import it, those beside it, those that reach it through other modules. What a test reaches is read from the text: imports
(also inside functions and in code that a test hands to an interpreter), modules and scripts that are named in strings, the fixtures of
conftest.py that it names, and files of tests/ and benchmarks/ that it imports. That is more than what runs: `record` narrows it to the
files whose run executed the changed lines, with coverage.py, which also follows the processes that tests start.
"""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

PACKAGES = ("export", "runtime", "plugins")
_IMPORT = re.compile(r"^\s*(?:from\s+([\w.]+)\s+import\s+(\([^)]*\)|[^\n]*)|import\s+([\w., ]+))", re.MULTILINE)
_SCRIPT = re.compile(r"\b(\w+)\.py\b")
_NAMED = re.compile(rf"""["']((?:{"|".join(PACKAGES)})(?:\.\w+)*)[:"']""")
CONFIG = """[run]
branch = false
parallel = true
source = {packages}
patch = subprocess, _exit
data_file = {data}
"""


@dataclass
class CoveringTests:
    """root: a checkout; recorded: {test file: {source: lines that it executes}} for those that `record` has seen."""

    root: Path
    recorded: dict[str, dict[str, set[int]]] = field(default_factory=dict)

    def of(self, source: str, lines: range | None = None) -> tuple[list[str], list[str]]:
        """(the nearest, the others): test files that mirror the source, else import it, else stand in its folder; all others that reach it."""
        ranked = []
        for test, distances in self._distances.items():
            if source not in distances:
                continue
            if lines and test in self.recorded and self.recorded[test].get(source, set()).isdisjoint(lines):
                continue
            beside = Path(test).parent == Path("tests") / Path(source).parent
            ranked.append((not _mirrors(test, source), distances[source], not beside, len(distances), test))
        mirrors = [rank for rank in ranked if not rank[0]]
        nearest = mirrors or [rank for rank in ranked if rank[1] == 1] or [rank for rank in ranked if not rank[2]]
        near = [rank[-1] for rank in sorted(nearest)]
        return near, [rank[-1] for rank in sorted(ranked, key=lambda rank: (rank[1] > 1, rank[2], rank)) if rank[-1] not in near]

    @cached_property
    def tests(self) -> list[str]:
        """Not those that need a GPU, which are in separate files."""
        found = (str(path.relative_to(self.root)) for path in (self.root / "tests").rglob("test_*.py"))
        return sorted(test for test in found if not test.endswith("_on_gpu.py"))

    @cached_property
    def _modules(self) -> dict[str, str]:
        """{dotted name: file} of the packages, and of the helpers and benchmarks that tests import or run by their bare name."""
        found = {}
        for package in PACKAGES:
            for path in (self.root / package).rglob("*.py"):
                parts = path.relative_to(self.root).with_suffix("").parts
                found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = str(path.relative_to(self.root))
        for path in [*(self.root / "benchmarks").glob("*.py"), *(self.root / "tests").rglob("*.py")]:
            if not path.name.startswith("test_"):
                found.setdefault(path.stem, str(path.relative_to(self.root)))
        return found

    @cached_property
    def _distances(self) -> dict[str, dict[str, int]]:
        """{test file: {file that it reaches: imports between them}}."""
        edges = {file: self._named_in((self.root / file).read_text(encoding="utf-8"), file) for file in self._modules.values()}
        result = {}
        for test in self.tests:
            text = (self.root / test).read_text(encoding="utf-8")
            found = {file: 1 for file in self._named_in(text, test)}
            for fixture in self._fixtures(test, text):
                found |= {file: 2 for file in self._named_in(fixture, test) if file not in found}
            queue = deque(sorted(found, key=lambda file: found[file]))
            while queue:
                file = queue.popleft()
                for reached in edges.get(file, ()):
                    if reached not in found:
                        found[reached] = found[file] + file.startswith(PACKAGES)
                        queue.append(reached)
            result[test] = found
        return result

    def _named_in(self, text: str, file: str) -> set[str]:
        names: set[str] = set()
        for module, members, modules in _IMPORT.findall(text):
            for one in modules.split(",") if modules else ():
                names.add(one.split(" as ")[0].strip())
            if module:
                names.add(module)
                names |= {f"{module}.{member.split(' as ')[0].strip()}" for member in members.strip("()").split(",")}
        for name in _NAMED.findall(text):
            names.add(name)
            if file.startswith("tests/"):  # python -m NAME; in a source it is an extra of the package
                names.add(f"{name}.__main__")
        if file.startswith("tests/"):
            names |= set(_SCRIPT.findall(text))
        return {self._modules[name] for name in names if name in self._modules}

    def _fixtures(self, test: str, text: str) -> Iterator[str]:
        """The text of every fixture that the test names or that is always used, and of those that these name."""
        known: dict[str, str] = {}
        folder = (self.root / test).parent
        while folder != self.root:
            path = folder / "conftest.py"
            source = path.read_text(encoding="utf-8") if path.is_file() else ""
            for node in ast.parse(source).body:
                if isinstance(node, ast.FunctionDef):
                    known.setdefault(node.name, ast.unparse(node))
            folder = folder.parent
        waiting, seen = [text, *(body for body in known.values() if "autouse" in body)], set()
        while waiting:
            for name in sorted(_fixture_names(waiting.pop()) & known.keys() - seen):
                seen.add(name)
                waiting.append(known[name])
                yield known[name]


def record(root: Path, out: Path, tests: list[str], pytest_options: list[str]) -> None:
    """Run each test file under coverage.py and write `out`/<name>.json: {source: lines that ran}; files recorded before are left out."""
    out.mkdir(parents=True, exist_ok=True)
    for number, test in enumerate(tests, 1):
        goal = out / f"{test.replace('/', '-')}.json"
        if goal.exists():
            continue
        start = time.monotonic()
        data, config = out / "data", out / "coverage.ini"
        config.write_text(CONFIG.format(packages=",".join(str(root / package) for package in PACKAGES), data=data))
        for old in out.glob("data*"):
            old.unlink()
        coverage = [sys.executable, "-m", "coverage"]
        run = [*coverage, "run", f"--rcfile={config}", "-m", "pytest", *pytest_options, test]
        done = subprocess.run(run, cwd=root, capture_output=True, text=True, check=False)
        subprocess.run([*coverage, "combine", "-q", f"--rcfile={config}"], cwd=root, check=False)
        print(
            f"{number} of {len(tests)}: {test} {time.monotonic() - start:.0f} s, exit {done.returncode}",
            file=sys.stderr,
            flush=True,
        )
        if done.returncode not in (0, 5):  # 5: no test was selected
            continue  # a failed run has not shown all that it reaches
        goal.write_text(json.dumps(_lines(data, root)))


def read_records(out: Path) -> dict[str, dict[str, set[int]]]:
    return {
        path.stem.replace("-", "/"): {source: set(lines) for source, lines in json.loads(path.read_text()).items()}
        for path in sorted(out.glob("tests-*.json"))
    }


def _lines(data: Path, root: Path) -> dict[str, list[int]]:
    from coverage import CoverageData

    found = CoverageData(str(data))
    found.read()
    return {
        str(Path(file).relative_to(root)): sorted(lines) for file in sorted(found.measured_files()) if (lines := found.lines(file))
    }


def _fixture_names(text: str) -> set[str]:
    """Arguments of the text's functions, and its strings (`usefixtures`, `getfixturevalue`)."""
    nodes = list(ast.walk(ast.parse(text)))
    strings = {node.value for node in nodes if isinstance(node, ast.Constant) and isinstance(node.value, str)}
    return strings | {node.arg for node in nodes if isinstance(node, ast.arg)}


def _mirrors(test: str, source: str) -> bool:
    """Whether tests/a/test_b….py is that of a/b.py, whatever stands before or behind the name."""
    name = Path(source).stem if Path(source).stem not in ("__init__", "__main__") else Path(source).parent.name
    folder = Path(source).parent
    return name in Path(test).stem and Path(test).parent in (Path("tests") / folder, Path("tests") / folder.parent)
