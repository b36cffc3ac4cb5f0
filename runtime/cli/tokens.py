"""`tokens`: a video's compressed visual tokens as a NumPy archive."""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from runtime.cli.arguments import EngineChoice, add_bundle, open_bundle, print_result
from runtime.core.files import atomic_file
from runtime.core.options import add_options, options_from_args
from runtime.core.progress import log
from runtime.engine import placed
from runtime.vision.encoder import VisionEncoder


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_bundle(parser)
    parser.add_argument("video", type=Path)
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="FILE.npz")
    add_options(parser, EngineChoice)


def run(args: argparse.Namespace) -> int:
    on = options_from_args(EngineChoice, args)
    with atomic_file(args.output) as temporary:  # an output that can't be written is refused before the work
        bundle = open_bundle(args)
        engine = placed(bundle, on.backend, on.engine)
        visual = VisionEncoder.open(bundle, on.backend, engine).encode(args.video)
        with open(temporary, "wb") as file:
            np.savez(file, visual_tokens=visual.tokens, frames=visual.clip.indices, timestamps=visual.clip.timestamps)
    for note in visual.clip.notes:
        log(note)
    shape, dtype = list(visual.tokens.shape), str(visual.tokens.dtype)
    result = {"shape": shape, "dtype": dtype, "frames": list(visual.clip.indices), "file": str(args.output)}
    print_result(args, result | {"seconds": visual.seconds}, f"{args.output}: visual_tokens {shape} {dtype}")
    return 0
