"""`serve`: bundles behind an OpenAI-compatible HTTP API; returns once the server has drained."""

from __future__ import annotations

import argparse
from pathlib import Path

from runtime.cli.arguments import add_bundle
from runtime.core.options import add_options, options_from_args
from runtime.server import serve
from runtime.server.options import ServerOptions


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_bundle(parser)
    parser.add_argument("more", type=Path, nargs="*", metavar="BUNDLE", help="more bundles; a request's model names one")
    add_options(parser, ServerOptions)


def run(args: argparse.Namespace) -> int:
    return serve.run([args.bundle, *args.more], options_from_args(ServerOptions, args))
