"""Cost against frames: encoding, visual tokens and prefill of clips of T frames, measured against what was predicted.

    python benchmarks/frames.py [--size tiny] [--frames 8 16 32 64] [--rounds 3] [--threads 2]

Predicted, from the shortest clip's measurement and shapes alone: encoding grows with T; tokens are a constant a frame and one for
the newline; prefill grows with the multiply-adds of the LLM's matrices and of its attention, chunk by chunk as the runtime runs it.
Writes frames.png beside this file. One decoder serves all clips; a vision graph is exported for each T.

T frames, S prompt positions, P positions read.
"""

from __future__ import annotations

import json
import sys

import prepare
from harness import ROOT, TEXT_POSITIONS, Contestant, arguments, compete, run_python, table, write_section
from random_checkpoint import SIZES, Tower

CHUNK = 256  # runtime.llm.decoder.PREFILL_CHUNK; a test of this project keeps them equal
PLOT = ROOT / "benchmarks" / "frames.png"
COLUMNS = (
    "frames",
    "patch tokens",
    "visual tokens",
    "encode s",
    "predicted",
    "prompt",
    "prefill s",
    "predicted",
    "first token s",
    "KV cache MB",
)


def main() -> int:
    parser = arguments(__doc__.splitlines()[0], size="tiny", rounds=3)
    parser.add_argument("--frames", type=int, nargs="+", default=[8, 16, 32, 64])
    parser.add_argument("--plot", help="internal: draw the points of this JSON file")
    args = parser.parse_args()
    if args.plot:
        _draw(json.loads(args.plot))
        return 0
    counts = sorted(set(args.frames))
    vision = {count: prepare.bundle(args.size, args.threads, count, "--only", "vision") for count in counts}
    manifests = {count: json.loads((path / "manifest.json").read_text()) for count, path in vision.items()}
    prompts = [manifests[count]["tokens_per_clip"] + TEXT_POSITIONS for count in counts]
    context = -(-(prompts[-1] + 8) // 256) * 256
    llm = prepare.bundle(args.size, args.threads, counts[-1], "--only", "llm", "--max-context", str(context))
    for path in (llm, *vision.values()):  # the first load hashes
        run_python(["-m", "runtime", "inspect", str(path), "--json"], args.threads)

    def contestant(name: str, **job) -> Contestant:
        nothing = {"vision": None, "llm": None, "prompts": [], "new_tokens": 4, "threads": args.threads}
        return Contestant(name, ["benchmarks/contestant_runtime.py", json.dumps(nothing | job)])

    encoders = [contestant(f"encode {count} frames", vision=str(path)) for count, path in vision.items()]
    decoder = contestant("prefill", llm=str(llm), prompts=prompts)
    compete([*encoders, decoder], args.rounds, args.threads)

    shape = SIZES[args.size].llm
    encode = [encoder.median("encode") for encoder in encoders]
    prefill = [decoder.median("prompts", index, "prefill") for index in range(len(counts))]
    work = [prefill_multiply_adds(shape, prompt) for prompt in prompts]
    points = {
        "frames": counts,
        "tokens": [manifests[count]["tokens_per_clip"] for count in counts],
        "encode": encode,
        "encode_predicted": [encode[0] * count / counts[0] for count in counts],
        "prefill": prefill,
        "prefill_predicted": [prefill[0] * each / work[0] for each in work],
        "size": args.size,
    }
    cache = 2 * shape.layers * shape.kv_heads * (shape.width // shape.heads) * 4  # bytes a position, float32
    rows = [
        [
            str(count),
            str(count * manifests[count]["grid"][0] * manifests[count]["grid"][1]),
            str(points["tokens"][at]),
            encode[at],
            points["encode_predicted"][at],
            str(prompts[at]),
            prefill[at],
            points["prefill_predicted"][at],
            encode[at] + prefill[at],
            cache * prompts[at] / 1e6,
        ]
        for at, count in enumerate(counts)
    ]
    run_python(["benchmarks/frames.py", "--plot", json.dumps(points)], args.threads)
    write_section(
        "frames",
        f"Size {args.size}, {args.threads} threads, median of {args.rounds} interleaved rounds. "
        f"The predictions start from {counts[0]} frames.\n\n{table(COLUMNS, rows)}\n\n![cost against frames](../{PLOT.name})",
    )
    return 0


def prefill_multiply_adds(llm: Tower, positions: int) -> int:
    """Of a prefill of `positions` in chunks of CHUNK: matrices for each position, attention of each chunk on all read so far."""
    head = llm.width // llm.heads
    matrices = llm.width * (2 * llm.width + 2 * llm.kv_heads * head + 3 * llm.mlp)
    attention = 0
    for start in range(0, positions, CHUNK):
        stop = min(start + CHUNK, positions)
        attention += 2 * (stop - start) * stop * llm.width  # scores and weighted sum
    return llm.layers * (positions * matrices + attention)


def _draw(points: dict) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    frames = points["frames"]
    figure, axes = pyplot.subplots(1, 3, figsize=(11, 3.4), layout="constrained")
    panels = (("encode", "encode, seconds"), ("tokens", "visual tokens"), ("prefill", "prefill, seconds"))
    for axis, (name, title) in zip(axes, panels, strict=True):
        predicted = points.get(f"{name}_predicted")
        if predicted:
            axis.plot(frames, predicted, "--", color="#888888", label=f"predicted from {frames[0]} frames")
        axis.plot(frames, points[name], "o-", color="#2f6fb0", label="measured" if predicted else "exact")
        axis.set(title=title, xlabel="frames", xticks=frames)
        axis.set_ylim(bottom=0)
        axis.grid(alpha=0.3)
        axis.legend(frameon=False)
    figure.suptitle(f"Cost against frames, size {points['size']}")
    figure.savefig(PLOT, dpi=130)


if __name__ == "__main__":
    sys.exit(main())
