"""`tune`: which CPU backend and how many threads are fastest here; `--backend auto` then uses them."""

from __future__ import annotations

import argparse

from runtime.cli.arguments import add_bundle, open_bundle, print_result
from runtime.tools import tune


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_bundle(parser)
    parser.add_argument("--rounds", type=int, default=3, help="rounds that count (default: %(default)s)")


def run(args: argparse.Namespace) -> int:
    report = tune.tune(open_bundle(args), args.rounds)
    print_result(args, report.as_dict(), tune.text(report))
    return 0
