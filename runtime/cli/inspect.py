"""`inspect`: what a bundle is and needs, or with --predict what its stages should take on other hardware."""

from __future__ import annotations

import argparse

from runtime.cli.arguments import add_bundle, open_bundle, print_result
from runtime.server.options import ServerOptions
from runtime.tools import inspect, predict


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_bundle(parser)
    parser.add_argument("--verify", action="store_true", help="hash every file")
    metavar, text = "cpu|orin|thor|h200", "what each stage should take there, from operations and bytes"
    parser.add_argument("--predict", metavar=metavar, help=text)


def run(args: argparse.Namespace) -> int:
    if args.predict:
        prediction = predict.predict(open_bundle(args), args.predict)
        print_result(args, prediction.as_dict(), predict.text(prediction))
    else:
        report = inspect.inspect(open_bundle(args, verify=args.verify), ServerOptions.batch, ServerOptions.cache)
        print_result(args, report.as_dict(), inspect.text(report))
    return 0
