"""The mutation run: which changes are made, which tests could notice, and what is said of each, on a small project of its own."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
from covering_tests import CoveringTests
from mutate import Result, markdown, read_equivalent, read_results, sample, summary
from mutations import is_a_change, mutations

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
SOURCE = '''
"""A docstring with 1 number."""

LIMIT = 3

def clipped(values: list[int], low: int = 0) -> list[int]:
    """Of 2 lines."""
    if not values:
        raise ValueError(f"{len(values) + 1} values, expected more")
    print("counting", 5)
    kept = [value for value in values if low <= value < LIMIT and value != 7]
    kept.sort(reverse=True)
    return kept

def gone(path):
    rmtree(path, 1, ignore_errors=True)
    return max(path, 2) - 1
'''


def changes(source: str) -> set[str]:
    return {mutation.change for mutation in mutations("a.py", source) if is_a_change(mutation, source)}


@pytest.mark.parametrize(
    "change",
    [
        "LIMIT = 3 -> LIMIT = 4",
        "if not values: -> if values:",
        "if not values: -> if False:",
        'raise ValueError(f"{len(values) + 1} values, expected more") -> pass',
        "kept = [value for value in values if low <= value < LIMIT and value != 7]"
        " -> kept = [value for value in values if low < value < LIMIT and value != 7]",
        "kept = [value for value in values if low <= value < LIMIT and value != 7]"
        " -> kept = [value for value in values if low <= value < LIMIT or value != 7]",
        "kept.sort(reverse=True) -> pass",
        "kept.sort(reverse=True) -> kept.sort(reverse=False)",
        "return kept -> return None",
        "return max(path, 2) - 1 -> return min(path, 2) - 1",
        "return max(path, 2) - 1 -> return max(path, 2) + 1",
        "rmtree(path, 1, ignore_errors=True) -> pass",
    ],
)
def test_meaningful_changes_are_made(change):
    assert change in changes(SOURCE)


@pytest.mark.parametrize(
    "left_alone",
    [
        "docstring",
        "2 lines",
        "print",
        "len(values) + 2",
        "rmtree(1",
        "rmtree(path, 2",
        "low: int = 0) -> list[int]: -> def clipped(values: list[str]",
    ],
)
def test_texts_annotations_and_what_removes_files_are_left_alone(left_alone):
    assert not [change for change in changes(SOURCE) if left_alone in change.partition(" -> ")[2]]


def test_swapped_and_dropped_arguments_and_one_less():
    assert changes("f(a, b, c=1)\n") >= {"f(a, b, c=1) -> f(b, a, c=1)", "f(a, b, c=1) -> f(a, b)"}
    assert "for i in range(n): -> for i in range(n - 1):" in changes("for i in range(n):\n    go(i)\n")


def test_a_change_is_at_its_place_behind_characters_of_several_bytes():
    source = 'name = "äöü→"; limit = 3\n'
    (mutation,) = mutations("a.py", source)
    assert mutation.apply(source) == 'name = "äöü→"; limit = 4\n'


def test_a_key_stays_when_lines_move_and_differs_for_equal_lines():
    one, two = (mutation.key for mutation in mutations("a.py", "x = 1\nx = 1\n"))
    assert one != two
    assert [m.key for m in mutations("a.py", "\n\nx = 1\nx = 1\n")] == [one, two]


@pytest.fixture(scope="module")
def project(tmp_path_factory) -> Path:
    """Two packages' sources; `value` is tested, and reached through `user` and a command line by other tests."""
    root = tmp_path_factory.mktemp("project")
    files = {
        "pyproject.toml": '[tool.pytest.ini_options]\npythonpath = ["."]\naddopts = "--import-mode=importlib"\n',
        "export/__init__.py": "",
        "runtime/__init__.py": "",
        "runtime/value.py": "def doubled(x):\n    return 2 * x\n\n\ndef unused(x):\n    return x + 1\n",
        "runtime/user.py": "from runtime.value import doubled\n\ndef four(x):\n    return doubled(doubled(x))\n",
        "runtime/__main__.py": "from runtime.user import four\n",
        "runtime/other.py": "from runtime import absent\n",
        "tests/runtime/test_uncollected.py": "import runtime.value\nimport runtime.absent\n",
        "tests/conftest.py": "import pytest\n\n@pytest.fixture\ndef user():\n    import runtime.user\n    return runtime.user\n",
        "tests/runtime/test_value.py": "from runtime.value import doubled\n\ndef test_it():\n    assert doubled(3) == 6\n",
        "tests/runtime/test_user.py": "def test_it(user):\n    assert user.four(1) == 4\n",
        "tests/test_cli.py": 'COMMAND = ["-m", "runtime"]\n\ndef test_it():\n    assert COMMAND\n',
        "tests/test_nothing.py": "import json\n\ndef test_it():\n    assert json\n",
    }
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


def test_the_test_that_mirrors_comes_first_and_all_that_reach_it_after_it(project):
    tests = CoveringTests(project)
    assert tests.of("runtime/value.py") == (
        ["tests/runtime/test_value.py"],
        ["tests/runtime/test_uncollected.py", "tests/runtime/test_user.py", "tests/test_cli.py"],
    )
    assert tests.of("runtime/user.py") == (["tests/runtime/test_user.py"], ["tests/test_cli.py"])


def test_a_record_narrows_them_to_those_that_ran_the_line(project):
    recorded = {
        "tests/runtime/test_uncollected.py": {},
        "tests/runtime/test_user.py": {"runtime/value.py": {1, 2, 5}},
        "tests/test_cli.py": {"runtime/value.py": {1, 5}},
    }
    tests = CoveringTests(project, recorded)
    assert tests.of("runtime/value.py", range(2, 3)) == (["tests/runtime/test_value.py"], ["tests/runtime/test_user.py"])


def test_the_seed_and_the_patterns_fix_the_sample(project):
    first = [mutation.change for mutation in sample(project, ["runtime/*"], 3, 5)]
    assert first == [mutation.change for mutation in sample(project, ["runtime/*"], 3, 5)] and len(first) == 5
    assert first != [mutation.change for mutation in sample(project, ["runtime/*"], 4, 5)]
    with pytest.raises(SystemExit, match="no Python source"):
        sample(project, ["absent/*"], 1, 1)


def test_equivalent_changes_are_listed_with_a_reason_and_exist():
    for (file, change), reason in read_equivalent(BENCHMARKS / "mutants_equivalent.tsv").items():
        source = (BENCHMARKS.parent / file).read_text(encoding="utf-8")
        assert reason and change in {mutation.change for mutation in mutations(file, source)}, (file, change)


def test_shares_are_of_the_meaningful_changes():
    verdicts = ["noticed"] * 6 + ["hung"] + ["survived"] + ["equivalent"] * 2
    results = [Result(str(i), "runtime/a.py", 1, "constant", "a -> b", verdict) for i, verdict in enumerate(verdicts)]
    assert summary(results)["noticed_share"] == 7 / 8 and summary(results)["meaningful"] == 8
    assert "| all | 10 | 2 | 6 | 1 | 1 | 0 | 88 % |" in markdown(results)


def test_a_line_that_a_kill_cut_off_is_tried_again(tmp_path):
    whole = json.dumps(Result("k", "a.py", 1, "constant", "a -> b", "noticed").__dict__)
    (tmp_path / "results.jsonl").write_text(f"{whole}\n{whole[:30]}")
    assert [result.key for result in read_results(tmp_path / "results.jsonl")] == ["k"]


@pytest.mark.slow
def test_a_run_tells_noticed_crashed_hung_and_survived_apart_and_leaves_the_sources_alone(project, tmp_path):
    (project / "runtime" / "loop.py").write_text("def count(n):\n    while n > 0:\n        n -= 1\n    return n\n")
    (project / "tests" / "runtime" / "test_loop.py").write_text(
        "from runtime.loop import count\n\ndef test_it():\n    assert count(3) == 0\n\ndef test_broken():\n    assert False\n"
    )
    (project / "runtime" / "leave.py").write_text("import os\n\ndef leave(now):\n    if now:\n        os._exit(0)\n")
    (project / "tests" / "runtime" / "test_leave.py").write_text(
        "from runtime.leave import leave\n\ndef test_it():\n    leave(False)\n"
    )
    code = textwrap.dedent(f"""
        import json, sys
        from dataclasses import asdict
        from pathlib import Path
        sys.path.insert(0, {str(BENCHMARKS)!r})
        import mutate
        mutate.WARM = ("pytest",)
        root = Path({str(project)!r})
        runner = mutate.Runner(root, Path({str(tmp_path)!r}), 100)
        tests = mutate.CoveringTests(root)
        wanted = ("return 2 * x -> return 3 * x", "return x + 1 -> return x - 1", "n -= 1 -> pass", "if now: -> if True:")
        found = [m for m in mutate.sample(root, ["runtime/*"], 1, 0) if m.change in wanted]
        results = {{}}
        for mutation in found:
            runner.limit = 2 if mutation.text == "pass" else 100
            results[mutation.change] = asdict(mutate.judge(mutation, runner, tests, False))
        endless = next(m for m in found if m.text == "pass")
        runner.limit = 100
        results["no time"] = asdict(mutate.judge(endless, runner, tests, False, budget=2))
        print(json.dumps(results))
    """)
    before = {path: path.read_text() for path in project.rglob("*.py")}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, timeout=120, check=False)
    results = json.loads(done.stdout)
    verdicts = {change: (result["verdict"], result["by"]) for change, result in results.items()}
    assert verdicts == {
        "return 2 * x -> return 3 * x": ("noticed", "tests/runtime/test_value.py::test_it"),
        "return x + 1 -> return x - 1": ("survived", ""),
        "n -= 1 -> pass": ("hung", ""),
        "if now: -> if True:": ("noticed", ""),
        "no time": ("near", ""),
    }, done.stderr
    assert {path: path.read_text() for path in before} == before
