"""When there are answers and which frames wait, with a camera and an engine that take no time."""

from __future__ import annotations

import threading
from types import SimpleNamespace

import numpy as np
import pytest
from refusal import refused

from runtime import watch
from runtime.__main__ import main
from runtime.cli.commands import parser
from runtime.core.errors import UsageError, VideoError
from runtime.core.options import options_from_args
from runtime.engine import EngineOptions
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
    """times_of(frame times, options): the times of the answers."""

    def run(times, **options) -> list[float]:
        seen = Watch.__new__(Watch)
        seen._live = Live()
        seen._chat = SimpleNamespace(prompt=SimpleNamespace(ids=lambda question: None), ask_about=lambda *_: iter(()), answer=None)
        monkeypatch.setattr(watch, "sampled", lambda *_: ((time, np.zeros(1)) for time in times))
        return [observation.time for observation in seen.answers("file", "what ?", WatchOptions(**options))]

    return run


@pytest.mark.parametrize("once", [True, False])
def test_frames_go_through_the_engine_of_the_chat(monkeypatch, once):
    opened, options = [], EngineOptions(threads=2)
    chat = SimpleNamespace(vision=SimpleNamespace(engine="the chat's engine"))
    monkeypatch.setattr(watch.VideoChat, "open", lambda *arguments: opened.append(arguments) or chat)
    monkeypatch.setattr(watch, "LiveEncoder", lambda *arguments: opened.append(arguments) or SimpleNamespace(encodes_once=once))
    assert Watch("the bundle", "onnx", options).encodes_once is once
    assert opened == [("the bundle", "onnx", options), ("the bundle", "the chat's engine")]


def test_an_answer_is_due_every_few_seconds_and_at_the_end(times_of):
    assert times_of([0, 0.5, 1, 1.5, 2, 2.5], every=1) == [1, 2, 2.5]


def test_answers_that_a_pause_of_the_camera_missed_are_not_made_up_for(times_of):
    assert times_of([0, 5.2, 5.4, 5.6, 5.8, 6.0, 6.2], every=1) == [5.2, 6.0, 6.2]


def test_an_answer_that_is_less_than_a_nanosecond_early_is_due(times_of):
    assert times_of([0, 1 - 0.9e-9, 1.5, 2, 2.5], every=1) == [1 - 0.9e-9, 2, 2.5]
    assert times_of([0, 1 - 1.5e-9, 1.5, 2, 2.5], every=1) == [1.5, 2, 2.5]


def test_by_default_there_is_an_answer_every_two_seconds_about_the_last_eight(times_of):
    assert times_of([0, 1, 2, 3, 4, 5]) == [2, 4, 5]
    assert (WatchOptions().window, WatchOptions().realtime) == (8, False)
    assert watch.Observation(1.0, "the answer", 0).lost == 0


def test_where_the_last_frame_was_answered_there_is_no_answer_more(times_of):
    assert times_of([0, 1, 2], every=1) == [1, 2]
    assert times_of([], every=1) == []
    assert times_of([0], every=1) == [0]


def test_there_are_as_many_answers_as_were_asked_for(times_of):
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
    ("name", "value"), [("every", 0), ("every", 0.0009), ("every", float("nan")), ("window", 86_401), ("count", -1)]
)
def test_times_and_counts_out_of_range_are_refused(name, value):
    WatchOptions(every=0.001, window=86_400)
    with pytest.raises(UsageError, match=name):
        WatchOptions(**{name: value})


class Lossy:
    """A source of which one frame more is lost each time that somebody asks."""

    def __init__(self, source):
        self.source, self.asked = source, 0

    def take_lost(self):
        self.asked += 1
        return self.asked


def test_the_next_answer_counts_what_a_slow_engine_and_the_network_lost(monkeypatch):
    taken, sent = threading.Event(), threading.Event()

    class Slow(Live):
        def push(self, frame, seconds):
            super().push(frame, seconds)
            taken.set()
            assert sent.wait(10)

    def frames(*_):
        yield 0.0, np.zeros(1)
        assert taken.wait(10)
        yield from ((float(number), np.zeros(1)) for number in range(1, 10))
        sent.set()

    seen = Watch.__new__(Watch)
    seen._live = Slow()
    seen._chat = SimpleNamespace(
        prompt=SimpleNamespace(ids=lambda question: None), ask_about=lambda *_: iter(()), answer="the answer"
    )
    monkeypatch.setattr(watch, "sampled", frames)
    monkeypatch.setattr(watch, "Stream", Lossy)
    got = list(seen.answers("file", "what ?", WatchOptions(every=1, realtime=True)))
    assert [(one.time, one.dropped, one.lost) for one in got] == [(6, 5, 1), (7, 0, 2), (8, 0, 3), (9, 0, 4)]
    assert seen._live.times == [0, 6, 7, 8, 9] and got[0].answer == "the answer"


@pytest.mark.parametrize(
    ("source", "realtime", "waits"),
    [("file", False, False), ("file", True, True), ("rtsp://host", False, True), ("/dev/video0", False, True)],
)
def test_a_camera_takes_frames_in_a_thread_that_ends_with_the_watching(monkeypatch, source, realtime, waits):
    """Four frames span eight seconds: one every two. What was seen before is forgotten, and a question is checked first."""
    made, sampled, steps, asked = [], [], [], []

    class Camera:
        def __init__(self, frames, capacity):
            self.frames, self.stopped = frames, False
            made.append((self, capacity))

        def __iter__(self):
            return iter(self.frames)

        def take_dropped(self):
            return 5

        def stop(self):
            self.stopped = True

    def frames(*arguments):
        sampled.append(arguments)
        return iter([(0.0, "a"), (3.0, "b")])

    seen = Watch.__new__(Watch)
    seen._live = Live()
    seen._live.push(None, -1.0)
    seen._live.preprocessor = "preprocessor"
    seen._chat = SimpleNamespace(
        prompt=SimpleNamespace(ids=steps.append),
        ask_about=lambda *arguments: asked.append(arguments) or iter(["word"]),
        answer="the answer",
    )
    monkeypatch.setattr(watch, "_Camera", Camera)
    monkeypatch.setattr(watch, "sampled", frames)
    monkeypatch.setattr(watch, "Stream", lambda source: steps.append(source) or Lossy(source))
    options = WatchOptions(every=2.5, window=8, realtime=realtime)
    (got,) = seen.answers(source, "what ?", options, "how")
    assert (got.time, got.answer, got.dropped) == (3.0, "the answer", 5 if waits else 0)
    assert steps == ["what ?", source] and asked == [(source, "what ?", "how")] and seen._live.times == [0.0, 3.0]
    ((stream, step, preprocessor, passed),) = sampled
    assert (stream.source, step, preprocessor, passed) == (source, 2.0, "preprocessor", options)
    assert [(camera.stopped, capacity) for camera, capacity in made] == [(True, 4)] * waits


def test_a_camera_s_thread_does_not_keep_the_program_from_ending():
    wanted = threading.Event()

    def frames():
        assert wanted.wait(10)
        yield 0.0, np.zeros(1)

    camera = watch._Camera(frames(), capacity=1)
    (thread,) = (thread for thread in threading.enumerate() if thread.name == "camera")
    assert thread.daemon
    wanted.set()
    assert len(list(camera)) == 1
    thread.join(10)


def test_as_many_frames_as_it_holds_wait_and_none_is_dropped():
    done = threading.Event()

    def frames():
        yield from [(0.0, "a"), (1.0, "b")]
        done.set()

    camera = watch._Camera(frames(), capacity=2)
    assert done.wait(10)
    assert camera.take_dropped() == 0 and list(camera) == [(0.0, "a"), (1.0, "b")]


def test_an_observation_is_json_with_what_was_dropped():
    answer = SimpleNamespace(text="two", ids=[5], frames=[0, 4], seconds={"encode": 0.5})
    assert watch.Observation(2.5, answer, dropped=3, lost=1).as_dict() == {
        "time": 2.5, "text": "two", "ids": [5], "frames": [0, 4], "dropped": 3, "seconds": {"encode": 0.5},
    }  # fmt: skip


def test_a_camera_that_breaks_is_an_error_after_the_frames_that_came():
    def frames():
        yield 0.0, np.zeros(1)
        raise VideoError("the camera is gone")

    got = []
    with pytest.raises(VideoError, match="the camera is gone"):
        for seconds, _ in watch._Camera(frames(), capacity=3):
            got.append(seconds)
    assert got == [0.0]


def test_a_camera_is_let_go_when_nobody_watches_any_more():
    closed, wanted = threading.Event(), threading.Semaphore(1)

    def frames():
        try:
            for number in range(100):
                assert wanted.acquire(timeout=10)
                yield float(number), np.zeros(1)
        finally:
            closed.set()

    camera = watch._Camera(frames(), capacity=3)
    assert next(iter(camera))[0] == 0
    camera.stop()
    wanted.release()
    assert closed.wait(10)


class Source:
    """Frames at given times; resized frames are the times again."""

    def __init__(self, times, source="file"):
        self.times, self.source = times, source

    def __iter__(self):
        return iter((time, lambda time=time: time) for time in self.times)


@pytest.mark.parametrize(
    ("times", "step", "taken"),
    [
        ([0, 0.25, 0.5, 0.75, 1, 1.25], 0.5, [0, 0.5, 1]),
        ([0, 0.3, 0.7, 1.1], 0.5, [0, 0.7, 1.1]),
        ([0, 5, 5.25, 5.5], 0.5, [0, 5, 5.5]),  # a pause is not made up for
        ([number / 25 for number in range(26)], 0.2, [0, 0.2, 0.4, 0.6, 0.8, 1]),
        ([0, 1 - 1e-9, 1.5, 2], 1, [0, 1 - 1e-9, 2]),  # what is a nanosecond early counts
        ([0, 1 - 3e-9, 1.5, 2], 1, [0, 1.5, 2]),
    ],
)
def test_the_first_frame_of_every_step_is_sampled(times, step, taken):
    resized = SimpleNamespace(resize=lambda rgb: [rgb])
    assert list(watch.sampled(Source(times), step, resized)) == [(time, [time]) for time in taken]


@pytest.mark.parametrize(
    ("source", "realtime", "waits"), [("file", True, True), ("file", False, False), ("rtsp://host", True, False)]
)
def test_a_file_is_played_at_its_own_speed_where_that_is_asked_for(monkeypatch, source, realtime, waits):
    clock = SimpleNamespace(now=100.0, monotonic=lambda: clock.now)
    clock.sleep = lambda seconds: setattr(clock, "now", clock.now + seconds)
    monkeypatch.setattr(watch, "time", clock)
    seen = []
    for seconds, _ in watch.sampled(Source([0, 1, 3], source), 0.5, SimpleNamespace(resize=id), WatchOptions(realtime=realtime)):
        seen.append((seconds, clock.now - 100))
        clock.now += 0.5  # which looking at a frame takes
    assert seen == ([(0, 0), (1, 1), (3, 3)] if waits else [(0, 0), (1, 0.5), (3, 1)])


COMMAND = ["watch", "BUNDLE", "SOURCE", "what ?"]


TIMES = [("1ms", 0.001), ("500ms", 0.5), ("0.25", 0.25), ("2s", 2), ("1.5s", 1.5), ("86400s", 86_400), ("86400000ms", 86_400)]


@pytest.mark.parametrize(("text", "seconds"), TIMES)
def test_a_time_on_the_command_line_has_a_unit_or_is_in_seconds(text, seconds):
    options = options_from_args(WatchOptions, parser().parse_args([*COMMAND, "--every", text, "--window", text]))
    assert options.every == options.window == pytest.approx(seconds, rel=1e-12)


@pytest.mark.parametrize("text", ["0s", "3x", "", "s", "ms", "86401", "nan", "inf", "0.9ms", "-1s", "1h", "two", "1 ms s"])
def test_another_text_is_not_a_time(capsys, text):
    assert "--every" in refused(capsys, main, *COMMAND, f"--every={text}")
