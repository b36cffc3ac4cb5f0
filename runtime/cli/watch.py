"""`watch`: the same question about a stream every few seconds; an answer a line."""

from __future__ import annotations

import argparse
import json

from runtime.chat import AskOptions
from runtime.cli.arguments import EngineChoice, add_bundle, open_with_engine
from runtime.core.options import add_options, options_from_args
from runtime.core.progress import log
from runtime.watch import Watch, WatchOptions


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_bundle(parser)
    parser.add_argument("source", help="a video file, a camera (/dev/videoN) or rtsp://…")
    parser.add_argument("question")
    add_options(parser, WatchOptions)
    add_options(parser, AskOptions, without=("sampling",))
    add_options(parser, EngineChoice)


def run(args: argparse.Namespace) -> int:
    options, ask = options_from_args(WatchOptions, args), options_from_args(AskOptions, args)
    watch = Watch(*open_with_engine(args))
    if not watch.encodes_once:
        log("this bundle encodes all its frames for every answer; export it with --split, and each frame is encoded once")
    for seen in watch.answers(args.source, args.question, options, ask):
        if seen.dropped:
            log(f"{seen.time:.1f} s: the engine is slower than the camera: {seen.dropped} sampled frames dropped, the newest kept")
        if seen.lost:
            log(f"{seen.time:.1f} s: {seen.lost} frames came damaged or without what they refer to, and are left out")
        print(json.dumps(seen.as_dict()) if args.json else f"{seen.time:8.1f} s  {seen.answer.text}", flush=True)
    return 0
