"""What `run`, `watch`, `parity` and `inspect` hand on and print, and their exit codes, without a bundle."""

from __future__ import annotations

import argparse
import io
import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import runtime.__main__
from runtime.__main__ import main
from runtime.chat import Answer, AskOptions
from runtime.engine import EngineOptions
from runtime.llm.sampling import Sampling
from runtime.tools.parity import ParityReport, Row
from runtime.watch import Observation, WatchOptions


class Commands:
    """Commands on a bundle "B" that need none; asked: the arguments of what they call."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture):
        self.patch, self.capsys = monkeypatch, capsys
        self.asked: list[Any] = []
        monkeypatch.setattr(runtime.__main__, "_bundle", lambda args, verify=False: SimpleNamespace(has_llm=False, verified=verify))
        monkeypatch.setattr(runtime.__main__, "_placed", lambda args, *_: runtime.__main__._engine_options(args))

    def answering(self, name: str, result: Any, of: int = 1) -> None:
        """Let the function `name` return `result`; its last `of` arguments are noted."""
        self.patch.setattr(name, lambda *arguments: self.asked.extend(arguments[-of:]) or result)

    def __call__(self, *words: str) -> tuple[int, str, str]:
        """Exit code, stdout and stderr."""
        self.capsys.readouterr()
        code = main([words[0], "B", *words[1:]])
        return code, *self.capsys.readouterr()


@pytest.fixture
def commands(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> Commands:
    return Commands(monkeypatch, capsys)


class TestRun:
    @pytest.fixture
    def chat(self, commands: Commands) -> SimpleNamespace:
        chat = SimpleNamespace(answer=Answer(text="a cat", notes=["a note"]), warnings=["counts differ"])
        chat.ask = lambda video, question, options: commands.asked.extend([video, question, options]) or iter(["a ", "cat"])
        return chat

    def test_an_answer_is_printed_as_it_comes_and_notes_go_elsewhere(self, commands: Commands, chat: SimpleNamespace) -> None:
        commands.answering("runtime.chat.VideoChat.open", chat, of=2)
        words = "V what --max-new-tokens 7 --temperature 0.5 --top-p 0.9 --seed 3 --device cpu --threads 2 --bf16"
        assert commands("run", *words.split()) == (0, "a cat\n", "a note\n")
        placed, prompt, *asked = commands.asked
        assert (placed, prompt) == (EngineOptions("cpu", 2, True), None)
        assert asked == [Path("V"), "what", AskOptions(7, Sampling(0.5, 0.9, 3))]
        code, out, _ = commands("run", "V", "what", "--json")
        assert code == 0 and json.loads(out)["text"] == "a cat" and out.count("\n") == 1

    def test_a_remote_llm_is_asked_and_what_it_warns_of_is_said(self, commands: Commands, chat: SimpleNamespace) -> None:
        commands.answering("runtime.remote_chat.RemoteChat.check", None, of=2)
        commands.answering("runtime.remote_chat.RemoteChat.open", chat, of=3)
        words = "V what --llm http://host/v1 --llm-model m --llm-api-key k --llm-dtype bfloat16"
        assert commands("run", *words.split()) == (0, "a cat\n", "a note\nwarning: counts differ\n")
        video, question, remote, backend, _, *_ = commands.asked
        assert (video, question, backend) == (Path("V"), "what", "auto")
        assert (remote.url, remote.model, remote.api_key, remote.dtype) == ("http://host/v1", "m", "k", "bfloat16")


@pytest.mark.parametrize("json_", [False, True])
def test_watch_prints_an_answer_a_line_and_says_what_was_not_seen(commands: Commands, json_: bool) -> None:
    def answers(source, question, options, ask):
        commands.asked += [source, question, options, ask]
        yield Observation(2.0, Answer(text="one"), dropped=0, lost=0)
        yield Observation(12.5, Answer(text="two"), dropped=3, lost=4)

    watch = SimpleNamespace(encodes_once=False, answers=answers)
    commands.answering("runtime.watch.Watch", watch)
    words = "S what --every 500ms --window 4s --count 9 --realtime --max-new-tokens 5"
    code, out, err = commands("watch", *words.split(), *(["--json"] if json_ else []))
    assert code == 0
    assert (
        [json.loads(line)["text"] for line in out.splitlines()] == ["one", "two"]
        if json_
        else out == "     2.0 s  one\n    12.5 s  two\n"
    )
    once, dropped, lost = err.splitlines()
    assert "export it with --split" in once
    assert dropped.startswith("12.5 s: ") and ": 3 sampled frames dropped" in dropped
    assert lost.startswith("12.5 s: 4 frames ")
    assert commands.asked[1:] == ["S", "what", WatchOptions(0.5, 4, 9, True), AskOptions(5)]
    watch.encodes_once = True
    assert "--split" not in commands("watch", "S", "what")[2]


@pytest.mark.parametrize(("ok", "code"), [(True, 0), (False, 1)])
def test_parity_past_its_tolerance_is_exit_code_1(commands: Commands, ok: bool, code: int) -> None:
    row = Row("vision/encoder", "onnx", (2, 3), 0.0, 0.0, 1e-4, ok, "")
    commands.answering("runtime.tools.parity.parity", ParityReport("b", "fp32", (row,)), of=2)
    got, out, _ = commands("parity", "--backend", "onnx", "openvino", "--json", "--threads", "3")
    assert (got, json.loads(out)["ok"]) == (code, ok)
    assert commands.asked == [["onnx", "openvino"], EngineOptions("auto", 3)]
    assert commands("parity")[0] == code


def test_inspect_verifies_or_predicts_where_it_is_asked_to(commands: Commands) -> None:
    for tool, said in (("inspect", "facts"), ("predict", "times")):
        result = SimpleNamespace(as_dict=lambda said=said: {"of": said})
        commands.answering(f"runtime.tools.{tool}.{tool}", result, of=2)
        commands.patch.setattr(f"runtime.tools.{tool}.text", lambda report: report.as_dict()["of"])
    assert commands("inspect") == commands("inspect", "--verify") == (0, "facts\n", "")
    assert [bundle.verified for bundle in commands.asked] == [False, True]
    assert commands("inspect", "--predict", "orin") == (0, "times\n", "")
    assert commands.asked[3] == "orin"
    assert json.loads(commands("inspect", "--json")[1]) == {"of": "facts"}


class Screen(io.StringIO):
    """A stdout that knows what has been flushed to it."""

    flushed = ""

    def flush(self) -> None:
        self.flushed = self.getvalue()


def test_an_answer_is_on_the_screen_piece_by_piece(commands: Commands, monkeypatch: pytest.MonkeyPatch) -> None:
    screen = Screen()

    def ask(*_):
        for piece in ("a ", "cat"):
            yield piece
            commands.asked.append(screen.flushed)

    chat = SimpleNamespace(answer=Answer(text="a cat", notes=[]), ask=ask)
    monkeypatch.setattr("runtime.chat.VideoChat.open", lambda *_: chat)
    monkeypatch.setattr(sys, "stdout", screen)
    assert main(["run", "B", "V", "what"]) == 0
    assert commands.asked == ["a ", "a cat"]

    def answers(*_):
        yield Observation(1.0, Answer(text="one"), dropped=0, lost=0)
        commands.asked.append(screen.flushed.splitlines()[-1])

    monkeypatch.setattr("runtime.watch.Watch", lambda *_: SimpleNamespace(encodes_once=True, answers=answers))
    assert main(["watch", "B", "S", "what"]) == 0
    assert commands.asked[2:] == ["     1.0 s  one"]


def test_tokens_are_written_with_what_they_came_from(commands: Commands, tmp_path: Path) -> None:
    clip = SimpleNamespace(indices=[0, 5], timestamps=[0.0, 0.25], notes=["two frames are damaged"])
    visual = SimpleNamespace(tokens=np.ones((3, 2), np.float16), clip=clip, seconds={"decode": 1.5})
    encoder = SimpleNamespace(encode=lambda video: commands.asked.append(video) or visual)
    commands.answering("runtime.vision.encoder.VisionEncoder.open", encoder, of=2)
    file = tmp_path / "t.npz"
    assert commands("tokens", "V", "-o", str(file), "--backend", "onnx", "--threads", "2") == (
        0, f"{file}: visual_tokens [3, 2] float16\n", "two frames are damaged\n",
    )  # fmt: skip
    assert commands.asked == ["onnx", EngineOptions("auto", 2), Path("V")]
    with np.load(file) as written:
        assert {name: written[name].tolist() for name in written} == {
            "visual_tokens": [[1, 1]] * 3, "frames": [0, 5], "timestamps": [0.0, 0.25],
        }  # fmt: skip
        assert written["visual_tokens"].dtype == np.float16
    assert json.loads(commands("tokens", "V", "-o", str(file), "--json")[1]) == {
        "shape": [3, 2], "dtype": "float16", "frames": [0, 5], "file": str(file), "seconds": {"decode": 1.5},
    }  # fmt: skip
    assert [path.name for path in tmp_path.iterdir()] == ["t.npz"]


def test_a_bundle_is_hashed_aloud_where_it_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr("runtime.bundle.Bundle.open", lambda path, **how: asked.append((path, how)) or "bundle")
    assert [runtime.__main__._bundle(SimpleNamespace(bundle="B"), *more) for more in ((), (True,))] == ["bundle"] * 2
    assert asked == [("B", {"verify": False, "progress": None}), ("B", {"verify": True, "progress": runtime.__main__.log})]


@pytest.mark.parametrize("note", ["", "device cpu: no GPU"])
def test_where_auto_had_a_choice_it_is_said(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, note: str) -> None:
    asked = []
    placement = SimpleNamespace(options=EngineOptions("cpu", 2), note=note)
    monkeypatch.setattr("runtime.engine.place.place", lambda *arguments: asked.append(arguments) or placement)
    args = SimpleNamespace(device="auto", threads=2, bf16=True)
    assert runtime.__main__._placed(args, "bundle", "onnx") == placement.options
    assert asked == [("bundle", "onnx", EngineOptions("auto", 2, True))]
    assert capsys.readouterr().err == (f"{note}\n" if note else "")


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("1ms", 0.001), ("500ms", 0.5), ("0.25", 0.25), ("2s", 2.0), ("1.5s", 1.5), ("86400", 86400.0), ("86400s", 86400.0), ("86400000ms", 86400.0)],
)  # fmt: skip
def test_times_are_seconds_unless_they_say_otherwise(text: str, seconds: float) -> None:
    assert runtime.__main__._duration(text) == pytest.approx(seconds, rel=1e-12)


@pytest.mark.parametrize("text", ["0.9ms", "0", "-1s", "86401s", "", "s", "ms", "nan", "inf", "1h", "two", "1 ms s"])
def test_what_is_no_time_is_refused(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match="is no time from 1ms to a day"):
        runtime.__main__._duration(text)


def test_threads_are_a_number_from_0() -> None:
    assert [runtime.__main__._threads(text) for text in ("0", "1", "16")] == [0, 1, 16]
    for text in ("-1", "1.5", "", "x"):
        with pytest.raises(argparse.ArgumentTypeError, match=rf"^{text} threads; expected 0 \(the backend's choice\) or more$"):
            runtime.__main__._threads(text)


def test_a_doctor_needs_no_bundle(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    monkeypatch.setattr("runtime.tools.doctor.report", lambda: [SimpleNamespace(as_dict=lambda: {"name": "av"})])
    monkeypatch.setattr("runtime.tools.doctor.text", lambda checks: f"{len(checks)} checks")
    assert main(["doctor"]) == 0 and capsys.readouterr().out == "1 checks\n"
    assert main(["doctor", "--json"]) == 0 and json.loads(capsys.readouterr().out) == [{"name": "av"}]
