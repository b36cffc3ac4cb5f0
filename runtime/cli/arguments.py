"""Command lines whose faults are one line like every other fault: an argparse parser that raises UsageError.

argparse itself prints a usage text of many lines and leaves the process.
"""

from __future__ import annotations

import argparse
from typing import Any, NoReturn

from runtime.core.errors import UsageError, nearest


class ArgumentParser(argparse.ArgumentParser):
    """argparse's, for `exit_code(lambda: run(parser.parse_args(argv)))`; an unknown option names the nearest one."""

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **{"allow_abbrev": False} | kwargs)

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message}; `{self.prog} --help` shows what there is")

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> tuple[Any, list[str]]:  # type: ignore[override]
        parsed, unknown = super().parse_known_args(args, namespace)
        for name in (text.partition("=")[0] for text in unknown if text.startswith("-")):
            self.error(f"no option {name}{nearest(name, self._option_string_actions)}")
        return parsed, unknown
