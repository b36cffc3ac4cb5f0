"""`python -m export`: parse, call export_bundle, print. Progress goes to stderr, the result to stdout."""

from __future__ import annotations

if __name__ == "__main__":  # imports take a second, and Ctrl-C ends them like anything else
    from runtime.core.interrupts import leave_on_ctrl_c

    leave_on_ctrl_c()

import argparse
import json
import sys
from typing import Any

from export.options import ExportOptions
from export.pipeline import ExportResult, export_bundle
from runtime.cli.arguments import ArgumentParser
from runtime.core.errors import exit_code


def main(argv: list[str] | None = None) -> int:
    """Entry point; returns the exit code (0, 2 for a user's error, 130 for Ctrl-C)."""
    return exit_code(lambda: _run(_parser().parse_args(argv)))


def _parser() -> ArgumentParser:
    defaults = ExportOptions()
    parser = ArgumentParser(
        prog="python -m export", description="Export a video LLM with token compression inside the graph as a bundle."
    )
    parser.add_argument("--list", action="store_true", help="families, presets, stages with their options; then stop")
    parser.add_argument("--model", default=defaults.model, help="model family (default: %(default)s)")
    parser.add_argument("--checkpoint", metavar="DIR|HUB_ID", help="default: the small checkpoint that ships with the package")
    parser.add_argument("--out", metavar="DIR", help="the bundle's directory (default: bundles/<model>)")
    parser.add_argument("--frames", type=int, metavar="N", help="frames of a clip (default: the checkpoint's)")
    parser.add_argument("--compress", metavar="PRESET|SPEC", help="token compression (default: the family's)")
    parser.add_argument("--place", choices=["after-projector", "before-projector"], default=defaults.place)
    parser.add_argument("--precision", choices=["fp32", "fp16", "int8"], default=defaults.precision)
    parser.add_argument("--llm-precision", metavar="fp32|fp16|int8|int4[:BLOCK]", help="the LLM's (default: that of --precision)")
    parser.add_argument("--calibrate", metavar="DIR", help="videos that quantisation is measured on (default: generated clips)")
    parser.add_argument("--error-budget", type=float, metavar="SHARE", help="relative error that quantisation may make")
    parser.add_argument("--attention", choices=["portable", "standard"], default=defaults.attention)
    parser.add_argument("--tensorrt", metavar="VERSION", help="make a node that this release does not take an error, e.g. 10.3")
    parser.add_argument("--max-context", type=int, metavar="N", help="KV positions (default: the clip and about a thousand more)")
    parser.add_argument("--only", choices=["vision", "llm"], help="export one half")
    parser.add_argument(
        "--input",
        metavar="pixels|frames[:HxW]",
        default=defaults.input,
        help="uint8 frames of a fixed size, which the graph resizes and normalises (default: %(default)s)",
    )
    parser.add_argument(
        "--split", action="store_true", help="encoder of one frame and compressor of the clip as two graphs (live video)"
    )
    parser.add_argument("--force", action="store_true", help="replace an existing bundle")
    parser.add_argument("--json", action="store_true", help="the result as JSON on stdout")
    return parser


def _run(args: argparse.Namespace) -> int:
    values = vars(args).copy()
    as_json, listing = values.pop("json"), values.pop("list")
    if listing:
        from export.listing import listing_text, options_table

        print(json.dumps(options_table(), indent=1) if as_json else listing_text())
        return 0
    result = export_bundle(ExportOptions(**values))
    print(json.dumps(result.as_dict(), indent=1) if as_json else summary(result))
    return 0


def summary(result: ExportResult) -> str:
    """A few lines for a person: what was written, the checks, the passes that rewrote something."""
    facts = result.as_dict()
    ratio = facts["patch_tokens"] / facts["tokens_per_clip"]
    lines = [
        f"{facts['bundle']}: {facts['frames']} frames, {facts['patch_tokens']} patch tokens -> {facts['tokens_per_clip']} visual tokens "
        f"({ratio:.1f}:1), {_precisions(facts)}, {facts['bytes'] / 1e6:.1f} MB",
        f"compression  {facts['compression']['spec']} {facts['compression']['place']}",
    ]
    for report in facts["passes"]:
        if report["rewrites"]:
            lines.append(f"pass         {report['graph']}: {report['pass']} {report['rewrites']}  {report['note']}".rstrip())
    lines += [f"TensorRT     {check}: {said}" for check, said in facts["tensorrt"].items()]
    lines += [f"verified     {row['stage']:<24} error {row['error']:.1e}" for row in facts["verified"]]
    return "\n".join(lines)


def _precisions(facts: dict[str, Any]) -> str:
    vision, llm = facts["precision"], facts["llm_precision"]
    return vision if vision == llm else f"vision {vision}, LLM {llm}"


if __name__ == "__main__":
    sys.exit(main())
