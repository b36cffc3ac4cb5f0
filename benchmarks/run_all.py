"""Every benchmark in order; each rewrites its section of a page in results/. --quick takes the tiny size, one round.

python benchmarks/run_all.py [--quick] [--rounds N] [--threads 2]
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
SCRIPTS = ("export_cost.py", "compression_cost.py", "speed.py", "frames.py", "roofline.py", "server_batch.py", "server_wire.py")
_HAS_ROUNDS = SCRIPTS[1:]
DEMO = {  # of the demo checkpoint, so without sizes: the options of --quick
    "accuracy.py": ["--clips", "8", "--no-bundles"],
    "accuracy_quantized.py": ["--clips", "8"],
    "server_load.py": ["--requests", "200"],
    "cpp_runtime.py": ["--rounds", "1"],
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="the tiny size and one round: shows that everything runs, no more")
    parser.add_argument("--rounds", type=int, help="default: each benchmark's own")
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    failed = []
    for script in SCRIPTS:
        options = ["--size", "tiny" if args.quick else "0.5b", "--threads", str(args.threads)]
        rounds = args.rounds or (1 if args.quick else None)
        if rounds and script in _HAS_ROUNDS:
            options += ["--rounds", str(rounds)]
        if _failed(script, options):
            failed.append(script)
    for script, quick in DEMO.items():
        if _failed(script, [*(quick if args.quick else []), "--threads", str(args.threads)]):
            failed.append(script)
    if failed:
        print(f"failed: {', '.join(failed)}; their sections in benchmarks/results are those of an earlier run", file=sys.stderr)
    return 1 if failed else 0


def _failed(script: str, options: list[str]) -> bool:
    return bool(subprocess.run([sys.executable, str(HERE / script), *options], check=False).returncode)


if __name__ == "__main__":
    sys.exit(main())
