"""`parity`: engines against torch's recorded outputs; exit code 1 where one is past its tolerance."""

from __future__ import annotations

import argparse

from runtime.cli.arguments import add_bundle, open_bundle, print_result
from runtime.core.options import add_options, options_from_args
from runtime.engine import BACKENDS, EngineOptions
from runtime.tools import parity


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_bundle(parser)
    parser.add_argument("--backend", nargs="+", choices=list(BACKENDS), default=[], help="default: all that can run here")
    add_options(parser, EngineOptions)


def run(args: argparse.Namespace) -> int:
    report = parity.parity(open_bundle(args), args.backend, options_from_args(EngineOptions, args))
    print_result(args, report.as_dict(), parity.text(report))
    return 0 if report.ok else 1
