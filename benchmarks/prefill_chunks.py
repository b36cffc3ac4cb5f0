"""How many positions a run of the prefill should take: speed and peak memory of the LLM on a long prompt.

python benchmarks/prefill_chunks.py [--size 0.5b] [--chunks 128 256 512 1024] [--max-context 23552] [--rounds 3] [--threads 2]
"""

from __future__ import annotations

import importlib.util
import json
import sys

import prepare
from harness import Contestant, arguments, compete, table, write_section

NAMES = {  # name: (options of the bundle, backend, bf16)
    "ONNX Runtime fp32": ((), "onnx", False),
    "ONNX Runtime int4": (("--llm-precision", "int4"), "onnx", False),
    "OpenVINO int4, rest bf16": (("--llm-precision", "int4"), "openvino", True),
}
COLUMNS = ("", "positions a run", "prefill s", "peak RSS GB")


def main() -> int:
    parser = arguments(__doc__.splitlines()[0], rounds=3)
    parser.add_argument("--chunks", type=int, nargs="+", default=[128, 256, 512, 1024])
    parser.add_argument("--prompt", type=int, default=5441, help="positions; by default those of 32 frames at 4:1")
    parser.add_argument("--max-context", type=int, default=23552, help="by default speed.py's, to share its bundles")
    args = parser.parse_args()
    context = ("--max-context", str(args.max_context))
    contestants = []
    for name, (precision, backend, bf16) in NAMES.items():
        if importlib.util.find_spec("openvino") is None and backend == "openvino":
            continue
        bundle = str(prepare.bundle(args.size, args.threads, 8, "--only", "llm", *context, *precision))
        job = {"vision": None, "llm": bundle, "backend": backend, "bf16": bf16, "prompts": [args.prompt]}
        for chunk in args.chunks:
            whole = json.dumps(job | {"chunk": chunk, "new_tokens": 1, "threads": args.threads})
            contestants.append((name, chunk, Contestant(f"{name}, {chunk}", ["benchmarks/contestant_runtime.py", whole])))
    compete([contestant for _, _, contestant in contestants], args.rounds, args.threads)
    rows = [
        [name, str(chunk), one.median("prompts", 0, "prefill"), one.median("peak_rss") / 1e9] for name, chunk, one in contestants
    ]
    text = (
        f"Size {args.size}, a prompt of {args.prompt:,} positions, {args.threads} threads, medians of {args.rounds} interleaved rounds."
        f"\n\n{table(COLUMNS, rows)}"
    )
    write_section("prefill-chunks", text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
