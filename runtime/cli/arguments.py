"""What command lines share: a parser that raises its errors, the arguments that several commands have, and how a result is printed."""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from runtime.bundle import Bundle
from runtime.core.errors import UsageError, nearest
from runtime.core.options import nested, options_from_args
from runtime.core.progress import log
from runtime.engine import EngineOptions, backend_option, placed


class ArgumentParser(argparse.ArgumentParser):
    """argparse's, which raises a UsageError of one line instead of printing its usage and leaving the process.

    An unknown option names the nearest one.
    """

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **{"allow_abbrev": False} | kwargs)

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message}; `{self.prog} --help` shows what there is")

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> tuple[Any, list[str]]:  # type: ignore[override]
        parsed, unknown = super().parse_known_args(args, namespace)
        for name in (text.partition("=")[0] for text in unknown if text.startswith("-")):
            self.error(f"no option {name}{nearest(name, self._option_string_actions)}")
        return parsed, unknown


@dataclass(frozen=True)
class EngineChoice:
    """The options of a command that runs a bundle's engines and has no engine options of its own."""

    backend: str = backend_option()
    engine: EngineOptions = nested(EngineOptions())


def add_bundle(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("bundle", type=Path, help="directory that `python -m export` wrote")


def open_bundle(args: argparse.Namespace, verify: bool = False) -> Bundle:
    return Bundle.open(args.bundle, verify=verify, progress=log if verify else None)


def open_with_engine(args: argparse.Namespace) -> tuple[Bundle, str, EngineOptions]:
    """The bundle, and the backend and the engine options of EngineChoice, with a device."""
    bundle, choice = open_bundle(args), options_from_args(EngineChoice, args)
    return bundle, choice.backend, placed(bundle, choice.backend, choice.engine)


def print_result(args: argparse.Namespace, data: Any, text: str) -> None:
    print(json.dumps(data, indent=1) if args.json else text)
