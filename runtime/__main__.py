"""`python -m runtime` and the script `gridpool`: results on stdout, progress on stderr. runtime/cli/ has the commands."""

from __future__ import annotations

import sys

from runtime.core.interrupts import leave_on_ctrl_c


def main(argv: list[str] | None = None) -> int:
    """Run a command line, the process's if `argv` is None; returns the exit code.

    0, 1 where parity is past its tolerance or a batch has errors, 2 for a user's error, 130 for Ctrl-C.
    """
    if argv is None:
        leave_on_ctrl_c()  # the imports below take a second
    from runtime.cli.commands import run_command_line
    from runtime.core.errors import exit_code

    return exit_code(lambda: run_command_line(sys.argv[1:] if argv is None else argv))


if __name__ == "__main__":
    sys.exit(main())
