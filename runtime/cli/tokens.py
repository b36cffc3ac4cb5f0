"""`tokens`: a video's compressed visual tokens as a NumPy archive."""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from runtime.cli.arguments import EngineChoice, add_bundle, open_with_engine, print_result
from runtime.core.files import atomic_file
from runtime.core.options import add_options
from runtime.core.progress import log
from runtime.vision.encoder import VisionEncoder


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_bundle(parser)
    parser.add_argument("video", type=Path)
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="FILE.npz")
    add_options(parser, EngineChoice)


def run(args: argparse.Namespace) -> int:
    with atomic_file(args.output) as temporary:  # an output that can't be written is refused before the work
        visual = VisionEncoder.open(*open_with_engine(args)).encode(args.video)
        with open(temporary, "wb") as file:
            np.savez(file, visual_tokens=visual.tokens, frames=visual.clip.indices, timestamps=visual.clip.timestamps)
    for note in visual.clip.notes:
        log(note)
    shape, dtype = list(visual.tokens.shape), str(visual.tokens.dtype)
    result = {"shape": shape, "dtype": dtype, "frames": list(visual.clip.indices), "file": str(args.output)}
    print_result(args, result | {"seconds": visual.seconds}, f"{args.output}: visual_tokens {shape} {dtype}")
    return 0
