"""`python -m runtime`: what a command line says reaches the function that does the work, and what is left out is the default."""

from __future__ import annotations

import shlex
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import runtime.__main__
from runtime.__main__ import _parser, main
from runtime.cluster.batch import BatchOptions, BatchResult
from runtime.engine import EngineOptions
from runtime.engine.trt_build import BuildOptions, BuiltEngine
from runtime.media.clip import DecodeLimits
from runtime.server.options import MIB, ServerOptions
from runtime.tools.bench import BenchOptions

ENGINE = {"backend": "auto", "device": "auto", "bf16": False, "threads": 0}
LLM = {"llm": "local", "llm_model": None, "llm_api_key": None, "llm_dtype": "float16"}


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (
            "run b c.mp4 what?",
            {"video": Path("c.mp4"), "question": "what?", "max_new_tokens": 128, "temperature": 0.0, "top_p": 1.0, "seed": None}
            | LLM
            | ENGINE,
        ),
        (
            "run b c.mp4 what? --max-new-tokens 7 --temperature 0.5 --top-p 0.9 --seed 3 --llm http://h/v1 --llm-model m "
            "--llm-api-key k --llm-dtype bfloat16 --backend onnx --device cpu --bf16 --threads 2 --json",
            {"video": Path("c.mp4"), "question": "what?", "max_new_tokens": 7, "temperature": 0.5, "top_p": 0.9, "seed": 3}
            | {"llm": "http://h/v1", "llm_model": "m", "llm_api_key": "k", "llm_dtype": "bfloat16"}
            | {"backend": "onnx", "device": "cpu", "bf16": True, "threads": 2, "json": True},
        ),
        (
            "watch b rtsp://camera what?",
            {"source": "rtsp://camera", "question": "what?", "every": 2.0, "window": 8.0, "count": 0, "realtime": False}
            | {"max_new_tokens": 128}
            | ENGINE,
        ),
        (
            "watch b 0 what? --every 500ms --window 3 --count 4 --realtime --max-new-tokens 9",
            {"source": "0", "question": "what?", "every": 0.5, "window": 3.0, "count": 4, "realtime": True, "max_new_tokens": 9}
            | ENGINE,
        ),
        ("tokens b c.mp4 -o t.npz", {"video": Path("c.mp4"), "output": Path("t.npz")} | ENGINE),
        (
            "plot b c.mp4 --output p.png --threads 1",
            {"video": Path("c.mp4"), "output": Path("p.png"), "device": "auto", "bf16": False, "threads": 1},
        ),
        ("parity b --backend onnx openvino", {**ENGINE, "backend": ["onnx", "openvino"]}),
        ("parity b", {**ENGINE, "backend": []}),
        ("tune b", {"rounds": 3}),
        ("tune b --rounds 5", {"rounds": 5}),
        ("inspect b", {"verify": False, "predict": None}),
        ("inspect b --verify --predict orin", {"verify": True, "predict": "orin"}),
    ],
)
def test_words_are_read_as_what_they_stand_for(line, expected):
    values = vars(_parser().parse_args(line.split()))
    del values["command"]
    assert values == {"bundle": Path("b"), "json": False} | expected


@pytest.fixture
def asked(monkeypatch) -> list[Any]:
    """What the public functions were called with, which do nothing; bundles are opened and placed by name alone."""
    calls: list[Any] = []

    def stand_in(module: str, name: str, result: Any) -> None:
        monkeypatch.setattr(f"{module}.{name}", lambda *arguments: calls.append(arguments) or result)

    engine = BuiltEngine("vision", Path("e/vision.engine"), 2_500_000, 1.25, True)
    report = SimpleNamespace(ok=False, as_dict=dict)
    stand_in("runtime.cluster.batch", "run", BatchResult(9, 4, 0, 2, 3.25, "local"))
    stand_in("runtime.server.serve", "run", 0)
    stand_in("runtime.engine.trt_build", "build", [engine])
    stand_in("runtime.tools.bench", "bench", report)
    stand_in("runtime.tools.tune", "tune", report)
    stand_in("runtime.tools.parity", "parity", report)
    stand_in("runtime.tools.plot", "plot", None)
    for tool in ("bench", "tune", "parity"):
        monkeypatch.setattr(f"runtime.tools.{tool}.text", lambda _: "a report")
    monkeypatch.setattr(runtime.__main__, "_bundle", lambda args, **_: f"bundle {args.bundle}")

    def placed(args, bundle, backend):  # as where ONNX Runtime's wheel is that for CPUs
        return EngineOptions("cpu" if backend == "onnx" else "cuda", args.threads, args.bf16)

    monkeypatch.setattr(runtime.__main__, "_placed", placed)
    return calls


@pytest.mark.parametrize(
    ("line", "arguments"),
    [
        ("batch b v.mp4 --out o", (Path("b"), ["v.mp4"], Path("o"), BatchOptions())),
        (
            "batch b v.mp4 @more --out o --workers 3 --part-rows 5 --runner ray --ray-address auto --retry-errors --backend openvino "
            "--device cpu --threads 7",
            (Path("b"), ["v.mp4", "@more"], Path("o"), BatchOptions(3, 5, "ray", "auto", True, "openvino", "cpu", 7)),
        ),
        ("serve b", ([Path("b")], ServerOptions(), "auto", EngineOptions("auto", 0, False))),
        (
            "serve b c --host ::1 --port 0 --api-key k --llm http://h/v1 --llm-model m --llm-api-key l --llm-dtype bfloat16 --batch 2 "
            "--queue 3 --deadline 4.5 --drain 5.5 --max-body-mib 6 --max-media-mib 7 --max-clip-seconds 8.5 --max-clip-pixels 9 "
            "--max-decode-seconds 10.5 --cache-mib 11 --allow-media-host one --allow-media-host two --allow-media-path . "
            "--backend onnx --device cpu --threads 3",
            (
                [Path("b"), Path("c")],
                ServerOptions(
                    host="::1", port=0, api_key="k", llm="http://h/v1", llm_model="m", llm_api_key="l", llm_dtype="bfloat16",
                    batch=2, queue=3, deadline=4.5, drain=5.5, max_body=6 * MIB, max_media=7 * MIB, decode_seconds=10.5,
                    cache=11 * MIB, media_hosts=("one", "two"), media_paths=(Path("."),),
                    limits=DecodeLimits(pixels=9, seconds=8.5),
                ),
                "onnx",
                EngineOptions("cpu", 3, False),
            ),
        ),
        ("build b", ("bundle b", BuildOptions())),
        (
            "build b --backend tensorrt --target sm87 --plugin aot --force",
            ("bundle b", BuildOptions("tensorrt", target="sm87", force=True, plugin="aot")),
        ),
        ("bench b", ("bundle b", BenchOptions(device="cuda"))),
        (
            "bench b --video c.mp4 --rounds 2 --max-new-tokens 3 --backend openvino --threads 4 --bf16",
            ("bundle b", BenchOptions(Path("c.mp4"), 2, 3, "openvino", "cuda", 4, True)),
        ),
        ("tune b --rounds 4", ("bundle b", 4)),
        ("plot b c.mp4 -o p.png --threads 2 --bf16", ("bundle b", Path("c.mp4"), Path("p.png"), EngineOptions("cpu", 2, True))),
        ("parity b --backend onnx --device cpu --threads 2", ("bundle b", ["onnx"], EngineOptions("cpu", 2, False))),
    ],
)  # fmt: skip
def test_a_command_hands_over_what_was_said(asked, capsys, line, arguments):
    code = main(line.split())
    assert asked == [arguments]
    assert code == line.startswith("parity")  # past tolerance, as its report says


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("batch b v --out o", "o: 5 rows, 0 with errors, 4 done before, 3.2 s (local)\n"),
        ("build b", "e/vision.engine  2.5 MB  1.2 s  (reused)\n"),
        ("tune b", "a report\n"),
        ("plot b c.mp4 -o p.png", "p.png\n"),
        ("tune b --json", "{}\n"),
    ],
)
def test_the_result_is_what_stdout_holds(asked, capsys, line, said):
    main(line.split())
    assert capsys.readouterr().out == said


def test_rows_with_errors_are_exit_code_1(asked, monkeypatch, capsys):
    monkeypatch.setattr("runtime.cluster.batch.run", lambda *_: BatchResult(2, 0, 1, 1, 1.0, "local"))
    assert main(["batch", "b", "v.mp4", "--out", "o"]) == 1


@pytest.mark.parametrize(
    ("command", "options"),
    [
        ("run", "--device auto|cpu|cuda|gpu|npu;--llm local|URL;--llm-model NAME"),
        ("tokens", "-o FILE.npz;--device auto|cpu|cuda|gpu|npu"),
        ("batch", "--out DIR;--ray-address ADDRESS;clips encoded at once (default 2);rows of one part (default 64)"),
        (
            "serve",
            "[BUNDLE ...];--deadline S;--drain S;--max-clip-seconds S;--max-clip-pixels N;--max-decode-seconds S;"
            "--allow-media-host HOST;--allow-media-path DIR;any free one (default 8000);decoded together (default 8);"
            "in the environment as GRIDPOOL_API_KEY;in the environment as GRIDPOOL_LLM_API_KEY",
        ),
        ("watch", "--every TIME;--window TIME"),
        ("build", "--plugin none|aot|FILE.so"),
        ("plot", "-o FILE.png"),
        ("inspect", "--predict cpu|orin|thor|h200"),
    ],
)
def test_help_says_what_an_option_takes(capsys, command, options):
    with pytest.raises(SystemExit):
        main([command, "--help"])
    shown = " ".join(capsys.readouterr().out.split())
    assert [option for option in options.split(";") if option not in shown] == []


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("bench b --threads -1", "argument --threads: -1 threads; expected 0 (the backend's choice) or more"),
        ("watch b c what --every 0.5ms", "argument --every: '0.5ms' is no time from 1ms to a day; expected e.g. 2s or 500ms"),
        ("watch b c what --window 86401", "argument --window: '86401' is no time from 1ms to a day; expected e.g. 2s or 500ms"),
        ("tokens b c.mp4", "the following arguments are required: -o/--output"),
        ("batch b v.mp4", "the following arguments are required: --out"),
        ("plot b c.mp4", "the following arguments are required: -o/--output"),
        ("serve b --llm-dtype float32", "argument --llm-dtype: invalid choice: 'float32'"),
        ("build b --backend onnx", "argument --backend: invalid choice: 'onnx'"),
        ("batch b v --out o --runner slurm", "argument --runner: invalid choice: 'slurm'"),
        ("'' b", "argument COMMAND: invalid choice: ''"),
    ],
)
def test_what_an_option_does_not_take_is_refused(capsys, line, said):
    assert main(shlex.split(line)) == 2
    assert capsys.readouterr().err.startswith(f"error: {said}")
