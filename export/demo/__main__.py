"""python -m export.demo clip: write a generated clip, print the questions that can be asked about it."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from export.demo.clips import ClipOptions, write_demo_clip
from runtime.errors import exit_code


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m export.demo", description="The world of the demo checkpoint.")
    commands = parser.add_subparsers(dest="command", required=True)
    clip = commands.add_parser("clip", help="write a generated clip as mp4 and print its questions and answers")
    clip.add_argument("-o", "--out", type=Path, required=True, metavar="FILE.mp4")
    clip.add_argument("--seed", type=int, default=ClipOptions.seed, help="of the generator (default: %(default)s)")
    clip.add_argument("--frames", type=int, default=ClipOptions.frames, help="to generate (default: %(default)s)")
    clip.add_argument("--scale", type=int, default=ClipOptions.scale, help="pixels of the file a pixel (default: %(default)s)")
    clip.add_argument("--json", action="store_true", help="print the result as JSON, as it lies beside the sample clips")
    clip.set_defaults(run=_clip)
    options = parser.parse_args(arguments)
    return exit_code(lambda: options.run(options))


def _clip(options: argparse.Namespace) -> None:
    clip = write_demo_clip(options.out, ClipOptions(options.seed, options.frames, options.scale))
    if options.json:
        questions = [question._asdict() for question in clip.questions]
        print(json.dumps({"clip": options.out.name, "seed": options.seed, "questions": questions}, indent=1))
    else:
        for question in clip.questions:
            print(f"{question.question:44}{question.answer}")


if __name__ == "__main__":
    sys.exit(main())
