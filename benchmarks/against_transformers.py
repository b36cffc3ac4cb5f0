"""This runtime against transformers on the same weights, frames and threads: encode, time to first token, decode, memory, start.

    python benchmarks/against_transformers.py [--size 0.5b] [--frames 8] [--rounds 3] [--new-tokens 32] [--threads 2]

Every contestant prefills two prompts: that of our compressed tokens and that of transformers' own 196 tokens a frame. So the table
shows the gain as a user has it (our tokens against theirs) and at equal compression.
"""

from __future__ import annotations

import json
import sys

import prepare
from harness import Contestant, arguments, compete, ratio_row, run_python, table, write_section

TEXT_POSITIONS = 32  # chat template and question
OURS = "this runtime, fp32"
OTHERS = {
    "transformers eager fp32": ("eager", "float32"),
    "transformers sdpa fp32": ("sdpa", "float32"),
    "transformers sdpa bf16": ("sdpa", "bfloat16"),
}
COLUMNS = ("", "prompt", "encode s/frame", "prefill s", "first token s", "decode tok/s", "peak RSS GB", "import s", "ready s")


def main() -> int:
    parser = arguments(__doc__.splitlines()[0], rounds=3)
    parser.add_argument("--frames", type=int, default=8)
    parser.add_argument("--new-tokens", type=int, default=32)
    args = parser.parse_args()

    checkpoint = prepare.checkpoint(args.size, args.threads)
    config = json.loads((checkpoint / "config.json").read_text())
    side = config["vision_config"]["image_size"] // config["vision_config"]["patch_size"]
    pooled = -(-side // 2)  # a side of the half grid
    own = pooled * pooled * args.frames + 1 + TEXT_POSITIONS  # one newline token
    context = -(-(own + args.new_tokens + 1) // 256) * 256
    bundle = prepare.bundle(args.size, args.threads, args.frames, "--max-context", str(context))
    # The first load of a bundle hashes its files; every later one, which is what the rounds measure, does not.
    run_python(["-m", "runtime", "inspect", str(bundle), "--json"], args.threads)
    compressed = json.loads((bundle / "manifest.json").read_text())["tokens_per_clip"] + TEXT_POSITIONS

    common = {"prompts": [compressed, own], "new_tokens": args.new_tokens, "threads": args.threads}
    ours = Contestant(OURS, _job("contestant_runtime.py", common | {"vision": str(bundle), "llm": str(bundle)}))
    others = [
        Contestant(
            name,
            _job(
                "contestant_transformers.py",
                common | {"checkpoint": str(checkpoint), "frames": args.frames, "attention": attention, "dtype": dtype},
            ),
        )
        for name, (attention, dtype) in OTHERS.items()
    ]
    contestants = [ours, *others]
    compete(contestants, args.rounds, args.threads)
    # Everyone at the prompt that its own way gives, then everyone at the other one.
    rows = [_row(ours, 0, args.frames), *(_row(other, 1, args.frames) for other in others)]
    rows += [_row(other, 0, args.frames) for other in others] + [_row(ours, 1, args.frames)]
    write_section(
        "against-transformers",
        f"Size {args.size}, {args.frames} frames, {args.threads} threads, median of {args.rounds} interleaved rounds, "
        f"{args.new_tokens} tokens decoded. Prompts: {compressed} positions with our tokens, {own} with transformers' own.\n\n"
        f"{table(COLUMNS, rows)}\n\n{table(('ratio', 'measured', 'target', 'met'), _ratios(ours, others))}",
    )
    return 0


def _ratios(ours: Contestant, others: list[Contestant]) -> list[list[str]]:
    eager, sdpa, bf16 = others

    def first_token(contestant: Contestant, prompt: int) -> float:
        return contestant.median("encode") + contestant.median("prompts", prompt, "prefill")

    def decode(prompt_ours: int, other: Contestant, prompt_other: int) -> float:
        return ours.median("prompts", prompt_ours, "tokens_per_second") / other.median("prompts", prompt_other, "tokens_per_second")

    least = min(eager.median("peak_rss"), sdpa.median("peak_rss"))
    return [
        ratio_row("encode speed, against sdpa fp32", sdpa.median("encode") / ours.median("encode"), 1.8),
        ratio_row("encode speed, against sdpa bf16", bf16.median("encode") / ours.median("encode"), None),
        ratio_row("time to first token, against eager fp32, each its own tokens", first_token(eager, 1) / first_token(ours, 0), 2),
        ratio_row("time to first token, against eager fp32, equal tokens", first_token(eager, 0) / first_token(ours, 0), None),
        ratio_row("decode tok/s, against eager fp32, equal tokens", decode(0, eager, 0), 1.7),
        ratio_row("decode tok/s, against sdpa fp32, equal tokens", decode(0, sdpa, 0), 1.7),
        ratio_row("decode tok/s, against sdpa bf16, equal tokens", decode(0, bf16, 0), None),
        ratio_row("peak RSS, share of the lower fp32 one", ours.median("peak_rss") / least, 1.0, larger=False),
        ratio_row("import of the runtime, s", ours.median("import"), 0.5, larger=False),
    ]


def _row(contestant: Contestant, prompt: int, frames: int) -> list:
    encode, prefill = contestant.median("encode"), contestant.median("prompts", prompt, "prefill")
    return [
        contestant.name,
        str(contestant.runs[0].output["prompts"][prompt]["positions"]),
        encode / frames,
        prefill,
        encode + prefill,
        contestant.median("prompts", prompt, "tokens_per_second"),
        contestant.median("peak_rss") / 1e9,
        contestant.median("import"),
        contestant.median("ready"),
    ]


def _job(script: str, job: dict) -> list[str]:
    return [f"benchmarks/{script}", json.dumps(job)]


if __name__ == "__main__":
    sys.exit(main())
