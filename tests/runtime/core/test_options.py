"""A dataclass field is an option of a command line and of a configuration, with its limits."""

from __future__ import annotations

import argparse
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from runtime.cli.arguments import ArgumentParser
from runtime.core.errors import EngineError, UsageError
from runtime.core.options import add_options, check_limits, nested, option, options_from_args, options_from_values, secret_option


def words_of(text: str) -> int:
    if not text:
        raise ValueError("expected a word")
    return len(text.split())


@dataclass(frozen=True)
class Inner:
    threads: int = option(0, "CPU threads", at_least=0)
    fast: bool = option(False, "quick and coarse")

    def __post_init__(self) -> None:
        check_limits(self, EngineError)


@dataclass(frozen=True)
class Outer:
    kind: str = option("round", "its shape", choices=("round", "square"))
    size: int = option(2 << 20, "of the thing", flag="--size-mib", scale=1 << 20, above=0)
    share: float = option(0.5, "of all", above=0, at_most=1)
    rounds: int | None = option(None, "rounds (default: enough)", at_least=1, at_most=9)
    folders: tuple[Path, ...] = option((), "where to look", flag="--folder")
    words: int = option(1, "in the text", parse=words_of, metavar="TEXT")
    key: str | None = secret_option("what to send", env="A_KEY_OF_TESTS")
    port: int = option(80, "to listen on", flag=None, at_least=0)
    inner: Inner = nested(Inner(threads=1))
    unlisted: list[str] | None = None

    def __post_init__(self) -> None:
        check_limits(self)


def parsed(line: str, kind: type[Any] = Outer) -> Any:
    parser = ArgumentParser(prog="test")
    add_options(parser, kind)
    return options_from_args(kind, parser.parse_args(line.split()))


LINES = [
    ("", {}),
    ("--kind square --size-mib 3 --share 1", {"kind": "square", "size": 3 << 20, "share": 1.0}),
    ("--rounds 9 --folder a --folder b/c", {"rounds": 9, "folders": (Path("a"), Path("b/c"))}),
    ("--words one", {"words": 1}),
    ("--threads 4 --fast", {"inner": Inner(4, True)}),
    ("--fast", {"inner": Inner(1, True)}),
]


@pytest.mark.parametrize(("line", "changed"), LINES)
def test_a_command_line_changes_the_options_that_it_names(line: str, changed: dict[str, Any]) -> None:
    assert repr(parsed(line)) == repr(replace(Outer(), **changed))  # repr tells 2 from 2.0


@pytest.mark.parametrize(
    ("line", "option"),
    [
        ("--kind oval", "--kind"),
        ("--size-mib 0", "--size-mib"),
        ("--size-mib 1.5", "--size-mib"),
        ("--share 0", "--share"),
        ("--share 1.01", "--share"),
        ("--share nan", "--share"),
        ("--rounds 0", "--rounds"),
        ("--rounds 10", "--rounds"),
        ("--threads -1", "--threads"),
        ("--port 1", "--port"),
        ("--unlisted a", "--unlisted"),
        ("--key ü", "--key"),
        ("--words=", "--words: got '', expected a word"),
    ],
)
def test_what_an_option_does_not_take_is_refused_by_its_name(line: str, option: str) -> None:
    with pytest.raises(UsageError, match=option):
        parsed(line)


@pytest.mark.parametrize(
    ("error", "changed"),
    [
        (UsageError, {"kind": "oval"}),
        (UsageError, {"size": 0}),
        (UsageError, {"share": 0.0}),
        (UsageError, {"share": float("nan")}),
        (UsageError, {"rounds": 10}),
        (UsageError, {"port": -1}),
    ],
)
def test_limits_are_those_of_python_too(error: type[Exception], changed: dict[str, Any]) -> None:
    with pytest.raises(error, match=f"^{next(iter(changed))} is "):
        replace(Outer(), **changed)


def test_nested_options_keep_their_kind_of_error() -> None:
    with pytest.raises(EngineError, match="threads"):
        Inner(-1)


@pytest.mark.parametrize(
    ("values", "changed"),
    [
        ({"size_mib": "3", "share": "1", "rounds": 4}, {"size": 3 << 20, "share": 1.0, "rounds": 4}),
        ({"folder": "a,b", "rounds": None}, {"folders": (Path("a"), Path("b"))}),
        ({"folder": ["a"], "fast": True, "threads": "2"}, {"folders": (Path("a"),), "inner": Inner(2, True)}),
        ({"fast": "false", "key": "k"}, {"key": "k"}),
    ],
)
def test_values_of_a_configuration_may_be_text(values: dict[str, Any], changed: dict[str, Any]) -> None:
    assert repr(options_from_values(Outer, values)) == repr(replace(Outer(), **changed))


@pytest.mark.parametrize(
    "values", [{"shar": 1}, {"share": None}, {"rounds": "many"}, {"fast": "perhaps"}, {"kind": "oval"}, {"port": 1}]
)
def test_other_values_of_a_configuration_are_refused_by_name(values: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=next(iter(values))):
        options_from_values(Outer, values)


def test_a_key_comes_from_the_environment_unless_the_command_line_has_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("A_KEY_OF_TESTS", "from-environment")
    assert parsed("").key == "from-environment"
    assert parsed("--key other").key == "other"
    for bad in ("", " ", "a\nb", "ü"):
        monkeypatch.setenv("A_KEY_OF_TESTS", bad)
        with pytest.raises(UsageError, match="A_KEY_OF_TESTS"):
            parsed("")


def test_help_shows_what_an_option_takes_and_its_default() -> None:
    @dataclass(frozen=True)
    class Part:
        outer: Outer = nested(Outer(share=0.25), without=("kind", "inner"))

    parser = argparse.ArgumentParser()
    add_options(parser, Part)
    text = " ".join(parser.format_help().split())
    shown = (
        "--size-mib N",
        "of the thing (default: 2)",
        "of all (default: 0.25)",
        "rounds (default: enough)",
        "--words TEXT",
        "A_KEY_OF_TESTS",
    )
    assert [part for part in shown if part not in text] == []
    assert [part for part in ("--kind", "--threads", "--port", "--unlisted") if part in text] == []
    assert parsed("--share 0.75", Part).outer == Outer(share=0.75)
