"""python -m export.demo clip|train|evaluate: write a generated clip, train the demo checkpoint, count its right answers."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from export.compress import DEFAULT_PRESET
from export.demo import CHECKPOINT
from export.demo.clips import ClipOptions, write_demo_clip
from export.demo.recipe import POOLINGS, Recipe
from export.scenes.scene import SPLITS
from runtime.core.errors import exit_code
from runtime.core.progress import log


def main(arguments: list[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    return exit_code(lambda: options.run(options))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m export.demo", description="The demo checkpoint and its world.")
    commands = parser.add_subparsers(dest="command", required=True)
    _add_clip(commands.add_parser("clip", help="write a generated clip as mp4 and print its questions and answers"))
    _add_train(commands.add_parser("train", help="train the demo checkpoint from nothing, or go on where a run was stopped"))
    _add_evaluate(commands.add_parser("evaluate", help="count the questions about held-out clips that a checkpoint answers"))
    return parser


def _add_clip(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-o", "--out", type=Path, required=True, metavar="FILE.mp4")
    parser.add_argument("--seed", type=int, default=ClipOptions.seed, help="of the generator (default: %(default)s)")
    parser.add_argument("--frames", type=int, default=ClipOptions.frames, help="to generate (default: %(default)s)")
    parser.add_argument("--scale", type=int, default=ClipOptions.scale, help="pixels of the file a pixel (default: %(default)s)")
    parser.add_argument("--json", action="store_true", help="print the result as JSON, as in the files beside the sample clips")
    parser.set_defaults(run=_clip)


def _add_train(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-o", "--out", type=Path, required=True, metavar="DIR", help="for checkpoint/, the log and the run's state")
    parser.add_argument("--seed", type=int, default=Recipe.seed, help="of weights and clips (default: %(default)s)")
    parser.add_argument(
        "--pooling",
        choices=POOLINGS,
        default=Recipe.pooling,
        help="what visual tokens go through: a fair mix of reductions, or only the family's pooling (default: %(default)s)",
    )
    parser.add_argument("--threads", type=int, default=Recipe.threads, help="default: %(default)s")
    parser.add_argument("--scale", type=float, default=1.0, help="factor of every stage's steps; a small one is for a trial run")
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    parser.set_defaults(run=_train)


def _add_evaluate(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--seed", type=int, default=0, help="of the clips (default: %(default)s)")
    parser.add_argument("--clips", type=int, default=300, help="default: %(default)s")
    parser.add_argument("--split", choices=SPLITS, default="test", help="default: %(default)s")
    parser.add_argument("--checkpoint", type=Path, default=CHECKPOINT, metavar="DIR", help="default: the shipped one")
    parser.add_argument(
        "--compress", default=DEFAULT_PRESET, metavar="SPEC", help="preset or spec of the compression (default: %(default)s)"
    )
    parser.add_argument("--bundle", type=Path, metavar="DIR", help="answer by an exported bundle, from mp4 files, instead")
    parser.add_argument("--json", action="store_true", help="print the result as one line of JSON")
    parser.set_defaults(run=_evaluate)


def _clip(options: argparse.Namespace) -> None:
    clip = write_demo_clip(options.out, ClipOptions(options.seed, options.frames, options.scale))
    if options.json:
        questions = [question._asdict() for question in clip.questions]
        print(json.dumps({"clip": options.out.name, "seed": options.seed, "questions": questions}, indent=1))
    else:
        for question in clip.questions:
            print(f"{question.question:44}{question.answer}")


def _train(options: argparse.Namespace) -> None:
    from export.demo.train import Training

    recipe = Recipe(seed=options.seed, pooling=options.pooling, threads=options.threads).scaled(options.scale)
    training = Training(recipe, options.out, log)
    checkpoint = training.run()
    values = {"checkpoint": str(checkpoint), "seconds": round(training.seconds, 1), "steps": recipe.steps}
    print(json.dumps(values) if options.json else f"{checkpoint}: {recipe.steps} steps, {training.seconds / 60:.0f} minutes")


def _evaluate(options: argparse.Namespace) -> None:
    from export.demo.evaluate import EvaluateOptions, evaluate

    def progress(done: int, clips: int) -> None:
        if done == clips or done % max(1, clips // 10) == 0:
            log(f"{done} of {clips} clips")

    result = evaluate(
        EvaluateOptions(options.seed, options.clips, options.split, options.compress, options.checkpoint, options.bundle),
        progress,
    )
    if options.json:
        print(json.dumps(result))
        return
    print(f"{result['compress']}: {result['tokens_per_clip']} visual tokens a clip, {result['compression']}:1")
    print(f"{'kind':12}{'questions':>10}{'accuracy':>10}{'chance':>8}")
    for kind, values in result["kinds"].items():
        print(f"{kind:12}{values['questions']:>10}{values['accuracy']:>10.3f}{values['chance']:>8.3f}")
    print(f"{'all':12}{result['questions']:>10}{result['accuracy']:>10.3f}")


if __name__ == "__main__":
    sys.exit(main())
