"""Phases of a long step: a line for each, or one bar on a terminal."""

from __future__ import annotations

import io
import sys
from types import SimpleNamespace

import pytest
import rich.progress

from runtime.core import progress


def test_away_from_a_terminal_each_phase_is_logged_once(monkeypatch, capsys: pytest.CaptureFixture) -> None:
    monkeypatch.setattr(progress, "time", SimpleNamespace(perf_counter=iter([10, 12.25]).__next__))
    with progress.phases("building vision") as show:
        for step in (("Tactics", 1, 2), ("Tactics", 2, 2), ("Engine", 1, 1), ("Tactics", 1, 1)):
            show(*step)
    assert capsys.readouterr().err.splitlines() == [f"building vision: {end}" for end in ("tactics", "engine", "2.2 s")]


def test_on_a_terminal_there_is_a_bar_that_leaves_nothing_behind(monkeypatch) -> None:
    calls: list = []

    class Bars:
        def __init__(self, console, transient):
            calls.append((console.stderr, transient))

        def __enter__(self):
            return self

        def __exit__(self, *_):
            calls.append("closed")

        def add_task(self, title, total):
            calls.append((title, total))
            return 7

        def update(self, bar, **values):
            calls.append((bar, values))

    terminal = io.StringIO()
    terminal.isatty = lambda: True
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setattr(rich.progress, "Progress", Bars)
    with progress.phases("building vision") as show:
        show("Tactics", 1, 2)
    moved = {"description": "building vision: tactics", "completed": 1, "total": 2}
    assert calls == [(True, True), ("building vision", None), (7, moved), "closed"]
    assert terminal.getvalue().endswith(" s\n")
