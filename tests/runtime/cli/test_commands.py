"""`python -m runtime`: what a command line says reaches the function that does the work; what is printed; exit codes. No bundle needed."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from cli_commands import Commands
from refusal import refused

from runtime.__main__ import main
from runtime.cli.commands import COMMANDS
from runtime.cluster.batch import BatchOptions, BatchResult
from runtime.engine import EngineOptions
from runtime.engine.trt_build import BuildOptions, BuiltEngine
from runtime.llm.remote import LLMOptions
from runtime.media.limits import DecodeLimits
from runtime.server.options import MIB, ServerOptions
from runtime.tools.bench import BenchOptions


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
        ("bench", ["bundle", BenchOptions()]),
        (
            "bench --video c.mp4 --rounds 2 --max-new-tokens 3 --backend openvino --threads 4 --bf16",
            ["bundle", BenchOptions(Path("c.mp4"), 2, 3, "openvino", EngineOptions("auto", 4, True))],
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
