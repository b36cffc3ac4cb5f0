"""What this machine allows and what the runtime takes: `inspect --predict cpu`, which is a roofline, against measured stages.

python benchmarks/roofline.py [--size 0.5b] [--frames 8] [--max-context M] [--rounds 3] [--threads 2]

Predicted and measured in turns, on ONNX Runtime, in fp32 and in int8 + int4. A stage cannot be faster than the larger of its
operations at the measured GFLOP/s and its bytes at the measured GB/s; the last column is how much of that was reached.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from statistics import median

import prepare
from harness import Contestant, arguments, compete, table, write_section

BUNDLES = {  # name: options of the vision encoder, of the LLM
    "fp32": ((), ()),
    "int8 + int4": (("--precision", "int8"), ("--llm-precision", "int4")),
}
NEW_TOKENS = 32
COLUMNS = ("bundle", "stage", "bound by", "GFLOP", "MB", "predicted s", "measured s", "of the roofline")


def main() -> int:
    parser = arguments(__doc__.splitlines()[0], rounds=3)
    parser.add_argument("--frames", type=int, default=8)
    parser.add_argument("--max-context", type=int, help="of the LLM; speed.py's, to share its bundles (default: the exporter's)")
    args = parser.parse_args()
    context = ("--max-context", str(args.max_context)) if args.max_context else ()
    rows, machines = [], []
    for name, (vision, llm) in BUNDLES.items():
        parts = [
            prepare.bundle(args.size, args.threads, args.frames, "--only", "vision", *vision),
            prepare.bundle(args.size, args.threads, args.frames, "--only", "llm", *context, *llm),
        ]
        predicted, machine, measured = _measure(parts, args)
        machines += machine
        for stage, seconds in zip(predicted, measured, strict=True):
            bound = median(one["seconds"] for one in stage)
            first = stage[0]
            rows.append(
                [
                    name,
                    first["name"],
                    first["bound"],
                    f"{first['operations'] / 1e9:,.1f}",
                    f"{first['bytes'] / 1e6:,.0f}",
                    bound,
                    seconds,
                    f"{bound / seconds:.0%}",
                ]
            )
    rates = {name: median(one["rates"][name] for one in machines) / 1e9 for name in ("fp32", "int8")}
    bandwidth = median(one["bandwidth"] for one in machines) / 1e9
    text = (
        f"Size {args.size}, {args.frames} frames, {args.threads} threads, ONNX Runtime, medians of {args.rounds} rounds. Measured rates of this "
        f"machine: {rates['fp32']:,.0f} GFLOP/s in fp32, {rates['int8']:,.0f} in int8, {bandwidth:,.0f} GB/s."
    )
    write_section("roofline", f"{text}\n\n{table(COLUMNS, rows)}")
    return 0


def _measure(parts: list[Path], args) -> tuple[list[list[dict]], list[dict], list[float]]:
    """(each stage's predictions, the machine of each prediction, each stage's median seconds), stages as `predict` lists them."""
    predictors = [
        Contestant(f"predict {part.name}", ["-m", "runtime", "inspect", str(part), "--predict", "cpu", "--json"]) for part in parts
    ]
    compete(predictors, 1, args.threads)
    (positions,) = {
        int(stage["name"].split()[1].replace(",", "")) for stage in _stages(predictors[1], 0) if "prefill" in stage["name"]
    }
    job = {
        "vision": str(parts[0]),
        "llm": str(parts[1]),
        "prompts": [positions],
        "new_tokens": NEW_TOKENS,
        "threads": args.threads,
    }
    runtime = Contestant("ONNX Runtime", ["benchmarks/contestant_runtime.py", json.dumps(job)])
    for predictor in predictors:
        predictor.runs.clear()
    compete([*predictors, runtime], args.rounds, args.threads)
    rounds = [[stage for predictor in predictors for stage in _stages(predictor, number)] for number in range(args.rounds)]
    machines = [predictor.runs[number].output["machine"] for predictor in predictors for number in range(args.rounds)]
    seconds = [
        runtime.median("encode"),
        runtime.median("prompts", 0, "prefill"),
        1 / runtime.median("prompts", 0, "tokens_per_second"),
    ]
    return [list(stage) for stage in zip(*rounds, strict=True)], machines, seconds


def _stages(predictor: Contestant, number: int) -> list[dict]:
    return predictor.runs[number].output["stages"]


if __name__ == "__main__":
    sys.exit(main())
