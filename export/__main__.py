"""`python -m export` and the script `gridpool-export`: parse, call export_bundle, print. The result goes to stdout, progress to stderr."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from runtime.core.interrupts import leave_on_ctrl_c

if TYPE_CHECKING:
    import argparse

    from export.pipeline import ExportResult
    from runtime.cli.arguments import ArgumentParser


def main(argv: list[str] | None = None) -> int:
    """Run a command line, the process's if `argv` is None; returns the exit code (0, 2 for a user's error, 130 for Ctrl-C)."""
    if argv is None:
        leave_on_ctrl_c()  # the imports below take a second
    from runtime.core.errors import exit_code

    return exit_code(lambda: _run(_parser().parse_args(argv)))


def _parser() -> ArgumentParser:
    from export.options import ExportOptions
    from runtime.cli.arguments import ArgumentParser
    from runtime.core.options import add_options

    parser = ArgumentParser(
        prog="python -m export", description="Export a video LLM with token compression inside the graph as a bundle."
    )
    parser.add_argument("--list", action="store_true", help="families, presets, stages with their options; then stop")
    add_options(parser, ExportOptions)
    parser.add_argument("--json", action="store_true", help="the result as JSON on stdout")
    return parser


def _run(args: argparse.Namespace) -> int:
    import json

    from export.options import ExportOptions
    from export.pipeline import export_bundle
    from runtime.core.options import options_from_args

    if args.list:
        from export.listing import listing_text, options_table

        print(json.dumps(options_table(), indent=1) if args.json else listing_text())
        return 0
    result = export_bundle(options_from_args(ExportOptions, args))
    print(json.dumps(result.as_dict(), indent=1) if args.json else summary(result))
    return 0


def summary(result: ExportResult) -> str:
    """A few lines for a person: what was written, the checks, the passes that rewrote something."""
    values = result.as_dict()
    ratio = values["patch_tokens"] / values["tokens_per_clip"]
    vision, llm = values["precision"], values["llm_precision"]
    precision = vision if vision == llm else f"vision {vision}, LLM {llm}"
    lines = [
        f"{values['bundle']}: {values['frames']} frames, {values['patch_tokens']} patch tokens -> {values['tokens_per_clip']} visual tokens "
        f"({ratio:.1f}:1), {precision}, {values['bytes'] / 1e6:.1f} MB",
        f"compression  {values['compression']['spec']} {values['compression']['place']}",
    ]
    for report in values["passes"]:
        if report["rewrites"]:
            lines.append(f"pass         {report['graph']}: {report['pass']} {report['rewrites']}  {report['note']}".rstrip())
    lines += [f"TensorRT     {check}: {outcome}" for check, outcome in values["tensorrt"].items()]
    lines += [f"verified     {row['stage']:<24} error {row['error']:.1e}" for row in values["verified"]]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
