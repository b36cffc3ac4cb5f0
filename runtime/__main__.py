"""`python -m runtime`: parse, call one public function, print. Results on stdout, progress on stderr.

run · tokens · watch · batch · serve · build · parity · bench · tune · plot · inspect · doctor
"""

from __future__ import annotations

if __name__ == "__main__":  # imports take a second, and Ctrl-C ends them like anything else
    from runtime.core.interrupts import leave_on_ctrl_c

    leave_on_ctrl_c()

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from runtime.cli.arguments import ArgumentParser
from runtime.core.errors import exit_code
from runtime.core.progress import log
from runtime.engine import BACKENDS, EngineOptions

if TYPE_CHECKING:
    from runtime.bundle import Bundle


def main(argv: list[str] | None = None) -> int:
    """Entry point; returns the exit code (0, 1 for a parity past tolerance, 2 for a user's error, 130 for Ctrl-C)."""
    return exit_code(lambda: _command(_parser().parse_args(argv)))


def _command(args: argparse.Namespace) -> int:
    return args.command(args)


def _run(args: argparse.Namespace) -> int:
    from runtime.chat import AskOptions, VideoChat
    from runtime.llm.sampling import Sampling
    from runtime.prompt.template import Prompt

    options = AskOptions(args.max_new_tokens, Sampling(args.temperature, args.top_p, args.seed))
    if args.llm != "local":
        return _run_remote(args, options)
    bundle = _bundle(args)
    prompt = Prompt(bundle) if bundle.has_llm else None
    if prompt:  # what is wrong with the request is said before gigabytes of weights are loaded
        VideoChat.check(prompt, args.video, args.question)
    placed = _placed(args, bundle, args.backend)
    chat = VideoChat.open(bundle, args.backend, placed, prompt)
    return _print_answer(args, chat, chat.ask(args.video, args.question, options))


def _run_remote(args: argparse.Namespace, options: Any) -> int:
    from runtime.remote_chat import RemoteChat
    from runtime.server.arguments import remote_of

    remote = remote_of(args)
    RemoteChat.check(args.video, args.question)
    bundle = _bundle(args)
    placed = _placed(args, bundle, args.backend)
    chat = RemoteChat.open(bundle, remote, args.backend, placed)
    code = _print_answer(args, chat, chat.ask(args.video, args.question, options))
    for warning in chat.warnings:
        log(f"warning: {warning}")
    return code


def _print_answer(args: argparse.Namespace, chat: Any, pieces: Any) -> int:
    for note in chat.answer.notes:
        log(note)
    for piece in pieces:
        if not args.json:
            print(piece, end="", flush=True)
    print(json.dumps(chat.answer.as_dict()) if args.json else "")
    return 0


def _tokens(args: argparse.Namespace) -> int:
    import numpy as np

    from runtime.core.files import atomic_file
    from runtime.vision.encoder import VisionEncoder

    with atomic_file(args.output) as temporary:  # an output that can't be written is refused before the work
        bundle = _bundle(args)
        placed = _placed(args, bundle, args.backend)
        visual = VisionEncoder.open(bundle, args.backend, placed).encode(args.video)
        with open(temporary, "wb") as file:
            np.savez(file, visual_tokens=visual.tokens, frames=visual.clip.indices, timestamps=visual.clip.timestamps)
    facts = {"shape": list(visual.tokens.shape), "dtype": str(visual.tokens.dtype), "frames": list(visual.clip.indices)}
    for note in visual.clip.notes:
        log(note)
    _print(
        args,
        facts | {"file": str(args.output), "seconds": visual.seconds},
        f"{args.output}: visual_tokens {facts['shape']} {facts['dtype']}",
    )
    return 0


def _serve(args: argparse.Namespace) -> int:
    from runtime.server.arguments import options_of
    from runtime.server.serve import run

    return run([args.bundle, *args.more], options_of(args), args.backend, _engine_options(args))


def _batch(args: argparse.Namespace) -> int:
    from dataclasses import asdict

    from runtime.cluster.batch import BatchOptions, run

    options = BatchOptions(
        workers=args.workers,
        part=args.part_rows,
        runner=args.runner,
        address=args.ray_address,
        retry_errors=args.retry_errors,
        backend=args.backend,
        device=args.device,
        threads=args.threads or 1,
    )
    result = run(args.bundle, args.videos, args.out, options)
    new = result.files - result.skipped
    text = f"{args.out}: {new} rows, {result.errors} with errors, {result.skipped} done before, {result.seconds:.1f} s ({result.runner})"
    _print(args, asdict(result), text)
    return 1 if result.errors else 0


def _watch(args: argparse.Namespace) -> int:
    from runtime.chat import AskOptions
    from runtime.watch import Watch, WatchOptions

    options, ask = WatchOptions(args.every, args.window, args.count, args.realtime), AskOptions(args.max_new_tokens)
    bundle = _bundle(args)
    placed = _placed(args, bundle, args.backend)
    watch = Watch(bundle, args.backend, placed)
    if not watch.encodes_once:
        log("this bundle encodes all its frames for every answer; export it with --split, and each frame is encoded once")
    for seen in watch.answers(args.source, args.question, options, ask):
        if seen.dropped:
            log(f"{seen.time:.1f} s: the engine is slower than the camera: {seen.dropped} sampled frames dropped, the newest kept")
        if seen.lost:
            log(f"{seen.time:.1f} s: {seen.lost} frames came damaged or without what they refer to, and are left out")
        print(json.dumps(seen.as_dict()) if args.json else f"{seen.time:8.1f} s  {seen.answer.text}", flush=True)
    return 0


def _build(args: argparse.Namespace) -> int:
    from runtime.engine.trt_build import BuildOptions, build

    options = {"backend": args.backend, "force": args.force, "plugin": args.plugin} | (
        {"target": args.target} if args.target else {}
    )
    built = [engine.as_dict() for engine in build(_bundle(args), BuildOptions(**options))]
    lines = [
        f"{one['path']}  {one['bytes'] / 1e6:.1f} MB  {one['seconds']:.1f} s{'  (reused)' if one['reused'] else ''}"
        for one in built
    ]
    _print(args, built, "\n".join(lines))
    return 0


def _parity(args: argparse.Namespace) -> int:
    from runtime.tools import parity

    report = parity.parity(_bundle(args), args.backend, _engine_options(args))
    _print(args, report.as_dict(), parity.text(report))
    return 0 if report.ok else 1


def _bench(args: argparse.Namespace) -> int:
    from runtime.tools import bench

    bundle = _bundle(args)
    placed = _placed(args, bundle, args.backend)
    options = bench.BenchOptions(
        video=args.video,
        rounds=args.rounds,
        new_tokens=args.max_new_tokens,
        backend=args.backend,
        device=placed.device,
        threads=args.threads,
        bf16=args.bf16,
    )
    report = bench.bench(bundle, options)
    _print(args, report.as_dict(), bench.text(report))
    return 0


def _tune(args: argparse.Namespace) -> int:
    from runtime.tools import tune

    report = tune.tune(_bundle(args), args.rounds)
    _print(args, report.as_dict(), tune.text(report))
    return 0


def _plot(args: argparse.Namespace) -> int:
    from runtime.tools.plot import plot

    bundle = _bundle(args)
    plot(bundle, args.video, args.output, _placed(args, bundle, "onnx"))
    _print(args, {"file": str(args.output)}, str(args.output))
    return 0


def _inspect(args: argparse.Namespace) -> int:
    from runtime.tools import inspect

    if args.predict:
        from runtime.tools import predict

        prediction = predict.predict(_bundle(args), args.predict)
        _print(args, prediction.as_dict(), predict.text(prediction))
        return 0
    facts = inspect.inspect(_bundle(args, verify=args.verify))
    _print(args, facts.as_dict(), inspect.text(facts))
    return 0


def _doctor(args: argparse.Namespace) -> int:
    from runtime.tools import doctor

    checks = doctor.report()
    _print(args, [check.as_dict() for check in checks], doctor.text(checks))
    return 0


def _bundle(args: argparse.Namespace, verify: bool = False) -> Bundle:
    from runtime.bundle import Bundle

    return Bundle.open(args.bundle, verify=verify, progress=log if verify else None)


def _engine_options(args: argparse.Namespace) -> EngineOptions:
    return EngineOptions(device=args.device, threads=args.threads, bf16=args.bf16)


def _placed(args: argparse.Namespace, bundle: Bundle, backend: str) -> EngineOptions:
    """The engine's options with a device; where `auto` had a choice it is said."""
    from runtime.engine.place import place

    placement = place(bundle, backend, _engine_options(args))
    if placement.note:
        log(placement.note)
    return placement.options


def _threads(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text} threads; expected 0 (the backend's choice) or more")
    return int(text)


def _duration(text: str) -> float:
    for unit, scale in (("ms", 0.001), ("s", 1.0), ("", 1.0)):
        number = text.removesuffix(unit)
        try:
            seconds = float(number) * scale if text.endswith(unit) else None
        except ValueError:
            continue
        if seconds is not None and 0.001 <= seconds <= 86400:
            return seconds
    raise argparse.ArgumentTypeError(f"{text!r} is no time from 1ms to a day; expected e.g. 2s or 500ms")


def _print(args: argparse.Namespace, data: Any, text: str) -> None:
    print(json.dumps(data, indent=1) if args.json else text)


def _parser() -> ArgumentParser:
    from runtime.server.arguments import add_arguments, add_llm_arguments

    parser = ArgumentParser(prog="python -m runtime", description="Answer questions about videos from a bundle, without torch.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(name: str, function: Any, text: str, bundle: bool = True) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=text, description=text)
        sub.set_defaults(command=function)
        if bundle:
            sub.add_argument("bundle", type=Path, help="directory that `python -m export` wrote")
        sub.add_argument("--json", action="store_true", help="the result as JSON on stdout")
        return sub

    def engine(sub: argparse.ArgumentParser, backend: bool = True) -> None:
        if backend:
            sub.add_argument("--backend", choices=["auto", *BACKENDS], default="auto")
        device = "default auto: the NVIDIA GPU where it can be used, else the CPU; gpu and npu are OpenVINO's"
        sub.add_argument("--device", default="auto", metavar="auto|cpu|cuda|gpu|npu", help=device)
        sub.add_argument("--bf16", action="store_true", help="compute in bf16 (--backend openvino on a CPU): faster, less exact")
        sub.add_argument("--threads", type=_threads, default=0, help="CPU threads (default: the backend's choice)")

    run = command("run", _run, "answer a question about a video; the answer streams")
    run.add_argument("video", type=Path)
    run.add_argument("question")
    run.add_argument("--max-new-tokens", type=int, default=128)
    run.add_argument("--temperature", type=float, default=0.0, help="0 is greedy (default)")
    run.add_argument("--top-p", type=float, default=1.0)
    run.add_argument("--seed", type=int)
    add_llm_arguments(run)
    engine(run)

    tokens = command("tokens", _tokens, "write a video's compressed visual tokens")
    tokens.add_argument("video", type=Path)
    tokens.add_argument("-o", "--output", type=Path, required=True, metavar="FILE.npz")
    engine(tokens)

    batch = command("batch", _batch, "write many videos' compressed tokens to Parquet; exit 1 where some have errors")
    batch.add_argument("videos", nargs="+", help="files, directories, globs, or @FILE with one path a line")
    batch.add_argument("--out", type=Path, required=True, metavar="DIR", help="Parquet parts; the same command again resumes")
    batch.add_argument("--workers", type=int, default=2, help="clips encoded at once (default %(default)s)")
    batch.add_argument("--part-rows", type=int, default=64, help="rows of one part (default %(default)s)")
    batch.add_argument("--runner", choices=["auto", "ray", "local"], default="auto", help="default: Ray where it is installed")
    batch.add_argument("--ray-address", metavar="ADDRESS", help="a running cluster; default: one of its own")
    batch.add_argument("--retry-errors", action="store_true", help="work again on files whose rows have errors")
    engine(batch)

    serve = command("serve", _serve, "answer over HTTP as an OpenAI-compatible server, with a page at /")
    add_arguments(serve)
    engine(serve)

    watch = command("watch", _watch, "answer a question about a stream, again and again")
    watch.add_argument("source", help="a video file, a camera (/dev/videoN) or rtsp://…")
    watch.add_argument("question")
    watch.add_argument("--every", type=_duration, default=2.0, metavar="TIME", help="between answers, e.g. 2s or 500ms")
    watch.add_argument("--window", type=_duration, default=8.0, metavar="TIME", help="what the sampled frames span")
    watch.add_argument("--count", type=int, default=0, help="stop after so many answers (default 0: at the end)")
    watch.add_argument("--realtime", action="store_true", help="play a file at its own speed, as a camera would")
    watch.add_argument("--max-new-tokens", type=int, default=128)
    engine(watch)

    build = command("build", _build, "build TensorRT engines")
    build.add_argument(
        "--backend",
        choices=["auto", "tensorrt", "tensorrt-rtx"],
        default="auto",
        help="default auto: tensorrt where it is installed and there is a GPU, else tensorrt-rtx",
    )
    build.add_argument("--target", help="GPU to build for (default: what the backend can do here)")
    build.add_argument(
        "--plugin", default="none", metavar="none|aot|FILE.so", help="the compression plugin (backend tensorrt only)"
    )
    build.add_argument("--force", action="store_true", help="build again where an engine of this very graph exists")

    parity = command("parity", _parity, "compare engines with torch's recorded outputs, stage by stage; exit 1 past tolerance")
    parity.add_argument("--backend", nargs="+", choices=list(BACKENDS), default=[], help="default: all that can run here")
    engine(parity, backend=False)

    bench = command("bench", _bench, "time every stage: median and p90")
    bench.add_argument("--video", type=Path, help="decode and preprocess this file too (default: the recorded input)")
    bench.add_argument("--rounds", type=int, default=5)
    bench.add_argument("--max-new-tokens", type=int, default=32)
    engine(bench)

    tune = command("tune", _tune, "measure CPU backends and threads here, for --backend auto")
    tune.add_argument("--rounds", type=int, default=3)

    plot = command("plot", _plot, "draw the frames with token norms, NSP's weights and PTG's summaries")
    plot.add_argument("video", type=Path)
    plot.add_argument("-o", "--output", type=Path, required=True, metavar="FILE.png")
    engine(plot, backend=False)

    inspect = command("inspect", _inspect, "what a bundle is, its token budget, the memory that it will need")
    inspect.add_argument("--verify", action="store_true", help="hash every file")
    inspect.add_argument(
        "--predict", metavar="cpu|orin|thor|h200", help="what each stage should take there, from operations and bytes"
    )

    command("doctor", _doctor, "what is installed and usable here", bundle=False)
    return parser


if __name__ == "__main__":
    sys.exit(main())
