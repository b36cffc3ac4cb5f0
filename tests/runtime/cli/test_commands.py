"""`python -m runtime`: what a command line says reaches the function that does the work; what is printed; exit codes. No bundle needed."""

from __future__ import annotations

import io
import json
import shlex
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from refusal import refused

import runtime.cli.arguments
from runtime.__main__ import main
from runtime.chat import Answer, AskOptions
from runtime.cli.commands import COMMANDS
from runtime.cluster.batch import BatchOptions, BatchResult
from runtime.core.progress import log
from runtime.engine import EngineOptions
from runtime.engine.trt_build import BuildOptions, BuiltEngine
from runtime.llm.remote import LLMOptions
from runtime.llm.sampling import Sampling
from runtime.media.limits import DecodeLimits
from runtime.server.options import MIB, ServerOptions
from runtime.tools.bench import BenchOptions
from runtime.tools.parity import ParityReport
from runtime.tools.rows import Row
from runtime.watch import Observation, WatchOptions


class Commands:
    """Commands on a bundle "B" that need none; asked: the arguments of what they call."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture):
        self.patch, self.capsys = monkeypatch, capsys
        self.asked: list[Any] = []

        def opened(path: Path, verify: bool, progress: Any) -> SimpleNamespace:
            return SimpleNamespace(path=path, has_llm=False, verified=(verify, progress))

        def place(bundle: Any, backend: str, engine: EngineOptions) -> SimpleNamespace:
            assert bundle.path == Path("B")
            return SimpleNamespace(options=engine.on("cpu" if backend == "onnx" else "cuda"), note="")

        monkeypatch.setattr("runtime.bundle.Bundle.open", opened)
        monkeypatch.setattr(runtime.cli.arguments, "place", place)

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


@pytest.fixture
def tools(commands: Commands) -> Commands:
    """Commands whose public functions note all their arguments and do nothing."""
    engine = BuiltEngine("vision", Path("e/vision.engine"), 2_500_000, 1.25, True)
    report = SimpleNamespace(ok=False, as_dict=dict)
    results = {
        "cluster.batch.run": BatchResult(9, 4, 0, 2, 3.25, "local"), "server.serve.run": 0, "engine.trt_build.build": [engine],
        "tools.bench.bench": report, "tools.tune.tune": report, "tools.parity.parity": report, "tools.plot.plot": None,
    }  # fmt: skip
    for name, result in results.items():
        commands.answering(f"runtime.{name}", result, of=9)
    for tool in ("bench", "tune", "parity"):
        commands.patch.setattr(f"runtime.tools.{tool}.text", lambda _: "a report")
    return commands


@pytest.mark.parametrize(
    ("line", "arguments"),
    [
        ("batch v.mp4 --out o", [Path("B"), ["v.mp4"], Path("o"), BatchOptions()]),
        (
            "batch v.mp4 @more --out o --workers 3 --part-rows 5 --runner ray --ray-address auto --retry-errors --backend openvino "
            "--device cpu --threads 7 --bf16",
            [
                *(Path("B"), ["v.mp4", "@more"], Path("o")),
                BatchOptions(3, 5, "ray", "auto", True, "openvino", EngineOptions("cpu", 7, True)),
            ],
        ),
        ("serve", [[Path("B")], ServerOptions()]),
        (
            "serve C --host ::1 --port 0 --api-key k --llm http://h/v1 --llm-model m --llm-api-key l --llm-dtype bfloat16 --batch 2 "
            "--queue 3 --deadline 4.5 --drain 5.5 --max-body-mib 6 --max-media-mib 7 --max-clip-seconds 8.5 --max-clip-pixels 9 "
            "--max-decode-seconds 10.5 --cache-mib 11 --allow-media-host one --allow-media-host two --allow-media-path . "
            "--allow-media-path .. --backend onnx --device cpu --threads 3 --bf16",
            [
                [Path("B"), Path("C")],
                ServerOptions(
                    host="::1", port=0, api_key="k", llm=LLMOptions("http://h/v1", "m", "l", "bfloat16"), batch=2, queue=3,
                    deadline=4.5, drain=5.5, max_body=6 * MIB, max_media=7 * MIB, decode_seconds=10.5, cache=11 * MIB,
                    media_hosts=("one", "two"), media_paths=(Path("."), Path("..")), limits=DecodeLimits(pixels=9, seconds=8.5),
                    backend="onnx", engine=EngineOptions("cpu", 3, True),
                ),
            ],
        ),
        ("build", ["bundle", BuildOptions()]),
        (
            "build --backend tensorrt --target sm87 --plugin aot --force",
            ["bundle", BuildOptions("tensorrt", target="sm87", force=True, plugin="aot")],
        ),
        ("bench", ["bundle", BenchOptions(engine=EngineOptions("cuda"))]),
        (
            "bench --video c.mp4 --rounds 2 --max-new-tokens 3 --backend openvino --threads 4 --bf16",
            ["bundle", BenchOptions(Path("c.mp4"), 2, 3, "openvino", EngineOptions("cuda", 4, True))],
        ),
        ("tune", ["bundle", 3]),
        ("tune --rounds 4", ["bundle", 4]),
        ("plot c.mp4 -o p.png --threads 2 --bf16", ["bundle", Path("c.mp4"), Path("p.png"), EngineOptions("cpu", 2, True)]),
        ("parity --backend onnx openvino --device cpu --threads 2", ["bundle", ["onnx", "openvino"], EngineOptions("cpu", 2)]),
        ("parity", ["bundle", [], EngineOptions()]),
    ],
)  # fmt: skip
def test_a_command_hands_over_what_the_line_says(tools: Commands, line: str, arguments: list[Any]) -> None:
    code, _, _ = tools(*line.split())
    assert repr(["bundle" if isinstance(one, SimpleNamespace) else one for one in tools.asked]) == repr(arguments)
    assert code == line.startswith("parity")  # past tolerance, as its report says


@pytest.mark.parametrize(
    ("line", "out"),
    [
        ("batch v --out o", "o: 5 rows, 0 with errors, 4 done before, 3.2 s (local)\n"),
        ("build", "e/vision.engine  2.5 MB  1.2 s  (reused)\n"),
        ("tune", "a report\n"),
        ("plot c.mp4 -o p.png", "p.png\n"),
        ("tune --json", "{}\n"),
    ],
)
def test_the_result_alone_is_on_stdout(tools: Commands, line: str, out: str) -> None:
    assert tools(*line.split())[1] == out


def test_rows_with_errors_are_exit_code_1(tools: Commands) -> None:
    tools.answering("runtime.cluster.batch.run", BatchResult(2, 0, 1, 1, 1.0, "local"))
    assert tools("batch", "v.mp4", "--out", "o")[0] == 1


@pytest.mark.parametrize("note", ["", "device cpu: no GPU"])
def test_where_auto_had_a_choice_it_is_logged(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, note: str) -> None:
    asked = []
    placement = SimpleNamespace(options=EngineOptions("cpu", 2), note=note)
    monkeypatch.setattr(runtime.cli.arguments, "place", lambda *arguments: asked.append(arguments) or placement)
    assert runtime.cli.arguments.placed("bundle", "onnx", EngineOptions("auto", 2, True)) == placement.options
    assert asked == [("bundle", "onnx", EngineOptions("auto", 2, True))]
    assert capsys.readouterr().err == (f"{note}\n" if note else "")


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(capsys: pytest.CaptureFixture, command: str) -> None:
    with pytest.raises(SystemExit) as ended:
        main([command, "--help"])
    assert ended.value.code == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert COMMANDS[command] in shown and f"python -m runtime {command} [-h]" in shown


@pytest.mark.parametrize(
    ("line", "named"),
    [
        ("bench B --threads -1", "--threads"),
        ("bench B --threads 1.5", "--threads"),
        ("bench B --rounds 0", "--rounds"),
        ("run B c what --max-new-tokens 0", "--max-new-tokens"),
        ("run B c what --top-p 0", "--top-p"),
        ("run B c what --llm http://h/v1", "--llm-model"),
        ("watch B c what --every 0.5ms", "--every"),
        ("watch B c what --window 86401", "--window"),
        ("watch B c what --temperature 1", "--temperature"),
        ("tokens B c.mp4", "--output"),
        ("batch B v.mp4", "--out"),
        ("batch B v.mp4 --out o --part-rows 0", "--part-rows"),
        ("batch B v --out o --runner slurm", "--runner"),
        ("plot B c.mp4", "--output"),
        ("serve B --llm-dtype float32", "--llm-dtype"),
        ("serve B --port 65536", "--port"),
        ("build B --backend onnx", "--backend"),
        ("build B --forc", "--force"),
        ("'' B", "COMMAND"),
        ("", "COMMAND"),
    ],
)
def test_what_an_option_does_not_take_is_refused_by_its_name(capsys: pytest.CaptureFixture, line: str, named: str) -> None:
    assert named in refused(capsys, main, *shlex.split(line))


def test_a_console_script_reads_the_process_s_command_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    monkeypatch.setattr("runtime.__main__.leave_on_ctrl_c", lambda: None)  # it would change this process for good
    monkeypatch.setattr(sys, "argv", ["gridpool", "tune", "B", "--rounds", "x"])
    assert main() == 2
    assert "--rounds" in capsys.readouterr().err
