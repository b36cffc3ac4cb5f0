"""The C++ runtime against the Python one and transformers: one answer about the demo's clip by a fresh process.

    python benchmarks/cpp_runtime.py [--rounds 7] [--threads 2] [--bundle DIR]

Start-up is part of what an edge program costs, so every contestant is a new process that opens the demo bundle (its
files hashed by an earlier run), decodes the clip, answers and decodes 64 tokens more. Needs `make cpp`.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from harness import ROOT, Contestant, compete, ratio_row, table, write_section

QUESTION = "which shape appears last ?"
NEW_TOKENS = 64
CLIP = ROOT / "export" / "demo" / "clips" / "shapes.mp4"
PROBE = ROOT / "build" / "cpp" / "tests" / "gridpool-probe"
COLUMNS = ("", "ready s", "first token s", "decode tok/s", "peak RSS MB")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--bundle", type=Path, help="the demo checkpoint's, exported with every default (default: export it)")
    args = parser.parse_args()
    if not PROBE.exists():
        raise SystemExit(f"{PROBE.relative_to(ROOT)} is missing; run `make cpp`")
    folder = Path(tempfile.mkdtemp())
    try:
        return _measure(args, args.bundle or _exported(folder / "bundle"), folder)
    finally:
        shutil.rmtree(folder)


def _measure(args: argparse.Namespace, bundle: Path, folder: Path) -> int:
    library = subprocess.run([sys.executable, "-c", _FIND], capture_output=True, text=True, check=True).stdout.strip()
    line = folder / "line.json"  # the probe reads its job from stdin
    line.write_text(json.dumps([str(bundle), str(CLIP), QUESTION, NEW_TOKENS, args.threads, library]))
    job = {"bundle": str(bundle), "video": str(CLIP), "question": QUESTION, "new_tokens": NEW_TOKENS, "threads": args.threads}

    def python(name: str, who: str) -> Contestant:
        return Contestant(name, ["benchmarks/contestant_answer.py", json.dumps(job | {"who": who})])

    cpp = Contestant("C++", ["-c", f'exec "{PROBE}" answer < "{line}"'], program="/bin/sh")
    ours, theirs = python("Python", "runtime"), python("transformers sdpa fp32", "transformers")
    compete([cpp, ours, theirs], 1, args.threads)  # unmeasured: fills the page cache
    for contestant in (cpp, ours, theirs):
        contestant.runs.clear()
    compete([cpp, ours, theirs], args.rounds, args.threads)
    ids = [contestant.runs[0].output["id"] for contestant in (cpp, ours)]
    if ids[0] != ids[1]:
        raise SystemExit(f"C++ answers {ids[0]}, Python {ids[1]}: nothing to compare")
    weights = sum((bundle / name).stat().st_size for name in ("vision.loop.onnx", "llm/decoder.onnx", "llm/embed_tokens.npy"))
    write_section("cpp-runtime", f"{_facts(args, weights)}\n\n{_table([cpp, ours, theirs])}\n\n{_ratios(cpp, ours, weights)}")
    return 0


def _facts(args: argparse.Namespace, weights: int) -> str:
    return (
        f"The demo bundle in fp32 ({weights / 1e6:.1f} MB of weights), {CLIP.name}, {args.threads} threads, median of {args.rounds} "
        f"interleaved rounds, a process each; {NEW_TOKENS} tokens decoded. transformers has its own 401 visual tokens, the others 257."
    )


def _table(contestants: list[Contestant]) -> str:
    rows = [
        [one.name, *(one.median(key) for key in ("ready", "first_token", "tokens_per_second")), one.median("peak_rss") / 1e6]
        for one in contestants
    ]
    return table(COLUMNS, rows)


def _ratios(cpp: Contestant, ours: Contestant, weights: int) -> str:
    rows = [
        ratio_row("C++ ready, ms", cpp.median("ready") * 1000, 100, larger=False),
        ratio_row("C++ peak RSS beyond the weights, MB", (cpp.median("peak_rss") - weights) / 1e6, 120, larger=False),
        ratio_row("first token, Python's time over C++'s", ours.median("first_token") / cpp.median("first_token"), 1),
        ratio_row("decode tok/s, C++ over Python", cpp.median("tokens_per_second") / ours.median("tokens_per_second"), 1),
    ]
    return table(("", "measured", "target", "met"), rows)


def _exported(bundle: Path) -> Path:
    subprocess.run(
        [sys.executable, "-m", "export", "--model", "llava-ov", "--out", bundle], check=True, cwd=ROOT, capture_output=True
    )
    return bundle


_FIND = (
    "import onnxruntime, pathlib; print(next((pathlib.Path(onnxruntime.__file__).parent / 'capi').glob('libonnxruntime.so.1*')))"
)

if __name__ == "__main__":
    sys.exit(main())
