"""`bench`: the time and memory of each stage of an answer."""

from __future__ import annotations

import argparse

from runtime.cli.arguments import add_bundle, open_bundle, print_result
from runtime.core.options import add_options, options_from_args
from runtime.tools import bench


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_bundle(parser)
    add_options(parser, bench.BenchOptions)


def run(args: argparse.Namespace) -> int:
    report = bench.bench(open_bundle(args), options_from_args(bench.BenchOptions, args))
    print_result(args, report.as_dict(), bench.text(report))
    return 0
