"""What `run`, `tokens`, `watch`, `parity`, `inspect` and `doctor` hand on and print, and their exit codes, without a bundle."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from cli_commands import Commands

from runtime.__main__ import main
from runtime.chat import Answer, AskOptions
from runtime.core.progress import log
from runtime.engine import EngineOptions
from runtime.llm.sampling import Sampling
from runtime.server.options import MIB
from runtime.tools.compare import Row
from runtime.tools.parity import ParityReport
from runtime.watch import Observation, WatchOptions


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
    commands.answering("runtime.cli.watch.Watch", watch)
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
    for tool, said, arguments in (("inspect", "facts", 3), ("predict", "times", 2)):
        result = SimpleNamespace(as_dict=lambda said=said: {"of": said})
        commands.answering(f"runtime.tools.{tool}.{tool}", result, of=arguments)
        commands.patch.setattr(f"runtime.tools.{tool}.text", lambda report: report.as_dict()["of"])
    assert commands("inspect") == commands("inspect", "--verify") == (0, "facts\n", "")
    assert [bundle.verified for bundle in commands.asked[::3]] == [(False, None), (True, log)]
    assert commands.asked[1:3] == [8, 256 * MIB]  # what a server holds by default
    assert commands("inspect", "--predict", "orin") == (0, "times\n", "")
    assert commands.asked[7] == "orin"
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

    monkeypatch.setattr("runtime.cli.watch.Watch", lambda *_: SimpleNamespace(encodes_once=True, answers=answers))
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
    assert commands.asked == ["onnx", EngineOptions("cpu", 2), Path("V")]
    with np.load(file) as written:
        assert {name: written[name].tolist() for name in written} == {
            "visual_tokens": [[1, 1]] * 3, "frames": [0, 5], "timestamps": [0.0, 0.25],
        }  # fmt: skip
        assert written["visual_tokens"].dtype == np.float16
    assert json.loads(commands("tokens", "V", "-o", str(file), "--json")[1]) == {
        "shape": [3, 2], "dtype": "float16", "frames": [0, 5], "file": str(file), "seconds": {"decode": 1.5},
    }  # fmt: skip
    assert [path.name for path in tmp_path.iterdir()] == ["t.npz"]


def test_a_doctor_needs_no_bundle(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    monkeypatch.setattr("runtime.tools.doctor.report", lambda: [SimpleNamespace(as_dict=lambda: {"name": "av"})])
    monkeypatch.setattr("runtime.tools.doctor.text", lambda checks: f"{len(checks)} checks")
    assert main(["doctor"]) == 0 and capsys.readouterr().out == "1 checks\n"
    assert main(["doctor", "--json"]) == 0 and json.loads(capsys.readouterr().out) == [{"name": "av"}]
