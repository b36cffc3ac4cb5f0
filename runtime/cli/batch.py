"""`batch`: the compressed tokens of many videos as Parquet; exit code 1 where some rows have errors."""

from __future__ import annotations

import argparse
from dataclasses import asdict
from pathlib import Path

from runtime.cli.arguments import add_bundle, print_result
from runtime.cluster import batch
from runtime.core.options import add_options, options_from_args


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_bundle(parser)
    parser.add_argument("videos", nargs="+", help="files, directories, globs, or @FILE with one path a line")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="Parquet parts; the same command again resumes")
    add_options(parser, batch.BatchOptions)


def run(args: argparse.Namespace) -> int:
    result = batch.run(args.bundle, args.videos, args.out, options_from_args(batch.BatchOptions, args))
    rows = f"{result.files - result.skipped} rows, {result.errors} with errors, {result.skipped} done before"
    print_result(args, asdict(result), f"{args.out}: {rows}, {result.seconds:.1f} s ({result.runner})")
    return 1 if result.errors else 0
