"""`doctor`: what is installed and usable here."""

from __future__ import annotations

import argparse

from runtime.cli.arguments import print_result
from runtime.tools import doctor


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """It has no options besides --json."""


def run(args: argparse.Namespace) -> int:
    checks = doctor.report()
    print_result(args, [check.as_dict() for check in checks], doctor.text(checks))
    return 0
