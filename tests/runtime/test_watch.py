"""When answers are given and which frames wait, with a camera and an engine that take no time."""

from __future__ import annotations

import threading
from types import SimpleNamespace

import numpy as np
import pytest
from refusal import refused

from runtime import watch
from runtime.__main__ import _parser, main
from runtime.errors import UsageError
from runtime.watch import Watch, WatchOptions


class Live:
    """Takes frames, and keeps their times."""

    frames, preprocessor = 4, None

    def __init__(self):
        self.times = []

    def push(self, frame, seconds):
        self.times.append(seconds)

    def clear(self):
        self.times.clear()

    def visual(self, source):
        return source


@pytest.fixture
def times_of(monkeypatch):
    """times_of(frame times, options): the times at which answers are given."""

    def run(times, **options) -> list[float]:
        seen = Watch.__new__(Watch)
        seen._live = Live()
        seen._chat = SimpleNamespace(prompt=SimpleNamespace(ids=lambda question: None), ask_about=lambda *_: iter(()), answer=None)
        monkeypatch.setattr(watch, "sampled", lambda *_: ((time, np.zeros(1)) for time in times))
        return [observation.time for observation in seen.answers("file", "what ?", WatchOptions(**options))]

    return run


def test_an_answer_is_due_every_few_seconds_and_at_the_end(times_of):
    assert times_of([0, 0.5, 1, 1.5, 2, 2.5], every=1) == [1, 2, 2.5]


def test_answers_that_a_pause_of_the_camera_missed_are_not_made_up_for(times_of):
    assert times_of([0, 5.2, 5.4, 5.6, 5.8, 6.0, 6.2], every=1) == [5.2, 6.0, 6.2]


def test_as_many_answers_are_given_as_were_asked_for(times_of):
    assert times_of([0, 1, 2, 3, 4], every=1, count=2) == [1, 2]


def test_the_newest_frames_wait_and_the_others_are_counted():
    done = threading.Event()

    def frames():
        yield from ((float(number), np.zeros(1)) for number in range(10))
        done.set()

    camera = watch._Camera(frames(), capacity=3)
    assert done.wait(10)
    assert [seconds for seconds, _ in camera] == [7.0, 8.0, 9.0]
    assert camera.take_dropped() == 7 and camera.take_dropped() == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"every": 0}, "every is 0 s, expected 1ms to a day"),
        ({"every": float("nan")}, "every is nan s, expected"),
        ({"window": 86_401}, "window is 86401 s, expected"),
        ({"count": -1}, "-1 answers; expected 0"),
    ],
)
def test_times_and_counts_that_make_no_sense_are_refused(options, message):
    WatchOptions(every=0.001, window=86_400)
    with pytest.raises(UsageError, match=message):
        WatchOptions(**options)


COMMAND = ["watch", "BUNDLE", "SOURCE", "what ?"]


@pytest.mark.parametrize(("text", "seconds"), [("2s", 2), ("500ms", 0.5), ("1.5", 1.5), ("1ms", 0.001), ("86400", 86_400)])
def test_a_time_on_the_command_line_has_a_unit_or_is_in_seconds(text, seconds):
    args = _parser().parse_args([*COMMAND, "--every", text, "--window", text])
    assert args.every == args.window == pytest.approx(seconds)


@pytest.mark.parametrize("text", ["0s", "3x", "", "ms", "86401", "nan", "inf"])
def test_what_is_no_time_on_the_command_line_is_refused(capsys, text):
    assert f"{text!r} is no time from 1ms to a day" in refused(capsys, main, *COMMAND, "--every", text)
