"""`plot`: a picture of what compression does with a video's frames."""

from __future__ import annotations

import argparse
from pathlib import Path

from runtime.cli.arguments import add_bundle, open_bundle, print_result
from runtime.core.options import add_options, options_from_args
from runtime.engine import EngineOptions, placed
from runtime.tools import plot


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_bundle(parser)
    parser.add_argument("video", type=Path)
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="FILE.png")
    add_options(parser, EngineOptions)


def run(args: argparse.Namespace) -> int:
    engine, bundle = options_from_args(EngineOptions, args), open_bundle(args)
    plot.plot(bundle, args.video, args.output, placed(bundle, "onnx", engine))
    print_result(args, {"file": str(args.output)}, str(args.output))
    return 0
