"""`bench`: the time and memory of each stage of an answer."""

from __future__ import annotations

import argparse
from dataclasses import replace

from runtime.cli.arguments import add_bundle, open_bundle, print_result
from runtime.core.options import add_options, options_from_args
from runtime.engine import placed
from runtime.tools import bench


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_bundle(parser)
    add_options(parser, bench.BenchOptions)


def run(args: argparse.Namespace) -> int:
    bundle, options = open_bundle(args), options_from_args(bench.BenchOptions, args)
    report = bench.bench(bundle, replace(options, engine=placed(bundle, options.backend, options.engine)))
    print_result(args, report.as_dict(), bench.text(report))
    return 0
