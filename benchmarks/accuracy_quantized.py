"""What quantisation costs in answers: the demo bundle in several precisions, in ONNX Runtime, on the same held-out clips.

    python benchmarks/accuracy_quantized.py [--clips 260] [--seed 0] [--split test] [--threads 2] [--backend onnx]

Differences to the float32 bundle are paired, with 95 % intervals by bootstrap over clips.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from harness import log, table, write_section
from intervals import Bootstrap

from export.demo.evaluate import FRAMES, clips_of
from export.options import ExportOptions
from export.pipeline import export_bundle
from runtime.bundle import Bundle
from runtime.chat import AskOptions, VideoChat
from runtime.engine import EngineOptions
from runtime.media.clip import Clip
from runtime.vision.encoder import VisualTokens

PRECISIONS = (
    ("fp32", "fp32"),
    ("fp16", "fp16"),
    ("int8", "fp32"),
    ("fp32", "int8"),
    ("fp32", "int4"),
    ("int8", "int8"),
    ("int8", "int4"),
)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--clips", type=int, default=260)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--split", choices=["validation", "test"], default="test")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--backend", default="onnx")
    args = parser.parse_args()
    hits, sizes, clip_of = {}, {}, np.empty(0, int)
    for vision, llm in PRECISIONS:
        with tempfile.TemporaryDirectory() as directory:
            out = Path(directory) / "bundle"
            export_bundle(ExportOptions(out=str(out), precision=vision, llm_precision=llm))
            bundle = Bundle.open(out)
            sizes[vision, llm] = _weights(bundle)
            found = list(_answers(VideoChat.open(bundle, args.backend, EngineOptions(threads=args.threads)), args))
        hits[vision, llm] = np.array([hit for _, hit in found])
        clip_of = np.array([clip for clip, _ in found])
        log(f"vision {vision}, LLM {llm}: {hits[vision, llm].mean():.4f}")
    bootstrap, whole = Bootstrap(clip_of), hits[PRECISIONS[0]]
    rows = []
    for (vision, llm), right in hits.items():
        low, high = bootstrap.interval(right)
        worse, better = bootstrap.interval(right.astype(float) - whole)
        difference = f"{100 * (right.mean() - whole.mean()):+.1f} ({100 * worse:+.1f} … {100 * better:+.1f})"
        interval = f"{100 * low:.1f} – {100 * high:.1f}"
        against = "" if right is whole else difference
        rows.append(
            [f"vision {vision}, LLM {llm}", f"{sizes[vision, llm] / 1e6:.2f}", f"{100 * right.mean():.1f}", interval, against]
        )
    text = (
        f"{args.clips} clips of the {args.split} split, seed {args.seed}, {len(whole)} questions, default preset, backend {args.backend}. "
        f"Target: int8 and int4 within a point of float32.\n\n"
        f"{table(('', 'graphs and embeddings MB', 'accuracy %', '95 %', 'against fp32'), rows)}"
    )
    write_section("accuracy-quantized", text)
    return 0


def _answers(chat: VideoChat, args: argparse.Namespace) -> Iterator[tuple[int, bool]]:
    """(number of the clip, whether the first word is right) of every question."""
    for number, clip in enumerate(clips_of(args.split, args.seed, args.clips)):
        tokens = chat.vision.tokens(chat.vision.preprocessor.normalise(clip.frames))
        times = tuple(map(float, range(FRAMES)))
        shown = Clip(Path("drawn"), clip.frames, tuple(range(FRAMES)), times, float(FRAMES), FRAMES, clip.frames.shape[1:3])
        visual = VisualTokens(tokens, shown)
        for question in clip.questions:
            words = "".join(chat.ask_about(visual, question.question, AskOptions(max_new_tokens=4))).split()
            yield number, words[:1] == [question.answer]


def _weights(bundle: Bundle) -> int:
    """Bytes of the graphs that run, and of the embeddings."""
    names = [name for name in bundle.manifest.files if name.endswith(".npy") or ".onnx" in name]
    return sum(
        bundle.manifest.files[name].size for name in names if "reference" not in name and "batch" not in name and "loop" not in name
    )


if __name__ == "__main__":
    sys.exit(main())
