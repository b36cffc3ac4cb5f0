"""`build`: TensorRT engines beside a bundle's graphs."""

from __future__ import annotations

import argparse
from typing import Any

from runtime.cli.arguments import add_bundle, open_bundle, print_result
from runtime.core.options import add_options, options_from_args
from runtime.engine import trt_build


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_bundle(parser)
    add_options(parser, trt_build.BuildOptions)


def run(args: argparse.Namespace) -> int:
    built = [engine.as_dict() for engine in trt_build.build(open_bundle(args), options_from_args(trt_build.BuildOptions, args))]
    print_result(args, built, "\n".join(map(_line, built)))
    return 0


def _line(engine: dict[str, Any]) -> str:
    reused = "  (reused)" if engine["reused"] else ""
    return f"{engine['path']}  {engine['bytes'] / 1e6:.1f} MB  {engine['seconds']:.1f} s{reused}"
