"""python -m export.demo clip|train|evaluate: write a generated clip, train the demo checkpoint, count its right answers."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from export.demo.clips import ClipOptions, write_demo_clip
from export.demo.evaluate import EvaluateOptions, evaluate
from export.demo.recipe import Recipe
from export.demo.train import Training
from runtime.cli.arguments import ArgumentParser
from runtime.core.errors import exit_code
from runtime.core.options import add_options, options_from_args
from runtime.core.progress import log


def main(arguments: list[str] | None = None) -> int:
    def run() -> None:
        options = _parser().parse_args(arguments)
        options.run(options)

    return exit_code(run)


def _parser() -> ArgumentParser:
    parser = ArgumentParser(prog="python -m export.demo", description="The demo checkpoint: its clips, its training, its accuracy.")
    commands = parser.add_subparsers(required=True)
    clip = commands.add_parser("clip", help="write a generated clip as mp4 and print its questions and answers")
    clip.add_argument("-o", "--out", type=Path, required=True, metavar="FILE.mp4")
    train = commands.add_parser("train", help="train the demo checkpoint from scratch, or resume a run that was stopped")
    train.add_argument("-o", "--out", type=Path, required=True, metavar="DIR", help="for checkpoint/, the log and the run's state")
    train.add_argument("--scale", type=float, default=1.0, help="factor of every stage's steps; a small one is for a trial run")
    evaluation = commands.add_parser("evaluate", help="count the questions about held-out clips that a checkpoint answers")
    for command, run, options in (
        (clip, _clip, ClipOptions),
        (train, _train, Recipe),
        (evaluation, _evaluate, EvaluateOptions),
    ):
        add_options(command, options)
        command.add_argument("--json", action="store_true", help="print the result as JSON")
        command.set_defaults(run=run)
    return parser


def _clip(args: argparse.Namespace) -> None:
    options = options_from_args(ClipOptions, args)
    clip = write_demo_clip(args.out, options)
    if args.json:
        questions = [question._asdict() for question in clip.questions]
        print(json.dumps({"clip": args.out.name, "seed": options.seed, "questions": questions}, indent=1))
    else:
        for question in clip.questions:
            print(f"{question.question:44}{question.answer}")


def _train(args: argparse.Namespace) -> None:
    recipe = options_from_args(Recipe, args).scaled(args.scale)
    training = Training(recipe, args.out, log)
    checkpoint = training.run()
    values = {"checkpoint": str(checkpoint), "seconds": round(training.seconds, 1), "steps": recipe.steps}
    print(json.dumps(values) if args.json else f"{checkpoint}: {recipe.steps} steps, {training.seconds / 60:.0f} minutes")


def _evaluate(args: argparse.Namespace) -> None:
    def progress(done: int, clips: int) -> None:
        if done == clips or done % max(1, clips // 10) == 0:
            log(f"{done} of {clips} clips")

    result = evaluate(options_from_args(EvaluateOptions, args), progress)
    if args.json:
        print(json.dumps(result))
        return
    print(f"{result['compress']}: {result['tokens_per_clip']} visual tokens a clip, {result['compression']}:1")
    print(f"{'kind':12}{'questions':>10}{'accuracy':>10}{'chance':>8}")
    for kind, values in result["kinds"].items():
        print(f"{kind:12}{values['questions']:>10}{values['accuracy']:>10.3f}{values['chance']:>8.3f}")
    print(f"{'all':12}{result['questions']:>10}{result['accuracy']:>10.3f}")


if __name__ == "__main__":
    sys.exit(main())
