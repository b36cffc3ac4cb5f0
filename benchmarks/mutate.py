"""Mutation testing: one small change of the sources at a time, and whether a test notices.

    python benchmarks/mutate.py --seed 1 --sample 150                       any 150 changes of export/ (but its demo), runtime/ and plugins/
    python benchmarks/mutate.py --seed 1 --sample 20 'export/quantize/*'    of the files that match
    python benchmarks/mutate.py … --record        first run every test file once under coverage.py; makes survivors much cheaper
    python benchmarks/mutate.py … --budget 180    seconds for the tests of one change; some survivors reach a thousand tests (tell hangs
                                                  with a --limit below it)
    python benchmarks/mutate.py … --again         judge those again that were not noticed, after tests were added
    python benchmarks/mutate.py … --write         write the table into results/

In: a seed and file patterns, which fix the changes and their order. Out: `--out`/results.jsonl, a line a change, and a table on stdout
(`--json` for programs). A killed run resumes where it was: changes that have a line are not tried again. Changes are made in a copy of
the working tree under `--out`, never in the tree itself. The tests that run are those of `make test` (neither slow nor gpu) that could
notice (covering_tests.py), the nearest first, up to the first failure; a test that fails without the change too is left out.

noticed: a test failed, or the tests crashed · hung: for `--limit` seconds no test ended · survived: all tests that could notice
passed · near: the nearest tests passed, and `--near` or `--budget` left others out · equivalent: listed in mutants_equivalent.tsv with a reason.
C++ sources are not changed: each change would rebuild the library.
"""

from __future__ import annotations

import argparse
import contextlib
import fnmatch
import importlib
import json
import math
import os
import random
import select
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from covering_tests import PACKAGES, CoveringTests, read_records, record
from harness import ROOT, log, table, write_section
from mutations import Mutation, is_a_change, mutations

EQUIVALENT = ROOT / "benchmarks" / "mutants_equivalent.tsv"
PYTEST = ["-q", "-p", "no:cacheprovider", "-m", "not slow and not gpu", "--hypothesis-seed=0"]
WARM = (
    "pytest",
    "numpy",
    "onnx",
    "onnxruntime",
    "torch",
    "hypothesis",
    "onnx_graphsurgeon",
    "transformers.models.qwen2.modeling_qwen2",
)
NOTICED = ("noticed", "hung")
_DEMO = ("export/demo/", "export/scenes/")  # how the demo checkpoint was trained: chances and colours that any value would do for
_LIMIT = 600  # seconds
_FAILED, _END = "failed ", b"end\n"  # what a child says of its tests


@dataclass
class Result:
    """What became of one change. by: the test that failed; tests: files that ran."""

    key: str
    file: str
    line: int
    operator: str
    change: str
    verdict: str
    by: str = ""
    tests: int = 0
    seconds: float = 0.0


@dataclass
class Outcome:
    """What a run of tests gave. failed: node ids, in order; crashed: pytest itself ended without a report; late: it ran out of time."""

    status: int
    failed: list[str] = field(default_factory=list)
    hung: bool = False
    crashed: bool = False
    late: bool = False


def main() -> int:
    args = _parser().parse_args()
    out = Path(args.out).resolve()
    out.mkdir(parents=True, exist_ok=True)
    tree = _copy_of_the_sources(out / "tree")
    tests = CoveringTests(tree)
    if args.record:
        record(tree, out / "coverage", tests.tests, PYTEST)
    tests.recorded = read_records(out / "coverage")
    results = {result.key: result for result in read_results(out / "results.jsonl")}
    chosen = sample(tree, args.files, args.seed, args.sample)
    equivalent = read_equivalent(EQUIVALENT)
    if args.list:
        print("\n".join(f"{mutation.file}:{mutation.line}\t{mutation.operator}\t{mutation.change}" for mutation in chosen))
        return 0
    runner = Runner(tree, out, args.limit)
    for number, mutation in enumerate(chosen, 1):
        if (mutation.file, mutation.change) in equivalent:
            results[mutation.key] = _result(mutation, "equivalent")
            continue
        known = results.get(mutation.key)
        if known and not (args.again and known.verdict not in NOTICED):
            continue
        result = results[mutation.key] = judge(mutation, runner, tests, args.near, args.budget)
        with open(out / "results.jsonl", "a", encoding="utf-8") as file:
            file.write(json.dumps(asdict(result)) + "\n")
        log(
            f"{number} of {len(chosen)}: {result.verdict} ({result.seconds:.0f} s) {mutation.file}:{mutation.line} {mutation.change}"
        )
    report([results[mutation.key] for mutation in chosen if mutation.key in results], args)
    return 0


def sample(root: Path, patterns: Sequence[str], seed: int, count: int) -> list[Mutation]:
    """The first `count` of all changes of the files that match, shuffled by the seed; all of them where `count` is 0."""
    files = [str(path.relative_to(root)) for package in PACKAGES for path in sorted((root / package).rglob("*.py"))]
    if patterns:
        files = [file for file in files if any(fnmatch.fnmatch(file, pattern) for pattern in patterns)]
    else:
        files = [file for file in files if not file.startswith(_DEMO)]
    if not files:
        raise SystemExit(f"error: no Python source of {', '.join(PACKAGES)} matches {' '.join(patterns)}")
    sources = {file: (root / file).read_text(encoding="utf-8") for file in files}
    found = [mutation for file, source in sources.items() for mutation in mutations(file, source)]
    random.Random(seed).shuffle(found)
    chosen: list[Mutation] = []
    for mutation in found:
        if count and len(chosen) == count:
            break
        if is_a_change(mutation, sources[mutation.file]):
            chosen.append(mutation)
    return chosen


def judge(mutation: Mutation, runner: Runner, tests: CoveringTests, near_alone: bool, budget: float = 0) -> Result:
    """Run the tests that could notice, in two stages, up to the first that fails with the change and passes without it.

    budget: seconds for them all, 0 for as long as they take.
    """
    start, ran = time.monotonic(), 0
    end = start + budget if budget else math.inf
    first, last = mutation.statement
    near, far = tests.of(mutation.file, range(first, last + 1))
    result = _result(mutation, "near" if near_alone and far else "survived")
    for stage in (near, () if near_alone else far):
        ran += len(stage)
        outcome = runner.with_change(mutation, list(stage), end) if stage else Outcome(0)
        if outcome.late:
            result.verdict = "near"
            break
        if outcome.hung or outcome.crashed or outcome.failed:
            result.verdict = "hung" if outcome.hung else "noticed"
            result.by = outcome.failed[0] if outcome.failed else ""
            break
    result.tests, result.seconds = ran, round(time.monotonic() - start, 1)
    return result


class Runner:
    """Runs tests in a child of this process, which has the heavy packages loaded, and none of the project's modules."""

    def __init__(self, tree: Path, out: Path, limit: float):
        self.tree, self.log, self.limit = tree, out / "tests.log", limit
        self.healthy: dict[str, bool] = {}  # of a test: whether it passes without a change
        for name in WARM:
            with contextlib.suppress(ImportError):
                importlib.import_module(name)

    def with_change(self, mutation: Mutation, tests: list[str], end: float = math.inf) -> Outcome:
        """Run `tests` on the changed tree up to a failure that the change explains, or until `end` of time.monotonic()."""
        path = self.tree / mutation.file
        source = path.read_text(encoding="utf-8")
        broken: list[str] = []
        while tests:
            path.write_text(mutation.apply(source), encoding="utf-8")
            try:
                outcome = self._run([*tests, "-x", *(f"--deselect={test}" for test in broken)], end)
            finally:
                path.write_text(source, encoding="utf-8")
            unexplained = [test for test in outcome.failed if not self._passes(test)]
            if outcome.hung or outcome.crashed or outcome.late or not unexplained:
                return outcome
            for test in unexplained:  # a whole file where it can't be collected, or not be deselected
                if test in broken or "::" not in test:
                    tests = [file for file in tests if file != test.partition("::")[0]]
            broken += unexplained
        return Outcome(0)

    def _passes(self, test: str) -> bool:
        if test not in self.healthy:
            self.healthy[test] = self._run([test]).status == 0
            if not self.healthy[test]:
                log(f"left out, it fails without a change: {test}")
        return self.healthy[test]

    def _run(self, words: list[str], end: float = math.inf) -> Outcome:
        reader, writer = os.pipe()
        child = os.fork()
        if not child:
            os.close(reader)
            self._in_the_child(words, writer)
        os.close(writer)
        said, hung, late = b"", False, False
        try:
            while not said.endswith(_END) and not hung:
                left = end - time.monotonic()
                hung = not select.select([reader], [], [], max(0.0, min(self.limit, left)))[0]
                late = hung and left < self.limit
                chunk = b"" if hung else os.read(reader, 1 << 16)
                if not chunk:  # the child hangs, or is gone
                    break
                said += chunk
            if not hung:
                code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        finally:  # also what the tests left behind, and at Ctrl-C
            os.close(reader)
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(child, signal.SIGKILL)
        if hung:
            code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        lines = said.removesuffix(_END).decode().splitlines()
        failed = [line.removeprefix(_FAILED) for line in lines if line.startswith(_FAILED)]
        silent = not said.endswith(_END) or (code not in (0, 5) and not failed)  # 5: nothing was selected
        return Outcome(code, failed, hung and not late, silent and not hung, late)

    def _in_the_child(self, words: list[str], writer: int) -> None:
        code = 70
        try:
            os.setsid()
            os.environ |= {
                "PYTHONDONTWRITEBYTECODE": "1",
                "HF_HUB_OFFLINE": "1",
            }  # bytecode is told from sources by seconds and size
            sys.dont_write_bytecode = True
            sys.path[:] = [entry for entry in sys.path if entry not in ("", str(ROOT), str(ROOT / "benchmarks"))]
            for name in ("covering_tests", "harness", "mutations"):  # tests import benchmarks of the copy by these names
                sys.modules.pop(name, None)
            os.chdir(self.tree)
            with open(self.log, "w") as log, open(os.devnull) as null:
                os.dup2(log.fileno(), 1), os.dup2(log.fileno(), 2), os.dup2(null.fileno(), 0)
                import pytest

                code = int(pytest.main([*PYTEST, "--rootdir", str(self.tree), *words], plugins=[_Reports(writer)]))
                sys.stdout.flush(), sys.stderr.flush()
        finally:
            os.write(writer, _END)
            os._exit(code)


class _Reports:
    """A pytest plugin that writes a line to a pipe for every step of a test, with the node id where it failed."""

    def __init__(self, writer: int):
        self._writer = writer

    def pytest_runtest_logreport(self, report: Any) -> None:
        os.write(self._writer, f"{_FAILED}{report.nodeid}\n".encode() if report.failed else b"\n")

    pytest_collectreport = pytest_runtest_logreport


def report(results: list[Result], args: argparse.Namespace) -> None:
    if args.json:
        print(json.dumps({"summary": summary(results), "results": [asdict(result) for result in results]}, indent=1))
        return
    text = markdown(results)
    if args.write:
        write_section("mutations", text)
    else:
        print(text)


def summary(results: Sequence[Result]) -> dict[str, float]:
    counts = Counter(result.verdict for result in results)
    meaningful = len(results) - counts["equivalent"]
    noticed = sum(counts[verdict] for verdict in NOTICED)
    return {**counts, "changes": len(results), "meaningful": meaningful, "noticed_share": noticed / max(1, meaningful)}


def markdown(results: Sequence[Result]) -> str:
    """The counts by package and by kind of change, then every change that was not noticed."""
    columns = ("", "changes", "equivalent", "noticed", "hung", "survived", "near only", "noticed of the meaningful")
    groups: list[tuple[str, list[Result]]] = [
        *((f"{package}/", [r for r in results if r.file.startswith(f"{package}/")]) for package in PACKAGES),
        *((kind, [r for r in results if r.operator == kind]) for kind in sorted({r.operator for r in results})),
        ("all", list(results)),
    ]
    rows = []
    for name, group in groups:
        counts = Counter(result.verdict for result in group)
        share = f"{100 * summary(group)['noticed_share']:.0f} %" if len(group) > counts["equivalent"] else ""
        verdicts = ("equivalent", "noticed", "hung", "survived", "near")
        rows.append([name, len(group), *(counts[verdict] for verdict in verdicts), share])
    left = [f"- {r.verdict}: `{r.file}:{r.line}` {r.operator}: `{r.change}`" for r in results if r.verdict in ("survived", "near")]
    return "\n".join([table(columns, rows), "", *left]).strip()


def read_results(path: Path) -> Iterator[Result]:
    """In the order of trial, without a line that a kill cut short."""
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
        with contextlib.suppress(json.JSONDecodeError):
            yield Result(**json.loads(line))


def read_equivalent(path: Path) -> dict[tuple[str, str], str]:
    """{(file, change): reason} of the committed list: file, change and reason between tabs."""
    rows = [line.split("\t") for line in path.read_text(encoding="utf-8").splitlines() if line and not line.startswith("#")]
    return {(file, change): reason for file, change, reason in rows}


def _result(mutation: Mutation, verdict: str) -> Result:
    return Result(mutation.key, mutation.file, mutation.line, mutation.operator, mutation.change, verdict)


def _copy_of_the_sources(tree: Path) -> Path:
    """Files that git knows or would add, as they are in the working tree; what tests built there before (build/) stays."""
    listed = subprocess.run(["git", "-C", str(ROOT), "ls-files", "-zco", "--exclude-standard"], capture_output=True, check=True)
    tree.mkdir(parents=True, exist_ok=True)
    for entry in tree.iterdir():
        if entry.name != "build":
            shutil.rmtree(entry) if entry.is_dir() and not entry.is_symlink() else entry.unlink()
    for name in filter(None, listed.stdout.decode().split("\0")):
        if (ROOT / name).is_file():
            (tree / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, tree / name)
    return tree


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("files", nargs="*", help="patterns of sources, e.g. 'export/surgeon/*'; default: all")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--sample", type=int, default=150, help="how many changes; 0: all of them")
    parser.add_argument("--out", default=str(ROOT / "build" / "mutations"), help="results, and the copy that is changed")
    parser.add_argument("--limit", type=float, default=_LIMIT, help="seconds in which some test must end, else they hang")
    parser.add_argument(
        "--budget", type=float, default=0, help="seconds for the tests of one change (default: as long as they take)"
    )
    parser.add_argument("--near", action="store_true", help="run the nearest tests only; a quick look, which proves no survivor")
    parser.add_argument("--record", action="store_true", help="run each test file under coverage.py first, where not yet recorded")
    parser.add_argument("--again", action="store_true", help="judge again what was not noticed before")
    parser.add_argument("--list", action="store_true", help="print the changes and stop")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--write", action="store_true", help="write the table into benchmarks/results/mutations.md")
    return parser


if __name__ == "__main__":
    sys.exit(main())
