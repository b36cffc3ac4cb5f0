"""The command line of `python -m runtime`. A command is a line of COMMANDS and a file of its name in this directory.

The file has `add_arguments(parser)` and `run(args)`, which calls one public function, prints and returns the exit code.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence

from runtime.cli.arguments import ArgumentParser

COMMANDS = {
    "run": "answer a question about a video; the answer streams",
    "tokens": "write a video's compressed visual tokens",
    "batch": "write many videos' compressed tokens to Parquet; exit 1 where some have errors",
    "serve": "answer over HTTP as an OpenAI-compatible server, with a page at /",
    "watch": "answer a question about a stream, again and again",
    "build": "build TensorRT engines",
    "parity": "compare engines with torch's recorded outputs, stage by stage; exit 1 past tolerance",
    "bench": "time every stage: median and p90",
    "tune": "measure CPU backends and threads here, for --backend auto",
    "plot": "draw the frames with token norms, NSP's weights and PTG's summaries",
    "inspect": "what a bundle is, its token budget, the memory that it will need",
    "doctor": "what is installed and usable here",
}


def run_command_line(words: Sequence[str]) -> int:
    """Parse the words after the program's name and run their command; returns the exit code."""
    args = parser(words[0] if words and words[0] in COMMANDS else "").parse_args(words)
    return args.command(args)


def parser(only: str = "") -> ArgumentParser:
    """The parser of all commands, or of `only` one, whose module alone is imported. `command` in the namespace is what runs it."""
    main = ArgumentParser(prog="python -m runtime", description="Answer questions about videos from a bundle, without torch.")
    commands = main.add_subparsers(required=True, metavar="COMMAND")
    for name, text in COMMANDS.items():
        command = commands.add_parser(name, help=text, description=text)
        if only in ("", name):
            module = importlib.import_module(f"runtime.cli.{name}")
            module.add_arguments(command)
            command.add_argument("--json", action="store_true", help="the result as JSON on stdout")
            command.set_defaults(command=module.run)
    return main
